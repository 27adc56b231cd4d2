"""Questions to a machine over the shared SSH connection: what it is, what runs on it, what its database holds."""

from __future__ import annotations

import json

from minipc import records, ssh
from minipc.errors import CouldNotVerifyError
from minipc.inventory import Target


def on(target: Target, command: str, stdin: str = "", timeout_s: float = 60) -> str:
    """What a shell command on the machine prints.

    Raises:
        CouldNotVerifyError: the machine can't be reached, or the command fails.
    """
    config = ssh.write_config([(target.alias, target.data)])
    done = ssh.run(config, target.alias, command, stdin=stdin, timeout_s=timeout_s)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise CouldNotVerifyError(
            f"{target.alias}: `{command[:60]}` failed: {said[-1] if said else 'no reason given'}",
            "run it on the machine itself; `minipc triage` says what is broken there",
        )
    return done.stdout.decode().strip()


def query(target: Target, database: str, sql: str) -> str:
    """What the machine's database answers its superuser: rows as lines, columns separated by `|`.

    Raises:
        CouldNotVerifyError: it doesn't answer.
    """
    port = target.settings.postgres.port
    return on(target, f"runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -p {port} -d {database}", sql)


def describe(target: Target, backend: str) -> records.Target:
    """The machine as the record names it. Raises CouldNotVerifyError."""
    os, kernel, cpus, memory = on(
        target,
        ". /etc/os-release; echo $PRETTY_NAME; uname -r; nproc; awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo",
    ).splitlines()
    return records.Target(
        backend=backend, name=target.alias, os=os, kernel=kernel, cpus=int(cpus), memory_mb=int(memory)
    )


def versions(target: Target) -> dict[str, str]:
    """Package versions, from the machine's release file. Raises CouldNotVerifyError."""
    found = json.loads(on(target, "cat /etc/minipc/release"))["versions"]
    return {str(name): str(value) for name, value in found.items()}
