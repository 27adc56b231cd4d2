"""Keep a reserve of disk space, bound PostgreSQL's log, and gain space when the disk fills up.

    disk-space watch      what minipc-disk-space.timer runs
    disk-space release    remove the reserve now
    disk-space gain       remove what may be removed, in this order; with --dry-run only say what

WAL that no repository has yet, the database, volumes and queues are never removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from minipc_machine import schema
from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.processes import run
from minipc_machine.program import EXIT_PASS, FailedError, say
from minipc_machine.repositories import pgbackrest, repository

MB = 1024**2
SETTINGS = Path("/etc/minipc/disk-space.json")
# On the file system of the database.
RESERVE = Path("/var/lib/postgresql/reserve")
WAL = Path("/var/lib/postgresql/17/main/pg_wal")
LOG = Path("/var/log/postgresql/postgresql-17-main.log")
SEGMENT = 16 * MB
# The reserve: a fiftieth of the disk, within these limits.
SHARE, LEAST, MOST = 0.02, 64 * MB, 2048 * MB
# It is created if this share of the disk stays free. `DiskFull` fires below a tenth.
FREE_AFTERWARDS = 0.12
# Below this, PostgreSQL and pgBackRest's spool soon cannot write.
TIGHT = 4 * SEGMENT
LOG_LIMIT, LOG_KEPT = 256 * MB, 16 * MB
JOURNAL_MB = 100
REACH_LIMIT_S = 5
STANZA = "main"


@dataclass(frozen=True)
class DiskSettings:
    """Settings of this program. `deploys/postgres.py` writes them.

    Attributes:
        offsite: host name and port of the off-site repository; empty if there is none.
    """

    offsite: list[str]


@dataclass(frozen=True)
class Waiting:
    """WAL that not every repository has: how many segments, and when the first was complete (epoch seconds)."""

    segments: int
    since: float

    def days_until(self, free: int, now: float) -> float | None:
        """Return for how many days `free` bytes suffice for further WAL; None if that cannot be said."""
        elapsed = now - self.since
        if self.segments < 2 or elapsed <= 0:
            return None
        return free * elapsed / (self.segments * SEGMENT) / 86400


@dataclass(frozen=True)
class Step:
    """Something that may be removed.

    Attributes:
        what: its name.
        promise: what is promised less afterwards.
        remove: removes it.
    """

    what: str
    promise: str
    remove: Callable[[], object]


def main(arguments: list[str]) -> int:
    """Watch, release or gain. Raises FailedError if the settings cannot be read or a step fails."""
    parser = argparse.ArgumentParser(prog="disk-space", description="Keep and gain free disk space.")
    parser.add_argument("action", choices=("watch", "release", "gain"))
    parser.add_argument("--dry-run", action="store_true", help="gain: only say what would be removed")
    options = parser.parse_args(arguments)
    if options.action == "release":
        released = release()
        say(f"released the reserve: {released // MB} MB" if released else "the reserve had been released already")
    elif options.action == "gain":
        gain(dry_run=options.dry_run)
    else:
        watch(schema.load(DiskSettings, SETTINGS))
    return EXIT_PASS


def watch(settings: DiskSettings) -> None:
    """Cut PostgreSQL's log, create or release the reserve, and write the metrics."""
    cut = cut_log(LOG)
    free, waiting = free_space(), waiting_wal()
    if not RESERVE.exists():
        create(free)
    elif free < TIGHT and waiting.segments and reachable(settings):
        # Without it, nothing is archived even now: the spool needs space.
        say(f"<4>the disk is full and WAL can be archived again: released the reserve, {release() // MB} MB")
    gauges = [
        Gauge("minipc_disk_size_bytes", "Size of the disk with the database.", [({}, disk_size())]),
        Gauge("minipc_disk_reserve_bytes", "Size of the reserve; 0: it is released.", [({}, reserve_size())]),
        Gauge("minipc_wal_waiting_bytes", "WAL that not every repository has.", [({}, waiting.segments * SEGMENT)]),
    ]
    if cut:
        say(f"<4>PostgreSQL's log was cut: {cut // MB} MB removed; the end is in {LOG}.cut")
        gauges.append(Gauge("minipc_postgres_log_cut_timestamp_seconds", "When it was cut.", [({}, int(time.time()))]))
    with suppress(OSError):  # the disk may be full
        write_metrics("minipc_disk_space", gauges[:3])
        if cut:
            write_metrics("minipc_postgres_log", gauges[3:])


def free_space() -> int:
    """Return the bytes that PostgreSQL's account can still write."""
    found = os.statvfs(RESERVE.parent)
    return found.f_bavail * found.f_frsize


def disk_size() -> int:
    """Return the size of the database's file system in bytes."""
    found = os.statvfs(RESERVE.parent)
    return found.f_blocks * found.f_frsize


def reserve_size() -> int:
    """Return the size of the reserve in bytes; 0 if it is released."""
    try:
        return RESERVE.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def create(free: int) -> None:
    """Create the reserve if enough space stays free."""
    size = int(min(max(SHARE * disk_size(), LEAST), MOST))
    if free - size < FREE_AFTERWARDS * disk_size():
        return
    # The folder belongs to PostgreSQL's account: a link that it put there is not followed.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
    file = os.open(RESERVE, flags, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError:
        RESERVE.unlink()
        raise
    finally:
        os.close(file)


def release() -> int:
    """Remove the reserve. Return its size in bytes, 0 if there was none."""
    size = reserve_size()
    RESERVE.unlink(missing_ok=True)
    return size


def waiting_wal() -> Waiting:
    """Return what PostgreSQL has marked as not archived."""
    times = [time.time()]
    segments = 0
    # A mark may go away at any moment: it was archived.
    for mark in (WAL / "archive_status").glob("*.ready"):
        with suppress(FileNotFoundError):
            times.append(mark.stat().st_mtime)
            segments += 1
    return Waiting(segments, min(times))


def reachable(settings: DiskSettings) -> bool:
    """Return whether the off-site repository accepts connections; True if there is none."""
    if not settings.offsite:
        return True
    host, port = settings.offsite
    try:
        socket.create_connection((host, int(port)), timeout=REACH_LIMIT_S).close()
    except OSError:
        return False
    return True


def cut_log(log: Path) -> int:
    """Cut a log that is beyond its limit and keep its end in LOG.cut. Return how many bytes were removed.

    A service whose statements fail writes 16 MB a second, and logrotate looks once a day.
    """
    try:
        # The file belongs to PostgreSQL's account: a link that it put there is not followed.
        file = os.open(log, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return 0
    with os.fdopen(file, "r+b") as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_size <= LOG_LIMIT:
            return 0
        opened.seek(found.st_size - LOG_KEPT)
        end = opened.read(LOG_KEPT)
        # PostgreSQL appends, so it goes on at the new end.
        opened.truncate(0)
    with suppress(OSError):
        _keep(log.with_name(f"{log.name}.cut"), end, found)
    return found.st_size


def _keep(path: Path, content: bytes, like: os.stat_result) -> None:
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o640)
    with os.fdopen(file, "wb") as opened:
        os.fchown(file, like.st_uid, like.st_gid)
        opened.write(content)


def gain(*, dry_run: bool) -> None:
    """Remove what may be removed, say what is promised less, and for how long the space suffices."""
    before = free_space()
    for step in steps():
        say(f"{'would remove' if dry_run else 'removing'}: {step.what}. Afterwards: {step.promise}")
        if not dry_run:
            start = free_space()
            try:
                step.remove()
            except FailedError as error:
                # On a full disk a program may fail that the next step helps.
                say(f"  failed: {error}")
            say(f"  gained {max(free_space() - start, 0) // MB} MB")
    free, waiting = free_space(), waiting_wal()
    total = "" if dry_run else f"{max(free - before, 0) // MB} MB gained; "
    say(f"{total}{free // MB} MB are free, the reserve has {reserve_size() // MB} MB")
    days = waiting.days_until(free, time.time())
    if days is not None:
        waits = f"{waiting.segments * SEGMENT // MB} MB of WAL wait for a repository"
        say(f"{waits}; at this rate the free space lasts {days:.1f} days")


def steps() -> list[Step]:
    """Return what may be removed, the least missed first."""
    found = [
        Step("downloaded packages", "nothing less: they are downloaded again", lambda: run(["apt-get", "clean"], 60)),
        Step(
            f"the journal but for its newest {JOURNAL_MB} MB",
            "the machine's own journal reaches less far back; Loki keeps what it has",
            lambda: run(["journalctl", "--rotate", f"--vacuum-size={JOURNAL_MB}M"], 120),
        ),
    ]
    return [*found, *_local_backups()]


def _local_backups() -> list[Step]:
    """Return the removal of all local backups but the newest full one and what is after it."""
    if not shutil.which("pgbackrest"):
        return []
    try:
        full = [each for each in repository(STANZA, 1)["backup"] if each["type"] == "full"]
    except (FailedError, KeyError) as error:
        say(f"the local repository cannot be read: {error}")
        return []
    if len(full) < 2:
        say("kept: the local repository has one full backup")
        return []
    stop = datetime.fromtimestamp(full[-1]["timestamp"]["stop"], UTC)
    options = ["--repo=1", "--repo1-retention-full-type=count", "--repo1-retention-full=1"]
    return [
        Step(
            f"{len(full) - 1} older full backups in the local repository, with their WAL",
            f"the local repository restores moments after {stop:%Y-%m-%d %H:%M} UTC; the off-site one is unchanged",
            lambda: pgbackrest(f"--stanza={STANZA}", *options, "expire"),
        )
    ]
