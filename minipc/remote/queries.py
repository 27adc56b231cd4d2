"""Questions to a machine over the shared SSH connection: what it is, what runs on it, what its database holds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from minipc.core.errors import CouldNotVerifyError
from minipc.core.formatting import one_line
from minipc.evidence import records
from minipc.remote import psql, ssh
from minipc.remote.inventory import Target
from minipc.remote.results import parse_result
from minipc_machine import sql_names
from minipc_machine.metrics import TEXTFILES, Gauge, text_of


def on(target: Target, command: str, stdin: str = "", timeout_s: float = 60) -> str:
    """Return what a shell command on the machine prints.

    Raises:
        CouldNotVerifyError: the machine can't be reached, or the command fails.
    """
    config = ssh.write_config([(target.alias, target.data)])
    done = ssh.run(config, target.alias, command, stdin=stdin, timeout_s=timeout_s)
    if done.returncode:
        raise CouldNotVerifyError(
            f"{target.alias}: `{command[:60]}` failed: {reason(done.stderr.decode(errors='replace'))}",
            "run it on the machine; `minipc triage` shows what is broken there",
        )
    return done.stdout.decode().strip()


def reason(text: str) -> str:
    """Return the line of an error output that says why: the first that names an error, else the last.

    psql prints the statement and a mark below its error.
    """
    lines = [line for line in map(one_line, text.splitlines()) if line.strip("^ ")]
    errors = [line for line in lines if re.search(r"\b(ERROR|FATAL|PANIC):", line)]
    return ([*errors[:1], *lines[-1:]] or ["no reason given"])[0][:300]


def query(target: Target, database: str, sql: str) -> str:
    """Return what the machine's database answers: rows as lines, columns separated by `|`.

    The login depends on the database (see `psql`): never the superuser where a service has objects. What a
    service's database answers is data of that service, and may be anything.

    Raises:
        CouldNotVerifyError: it doesn't answer.
    """
    return on(target, psql.command(target.settings.postgres, database), sql)


def count(target: Target, database: str, table: str) -> int:
    """Return the number of rows of a service's table.

    Raises:
        CouldNotVerifyError: the database doesn't answer, or not with a number.
    """
    answer = query(target, database, f"SELECT count(*) FROM {sql_names.table(table)}")  # noqa: S608 - quoted
    if not answer.isdecimal():
        raise CouldNotVerifyError(
            f"{target.alias}: expected the number of rows in {database}.{table}, got {answer[:40]!r}",
            "look at that table on the machine",
        )
    return int(answer)


def tables(target: Target, database: str) -> set[tuple[str, str]]:
    """Return schema and name of all tables of a service. Names are data of the service.

    Raises:
        CouldNotVerifyError: the database doesn't answer.
    """
    text = query(target, database, sql_names.ALL_TABLES)
    found = parse_result(list[list[str]], text, f"{target.alias}: tables of {database}")
    return {(schema, name) for schema, name in found}


def describe(target: Target, backend: str) -> records.Target:
    """Return the machine as the record names it. Raises CouldNotVerifyError."""
    os, kernel, cpus, memory = on(
        target,
        ". /etc/os-release; echo $PRETTY_NAME; uname -r; nproc; awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo",
    ).splitlines()
    return records.Target(
        backend=backend, name=target.alias, os=os, kernel=kernel, cpus=int(cpus), memory_mb=int(memory)
    )


def publish_metrics(target: Target, name: str, metrics: Sequence[Gauge]) -> None:
    """Write metrics onto the machine, for its monitoring; nothing if there are none. Raises CouldNotVerifyError."""
    if metrics:
        file = f"{TEXTFILES}/{name}.prom"
        on(target, f"umask 022 && cat > {file}.new && mv {file}.new {file}", stdin=text_of(metrics))


def architecture(target: Target) -> str:
    """Return the machine's architecture as Debian names it. Raises CouldNotVerifyError."""
    return on(target, "dpkg --print-architecture").strip()


def versions(target: Target) -> dict[str, str]:
    """Package versions, from the machine's release file. Raises CouldNotVerifyError."""
    found = json.loads(on(target, "cat /etc/minipc/release"))["versions"]
    return {str(name): str(value) for name, value in found.items()}
