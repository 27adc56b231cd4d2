"""Reach the database and the repositories of its backups: psql, pgBackRest and restic, with the machine's settings."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from minipc_machine import schema
from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.processes import DAY_S, CommandError, run
from minipc_machine.program import FailedError, say
from minipc_machine.volume_files import Volume

SETTINGS = Path("/etc/minipc/backups/settings.json")
CONNECT_LIMIT_S = 15
# Exit code of restic: the repository was never created.
NO_REPOSITORY = 10


@dataclass(frozen=True)
class ResticSettings:
    """Files with the address of the restic repository, its passphrase, and the certificate of the server.

    Attributes:
        ca_file: empty: the server has no certificate.
        environment: variables for a repository in a bucket: where its key is, and the region.
        options: values of `--option` for a repository in a storage box: how ssh reaches it.
    """

    repository_file: str
    password_file: str
    ca_file: str
    environment: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Login:
    """How a database is queried.

    Attributes:
        role: the role that logs in; the system user is always `postgres`.
        options: for PGOPTIONS, where they outrank what a role or a database has set for itself.
    """

    role: str
    options: str


@dataclass(frozen=True)
class Settings:
    """Settings of the backup programs. `deploys/repositories.py` writes them; they contain no secrets.

    Attributes:
        stanza: pgBackRest's name for the database.
        host: name of this machine in restic's snapshots.
        port: of PostgreSQL.
        logins: how each database is queried, by its name.
        repos: numbers of pgBackRest's repositories.
        processes: how many threads restic may use.
        paths: component and path of what belongs to configuration and state.
        restic: None without an off-site host.
        volumes: of the services.
        storage: the bucket or storage box with the off-site backups; empty: they are on an off-site host.
    """

    stanza: str
    host: str
    port: int
    logins: dict[str, Login]
    repos: list[int]
    processes: int
    paths: list[tuple[str, str]]
    restic: ResticSettings | None
    volumes: list[Volume] = field(default_factory=list)
    storage: str = ""


@dataclass(frozen=True)
class Summary:
    """What `restic backup --json` says at its end; it has more fields."""

    snapshot_id: str
    data_added_packed: int


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as `restic snapshots --json` describes it; it has more fields."""

    id: str
    short_id: str
    time: str
    paths: list[str]
    tags: list[str] = field(default_factory=list)
    hostname: str = ""


def settings() -> Settings:
    """Return the settings that the last converge wrote. Raises SchemaError if they don't fit this version."""
    return schema.load(Settings, SETTINGS)


def as_postgres(
    argv: Sequence[str], timeout_s: float = DAY_S, stdin: str = "", env: Mapping[str, str] | None = None
) -> str:
    """Run a program as the account `postgres`. Raises FailedError."""
    account = ["--reuid=postgres", "--regid=postgres", "--init-groups"]
    return run(["setpriv", *account, "--", *argv], timeout_s, stdin, env)


def sql(statement: str, database: str, port: int, host: str = "/var/run/postgresql", timeout_s: float = 300) -> str:
    """Run SQL over the local socket; return rows as lines, columns separated by `|`.

    The login depends on the database, and the settings say which one it is (`minipc/remote/psql.py`): the superuser in
    `postgres` only, which contains nothing of a service. Answers from a service's database are data of that service.

    Raises:
        FailedError: the database refuses, does not answer in time, or is not in the settings.
    """
    login = settings().logins.get(database)
    if login is None:
        raise FailedError(f"no login for the database {database}; check that it is in postgres_databases")
    argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", str(port), "-U", login.role, "-d", database]
    limit = int(timeout_s * 1000)
    options = f"{login.options} -c statement_timeout={limit} -c transaction_timeout={limit}"
    return as_postgres(argv, timeout_s + 10, statement + "\n", {"PGOPTIONS": options}).strip()


def empty_auto_conf(data: Path) -> None:
    """Empty postgresql.auto.conf of a restored cluster before its first start.

    PostgreSQL reads that file last, so it outranks every other one, and it comes from the backup: an attacker who was
    superuser for a moment could have left a command in it. What a recovery needs is in files of ours.
    """
    as_postgres(["sh", "-c", 'umask 077; : > "$1/postgresql.auto.conf"', "sh", str(data)])


def pgbackrest(*arguments: str, timeout_s: float = DAY_S) -> str:
    """Run pgBackRest as the account `postgres`. Raises FailedError."""
    return as_postgres(["pgbackrest", *arguments], timeout_s)


def repository(stanza: str, repo: int, *options: str) -> dict[str, Any]:
    """Return `pgbackrest info` of the stanza in one repository. Raises FailedError if it can't be read."""
    text = pgbackrest(f"--stanza={stanza}", f"--repo={repo}", "--output=json", *options, "info", timeout_s=120)
    # Not strict: with a wrong passphrase the message contains what pgBackRest "decrypted".
    found = json.loads(text, strict=False)
    info: dict[str, Any] = found[0] if found else {}
    # 1: no such stanza, 2: no backup yet. Any other code means that the repository could not be read.
    for each in info.get("repo", []):
        if each["status"]["code"] not in (0, 1, 2):
            raise FailedError(_unreadable(repo, each["status"]["message"]))
    return info


def _unreadable(repo: int, message: str) -> str:
    """Return why a repository can't be read. What a wrong passphrase decrypts is not text, and is left out."""
    if re.search(r"FormatError|CryptoError|cipher", message):
        first = message.splitlines()[0]
        return f"repo{repo} can't be decrypted: the passphrase is wrong or the repository is damaged: {first}"
    # The server of a bucket answers in XML, with headers around it.
    if code := re.search(r"<Code>(\w+)</Code>", message):
        message = f"{message.splitlines()[0].rstrip(':')}: {code[1]}"
    return f"repo{repo} can't be read: {message}"


def restic(config: Settings, *arguments: str, timeout_s: float = 6 * 3600) -> str:
    """Run restic with repository, passphrase and certificate from their private files.

    Raises:
        FailedError: restic failed, or the settings have no restic repository.
    """
    return run([*_restic_command(config), *arguments], timeout_s, env=_restic_environment(config))


@contextmanager
def restic_output(config: Settings, *arguments: str) -> Iterator[IO[bytes]]:
    """Run restic and yield its output while it runs. Raises FailedError at the end if restic failed."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **_restic_environment(config)}
    argv = [*_restic_command(config), *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 - both are pipes
        try:
            yield process.stdout
            # What is not read keeps restic from ending.
            while process.stdout.read(1 << 20):
                pass
        except BaseException:
            process.kill()
            raise
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        raise FailedError(f"restic {arguments[0]} ended with {process.returncode}: {' | '.join(said[-3:])}")


def _restic_command(config: Settings) -> list[str]:
    options = _restic(config)
    argv = ["restic", "--repository-file", options.repository_file, "--password-file", options.password_file]
    argv += ["--cacert", options.ca_file] if options.ca_file else []
    argv += [f"--option={each}" for each in options.options]
    return [*argv, "--cache-dir", "/var/cache/minipc-restic", "--retry-lock", "5m"]


def _restic_environment(config: Settings) -> dict[str, str]:
    return {"GOMAXPROCS": str(config.processes), "HOME": "/root", **_restic(config).environment}


def backup_summary(text: str) -> Summary:
    """Return the summary of `restic backup --json`. Raises SchemaError."""
    found = [line for line in text.splitlines() if '"message_type":"summary"' in line]
    if not found:
        raise FailedError("restic backup has printed no summary")
    return schema.loads(Summary, found[-1], "summary of restic", ignore_unknown=True)


def snapshots(config: Settings, tag: str) -> list[Snapshot]:
    """Return the snapshots of this machine with a tag, the oldest first; none if the repository was never created.

    Who has the password of the repository's server can add a file that is no snapshot, and restic 0.18 panics when it
    lists snapshots, or looks for the last one. So snapshots are loaded by their names, and those that cannot be read
    are reported and skipped.

    Raises:
        FailedError: the repository can't be reached, or no snapshot in it can be read.
    """
    return _own(config, tag, _listed(config)[0])


def until(found: Iterable[Snapshot], moment: float | None) -> list[Snapshot]:
    """Return the snapshots that were taken before a moment, epoch seconds; None: all of them."""
    return [each for each in found if moment is None or datetime.fromisoformat(each.time).timestamp() <= moment]


def _own(config: Settings, tag: str, found: Sequence[Snapshot]) -> list[Snapshot]:
    own = [each for each in found if each.hostname == config.host and tag in each.tags]
    return sorted(own, key=lambda each: each.time)


def _listed(config: Settings) -> tuple[list[Snapshot], list[str]]:
    """Return all snapshots, and the names of those that cannot be read."""
    ensure_reachable(config)
    try:
        names = restic(config, "list", "snapshots", timeout_s=300).split()
    except CommandError as error:
        if error.returncode == NO_REPOSITORY:
            return [], []
        raise
    found = _readable(config, names)
    bad = sorted(set(names) - {each.id for each in found})
    if bad and not found:
        raise FailedError(f"restic: none of {len(bad)} snapshots can be read, such as {bad[0]}")
    for name in bad:
        say(f"SKIPPED: snapshot {name} cannot be read; docs/reference/repositories.md says what to do")
    return found, bad


def _readable(config: Settings, names: list[str]) -> list[Snapshot]:
    """Return the snapshots that restic can load: all at once, or, if it stops, each half."""
    if not names:
        return []
    try:
        text = restic(config, "snapshots", "--json", *names, timeout_s=300)
        return schema.loads(list[Snapshot], text, "restic snapshots", ignore_unknown=True)
    except FailedError:
        if len(names) == 1:
            # An outage must not look like damage.
            ensure_reachable(config)
            return []
    half = len(names) // 2
    return _readable(config, names[:half]) + _readable(config, names[half:])


def parent(config: Settings, tag: str) -> list[str]:
    """Return the options of `restic backup` that name the snapshot to compare with, so that restic does not look.

    Publish how many snapshots cannot be read.
    """
    found, bad = _listed(config)
    meaning = "How many snapshots in the repository of files cannot be read."
    write_metrics("minipc_restic", [Gauge("minipc_backup_unreadable_snapshots", meaning, [({}, len(bad))])])
    newest = _own(config, tag, found)[-1:]
    return ["--parent", newest[0].id] if newest else ["--force"]


def ensure_reachable(config: Settings) -> None:
    """Raise FailedError if restic's server does not accept connections; restic itself would retry for 15 minutes."""
    address = Path(_restic(config).repository_file).read_text().strip()
    if address.startswith("sftp:"):
        # Here it does not retry; and an SSH server takes connections without a login for an attack.
        argv = [*_restic_command(config), "cat", "config"]
        run(argv, timeout_s=120, env=_restic_environment(config), accepted=(0, NO_REPOSITORY))
        return
    url = urlsplit(address.removeprefix("rest:").removeprefix("s3:"))
    port = url.port or 443
    try:
        socket.create_connection((url.hostname, port), timeout=CONNECT_LIMIT_S).close()
    except OSError as error:
        raise FailedError(f"restic: {url.hostname} port {port} cannot be reached: {error}") from None


def _restic(config: Settings) -> ResticSettings:
    if config.restic is None:
        raise FailedError("there is no backup of configuration and state without an off-site host")
    return config.restic


def system_ids(info: Mapping[str, Any]) -> list[str]:
    """Return the system identifiers of the databases whose backups or WAL a repository contains."""
    return [str(database["system-id"]) for database in info.get("db", [])]


def control_data(directory: str, program: str) -> dict[str, str]:
    """Return what `pg_controldata` says about a data directory."""
    lines = as_postgres([program, directory]).splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
