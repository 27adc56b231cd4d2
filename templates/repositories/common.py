# Written by minipc (templates/repositories/common.py).
"""What the programs for backups share: settings, PostgreSQL, pgBackRest, metrics. Python's standard library only."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SETTINGS = Path("/etc/minipc/backups/settings.json")
STATE = Path("/var/lib/minipc/backups")
TEXTFILES = Path("/var/lib/prometheus/node-exporter")

CONNECT_LIMIT_S = 15

EXIT_PASS, EXIT_FAIL, EXIT_REFUSED, EXIT_COULD_NOT_VERIFY = 0, 1, 3, 4


class FailedError(Exception):
    """An expected failure; its text says what was wrong and what to do. `code` becomes the exit code."""

    def __init__(self, text: str, code: int = EXIT_FAIL) -> None:
        super().__init__(text)
        self.code = code


def settings() -> dict[str, Any]:
    """What the converge wrote for these programs; no secrets in it."""
    return dict(json.loads(SETTINGS.read_text()))


def run(argv: Sequence[str], timeout_s: float = 86400, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """Runs a program and returns what it printed. Raises FailedError with the end of its output."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **(env or {})}
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd="/",
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"{argv[0]}: no end after {timeout_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() + "\n" + done.stdout.strip()).strip().splitlines()
        raise FailedError(f"{_short(argv)} ended with {done.returncode}: " + " | ".join(said[-6:]))
    return done.stdout


def _short(argv: Sequence[str]) -> str:
    words = argv[argv.index("--") + 1 :] if "--" in argv else argv
    return " ".join(word for word in words if not word.startswith("-"))[:120]


def as_postgres(argv: Sequence[str], timeout_s: float = 86400, stdin: str = "") -> str:
    """`run` as the database's account."""
    account = ["--reuid=postgres", "--regid=postgres", "--init-groups"]
    return run(["setpriv", *account, "--", *argv], timeout_s, stdin)


def sql(statement: str, database: str, port: int, host: str = "/var/run/postgresql", timeout_s: float = 300) -> str:
    """Runs SQL as the superuser over the local socket; rows as lines, columns separated by `|`."""
    argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", str(port), "-d", database]
    return as_postgres(argv, timeout_s, stdin=statement + "\n").strip()


def pgbackrest(*arguments: str, timeout_s: float = 86400) -> str:
    """pgBackRest as the database's account."""
    return as_postgres(["pgbackrest", *arguments], timeout_s)


def repository(stanza: str, repo: int, *options: str) -> dict[str, Any]:
    """What pgBackRest knows of the stanza in one repository: `info`'s JSON. Raises FailedError when unreachable."""
    said = pgbackrest(f"--stanza={stanza}", f"--repo={repo}", "--output=json", *options, "info", timeout_s=120)
    # Not strict: with a wrong passphrase pgBackRest puts what it "decrypted" into its message.
    found = json.loads(said, strict=False)
    info: dict[str, Any] = found[0] if found else {}
    # 1: no such stanza, 2: no backup yet. Anything else: it could not be read.
    for each in info.get("repo", []):
        if each["status"]["code"] not in (0, 1, 2):
            raise FailedError(_unreadable(repo, each["status"]["message"]))
    return info


def _unreadable(repo: int, message: str) -> str:
    """Why a repository can't be read. What was decrypted with the wrong passphrase is not text."""
    if re.search(r"FormatError|CryptoError|cipher", message):
        first = message.splitlines()[0]
        return f"repo{repo} can't be decrypted: the passphrase is wrong or the repository is damaged: {first}"
    return f"repo{repo} can't be read: {message}"


def restic(config: dict[str, Any], *arguments: str, timeout_s: float = 6 * 3600) -> str:
    """restic with repository, passphrase and certificate from their 0600 files."""
    options = config["restic"]
    argv = ["restic", "--repository-file", options["repository_file"], "--password-file", options["password_file"]]
    argv += ["--cacert", options["ca_file"], "--cache-dir", "/var/cache/minipc-restic", "--retry-lock", "5m"]
    return run([*argv, *arguments], timeout_s, env={"GOMAXPROCS": str(config["processes"]), "HOME": "/root"})


def ensure_reachable(config: dict[str, Any]) -> None:
    """restic itself would try for a quarter of an hour."""
    url = urlsplit(Path(config["restic"]["repository_file"]).read_text().strip().removeprefix("rest:"))
    try:
        socket.create_connection((url.hostname, url.port), timeout=CONNECT_LIMIT_S).close()
    except OSError as error:
        raise FailedError(f"restic: {url.hostname} port {url.port} can't be reached: {error}") from None


def system_ids(info: Mapping[str, Any]) -> list[str]:
    """The databases that a repository holds backups or WAL of."""
    return [str(database["system-id"]) for database in info.get("db", [])]


def control_data(directory: str, program: str) -> dict[str, str]:
    """`pg_controldata` of a data directory."""
    lines = as_postgres([program, directory]).splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def write_file(path: Path, text: str) -> None:
    """Replaces a file atomically, readable by everyone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; empty when it isn't there."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


Samples = Iterable[tuple[Mapping[str, str], float]]


def write_metrics(name: str, metrics: Mapping[str, tuple[str, Samples]]) -> None:
    """Writes `NAME.prom` for the node exporter: metric -> help text and samples (labels, value)."""
    lines = []
    for metric, (help_text, samples) in metrics.items():
        lines += [f"# HELP {metric} {help_text}", f"# TYPE {metric} gauge"]
        for labels, value in samples:
            shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            lines.append(f"{metric}{{{shown}}} {value:.10g}" if shown else f"{metric} {value:.10g}")
    write_file(TEXTFILES / f"{name}.prom", "\n".join(lines) + "\n")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@contextmanager
def locked(name: str, wait_s: float, otherwise: int = EXIT_COULD_NOT_VERIFY) -> Iterator[None]:
    """Only one at a time. Raises FailedError when another one still runs after `wait_s`."""
    with open(f"/run/lock/minipc-{name}", "w") as file:
        give_up_at = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise FailedError(f"another {name} is running; this one was not started", otherwise) from None
                time.sleep(0.2)
        yield


def say(text: str) -> None:
    """To the journal, or to whoever started this."""
    print(text, flush=True)


def ended(error: FailedError) -> int:
    """Says what was wrong; returns the exit code."""
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
    return error.code
