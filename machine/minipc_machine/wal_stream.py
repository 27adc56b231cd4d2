"""Send WAL to the off-site host as it is written, encrypted, until pgBackRest has archived its segment.

    wal-stream          send, until the service is stopped
    wal-stream check    check that the off-site host has what was written before this call, byte for byte

It reads PostgreSQL's own files. PostgreSQL keeps them until every repository has them, so nothing is kept for this
program, and an outage of any length costs no disk space. Each connection begins with the oldest segment that waits for
a repository. A file is removed off-site as soon as its segment is archived. See docs/decisions/0088.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from minipc_machine import wal_files
from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.program import EXIT_FAIL, EXIT_PASS, FailedError, say
from minipc_machine.repositories import Login, settings
from minipc_machine.sftp import AS_POSTGRES, Server, Sftp
from minipc_machine.wal_files import NAME, PGBACKREST, SEGMENT_BYTES, Keys, name_of, number_of, timeline_of

WAL = Path("/var/lib/postgresql/17/main/pg_wal")
# Of the unit; in memory.
RUNTIME = Path("/run/minipc-wal-stream")
CHECKED = Path("/var/lib/postgresql/minipc-wal-check")
PAUSE_S, RETRY_S, METRICS_S, CHECK_S = 0.3, 5, 15, 20
# One record: what memory and a slow line can take.
AT_MOST = 4 * 1024**2
# Segments that wait for a repository and are sent: 1 GB. What is later waits.
LIMIT = 64
READY = re.compile(r"([0-9A-F]{24})\.ready")


class Connection(Protocol):
    """What is needed of `Sftp`."""

    def run(self, *commands: str) -> list[str]:
        """Run commands."""

    def names(self) -> list[str]:
        """Return the names of the files."""


class Database:
    """A connection of psql, for a `with` block."""

    def __init__(self, port: int, login: Login) -> None:
        argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "/var/run/postgresql", "-p", str(port)]
        self._process = subprocess.Popen(
            [*AS_POSTGRES, *argv, "-U", login.role, "-d", "minipc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "LC_ALL": "C.UTF-8",
                "PGOPTIONS": login.options,
                "PGAPPNAME": "wal-stream",
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, statement: str) -> str:
        """Return the one row that a statement returns. Raises FailedError if the server does not answer."""
        assert self._process.stdin and self._process.stdout  # noqa: S101, PT018 - both are pipes
        try:
            self._process.stdin.write(f"{statement};\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        if line := self._process.stdout.readline():
            return line.strip()
        raise self._failure()

    def written(self) -> int:
        """Return up to where WAL is on the disk. What a client was told is committed is before that."""
        return int(self.ask("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn"))

    def timeline(self) -> int:
        """Return the timeline on which the server writes."""
        return int(self.ask("SELECT pg_walfile_name(pg_current_wal_flush_lsn())")[:8], 16)

    def system_id(self) -> str:
        """Return the system identifier."""
        return self.ask("SELECT system_identifier FROM pg_control_system()")

    def _failure(self) -> FailedError:
        assert self._process.stderr  # noqa: S101 - it is a pipe
        self._process.wait()
        said = self._process.stderr.read().strip().splitlines()[-1:]
        return FailedError(f"the database does not answer: {' '.join(said)[:300]}")


@dataclass
class Sender:
    """What one connection sends.

    Attributes:
        session: a number in the names of its files, as hexadecimal digits.
        number: of the segment that is being sent; see `name_of`.
        offset: how much of it was sent.
        sent: the segments of which files of this connection are off-site.
        complete: it was up to date once; then it has removed what earlier connections have left.
    """

    sftp: Connection
    keys: Keys
    timeline: int
    session: str
    number: int = 0
    offset: int = 0
    sent: set[int] = field(default_factory=set)
    complete: bool = False

    def advance(self, written: int) -> bool:
        """Send what was written, and remove what was archived; return whether all of it is off-site.

        Args:
            written: up to where WAL is on the disk.

        Raises:
            FailedError: the connection is lost, or a file cannot be read.
        """
        first = waiting_from(self.timeline, written // SEGMENT_BYTES)
        archived = {number for number in self.sent if number < first}
        self._remove(self._file(number) for number in sorted(archived))
        self.sent -= archived
        if self.number < first:
            self.number, self.offset = first, 0
        end = min(written, (first + LIMIT) * SEGMENT_BYTES)
        while (at := self.number * SEGMENT_BYTES + self.offset) < end:
            self._send(min(end - at, AT_MOST, SEGMENT_BYTES - self.offset))
        if end < written:
            return False
        if not self.complete:
            self._remove_leftovers()
            self.complete = True
        return True

    def _send(self, length: int) -> None:
        segment = name_of(self.timeline, self.number)
        record = self.keys.seal(segment, self.offset, read(segment, self.offset, length))
        local = RUNTIME / segment
        # sftp appends what the local file has more than the remote one.
        with open(local, "ab" if self.offset else "wb") as file:
            file.write(record)
        self.sftp.run(f"put {'-a ' if self.offset else ''}-f {local} {self._file(self.number)}")
        self.sent.add(self.number)
        self.offset += length
        if self.offset == SEGMENT_BYTES:
            local.unlink()
            self.number, self.offset = self.number + 1, 0

    def _remove_leftovers(self) -> None:
        """Remove files of earlier connections, except those of the timeline before: they may be the only copy."""
        own = {self._file(number) for number in self.sent}
        found = [match for match in map(NAME.fullmatch, self.sftp.names()) if match]
        kept = self.timeline - 1
        self._remove(each[0] for each in found if each[0] not in own and timeline_of(each[1]) != kept)

    def _remove(self, names: Iterable[str]) -> None:
        commands = [f"-rm {name}" for name in names]
        if commands:
            self.sftp.run(*commands)

    def _file(self, number: int) -> str:
        return f"{name_of(self.timeline, number)}.{self.session}"


def main(arguments: list[str]) -> int:
    """Send or check. Raises FailedError if there is nothing to do here, or the check cannot be made."""
    target = wal_files.server()
    if arguments not in ([], ["check"]) or target is None:
        raise FailedError("usage: wal-stream [check], on a machine with backups_wal_stream and an off-site host")
    if arguments:
        return check(target)
    said = ""
    while True:
        try:
            send(wal_files.server() or target)
        except FailedError as error:
            if str(error) != said:
                said = str(error)
                say(f"WAL is not sent: {said}; trying again every {RETRY_S} s")
        time.sleep(RETRY_S)


def send(target: Server) -> None:
    """Send until something fails. Raises FailedError."""
    published = 0.0
    with _database() as database, Sftp(target) as sftp:
        configured = _configured()
        own = wal_files.keys(database.system_id())
        for left in RUNTIME.iterdir():
            left.unlink()
        sender = Sender(sftp, own, database.timeline(), f"{time.time_ns():016x}")
        say(f"sending WAL of timeline {sender.timeline} to the off-site host")
        while _configured() == configured:
            at = time.time()
            if sender.advance(database.written()) and at - published > METRICS_S:
                published = at
                publish(at)
            time.sleep(PAUSE_S)
    raise FailedError("its configuration was changed")


def publish(at: float) -> None:
    """Publish up to when everything that was committed is off-site, epoch seconds."""
    meaning = "When all WAL that was written was last seen to be off-site."
    write_metrics("minipc_wal_stream", [Gauge("minipc_wal_stream_caught_up_timestamp_seconds", meaning, [({}, at)])])


def check(target: Server) -> int:
    """Compare what the off-site host has with PostgreSQL's files, until it has all that is written now."""
    give_up_at = time.monotonic() + CHECK_S
    with _database() as database:
        own, timeline, written = wal_files.keys(database.system_id()), database.timeline(), database.written()
        # The newest byte, so that there always is one.
        number, offset = divmod(written - 1, SEGMENT_BYTES)
        segment, needed, has = name_of(timeline, number), offset + 1, 0
        while time.monotonic() < give_up_at:
            if waiting_from(timeline, database.written() // SEGMENT_BYTES) > number:
                say(f"{segment} is archived")
                return EXIT_PASS
            has, same = _compare(target, own, segment, needed)
            if has >= needed and same:
                say(f"{segment}: the off-site host has the {needed} bytes that were written")
                return EXIT_PASS
            if not same:
                raise FailedError(f"the off-site host has another {segment} than this machine")
            time.sleep(1)
    say(f"{segment}: the off-site host has {has} bytes of it; {needed} were written {CHECK_S} s ago")
    return EXIT_FAIL


def _compare(target: Server, own: Keys, segment: str, length: int) -> tuple[int, bool]:
    """Return how many bytes of a segment the off-site host has, and whether the first `length` are the same here."""
    try:
        has = wal_files.fetch(target, own, CHECKED, wanted=lambda name: name == segment).get(segment, 0)
        compared = min(has, length)
        there = (CHECKED / segment).read_bytes()[:compared] if compared else b""
        return has, there == read(segment, 0, compared)
    finally:
        shutil.rmtree(CHECKED, ignore_errors=True)


def waiting_from(timeline: int, last: int) -> int:
    """Return the number of the first segment that not every repository has; `last` is the one being written."""
    ready = [match[1] for match in map(READY.fullmatch, os.listdir(WAL / "archive_status")) if match]
    return min([last, *(number_of(each) for each in ready if timeline_of(each) == timeline)])


def read(segment: str, offset: int, length: int) -> bytes:
    """Return a part of a segment of the database. Raises FailedError if it is not there."""
    try:
        with open(WAL / segment, "rb") as file:
            file.seek(offset)
            part = file.read(length)
    except OSError as error:
        raise FailedError(f"{WAL / segment} cannot be read: {error.strerror}") from None
    if len(part) != length:
        raise FailedError(f"{WAL / segment} is shorter than a segment")
    return part


def _configured() -> list[int]:
    """Return when the files with server and passphrase were written."""
    return [path.stat().st_mtime_ns for path in (PGBACKREST, wal_files.SETTINGS) if path.exists()]


def _database() -> Database:
    config = settings()
    return Database(config.port, config.logins["minipc"])
