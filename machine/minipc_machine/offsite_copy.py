"""Copy the repositories where the mini PC's accounts can't reach them, and raise an alarm if data disappears.

    offsite-copy DAYS RETENTION_DAYS FREE_MB    take a copy; remove copies that are older than DAYS
    offsite-copy --accept                       what is there now is right: end the alarm

A copy has separate files, never hard links into the repository: the account could write through those. Unchanged files
are hard links between copies. The content of the repository is compared with what it was (`SEEN`, owned by root). If
something is missing that pgBackRest would not have removed, every run fails and no copy is removed, until the operator
says --accept. Copies taken meanwhile are named TIME-suspect.

From restic's repository the mini PC can remove nothing, but it can add files that stop restic. So it is copied, too,
and not compared.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from minipc_machine import clock, schema
from minipc_machine.files import write_file
from minipc_machine.locks import locked
from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.processes import CommandError, run
from minipc_machine.program import EXIT_FAIL, EXIT_PASS, FailedError

REPOSITORY = Path("/srv/minipc-offsite/sftp/pgbackrest")
COPIES = Path("/srv/minipc-offsite/copies")
RESTIC = Path("/srv/minipc-offsite/restic/minipc")
RESTIC_COPIES = COPIES / "restic"
STATE = Path("/var/lib/minipc-offsite")
# The content of the repository when all was well; what it has lost since; when a run last succeeded, epoch seconds.
SEEN, LOST, SUCCESS = "seen.json", "lost.json", "success.json"

SUSPECT = "-suspect"
LABEL = r"([0-9]{8}-[0-9]{6}F(?:_[0-9]{8}-[0-9]{6}[DI])?)"
MANIFEST = re.compile(rf"backup/[^/]+/{LABEL}/backup\.manifest")
IN_BACKUP = re.compile(rf"backup/[^/]+/{LABEL}/")
SEGMENT = re.compile(r"archive/[^/]+/[^/]+/[0-9A-F]{16}/[0-9A-F]{24}-[0-9a-f]{40}")
INFO = re.compile(r"(?:archive|backup)/[^/]+/(?:archive|backup)\.info")
# pgBackRest may remove expired files at the same time: only what is missing three times in a row is lost.
ATTEMPTS, PAUSE_S = 3, 10
# Exit code of rsync: a file disappeared while it was read.
VANISHED = 24
# Labels contain the local time of the mini PC.
A_DAY = timedelta(days=1)

Files = dict[str, tuple[int, int]]


def files(root: Path) -> Files:
    """Return size and time of each file below a folder, by path, without those that are still being written."""
    found: Files = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode) and not name.endswith(".pgbackrest.tmp"):
                found[os.path.relpath(path, root)] = (status.st_size, int(status.st_mtime))
    return found


def backups(found: Mapping[str, object]) -> dict[str, str]:
    """Return the path of each backup's manifest, by label; pgBackRest writes it last and removes it first."""
    return {match[1]: path for path in found if (match := MANIFEST.fullmatch(path))}


def moment(label: str) -> datetime:
    """Return when a backup was taken; the latest possible time if its label is not a valid time."""
    try:
        return max(datetime.strptime(each, "%Y%m%d-%H%M%S").replace(tzinfo=UTC) for each in (label[:15], label[-16:-1]))
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)


def in_the_future(found: Mapping[str, object], now: datetime) -> list[str]:
    """Return labels in the future: no later backup is newer than such a one, so it would hide that backups are gone."""
    return sorted(label for label in backups(found) if moment(label) > now + A_DAY)


def losses(seen: Files, found: Files, retention_days: int, now: datetime) -> list[str]:
    """Return sentences about what is missing or changed that pgBackRest would not have touched; usually none."""
    lost = [f"a backup is labelled in the future: {label}" for label in in_the_future(found, now)]
    had, has = backups(seen), backups(found)
    if had and max(had) not in has:
        lost.append(f"its newest backup {max(had)} is gone")
    # A day less, because the label comes from another clock.
    young = now - timedelta(days=retention_days - 1)
    gone = sorted(had.keys() - has)
    lost += [f"backup {label} is gone, too young to expire" for label in gone if moment(label) > young]
    kept = had.keys() & has
    within = [path for path in seen if (match := IN_BACKUP.match(path)) and match[1] in kept]
    lost += _gone(seen, found, within, "files of backups")
    fulls = sorted(label for label in kept if label.endswith("F"))
    if fulls:
        # All WAL of a backup has arrived when its manifest is written. Later WAL is kept as long as that backup.
        since = seen[had[fulls[0]]][1]
        lost += _gone(seen, found, [path for path in seen if SEGMENT.match(path) and seen[path][1] > since], "WAL")
    for path in sorted(seen):
        if INFO.fullmatch(path) and path not in found and f"{path}.copy" not in found:
            lost.append(f"{path!a} is gone")
    return lost


def _gone(seen: Files, found: Files, paths: list[str], what: str) -> list[str]:
    missing = sorted(path for path in paths if path not in found)
    changed = sorted(path for path in paths if path in found and found[path] != seen[path])
    counted = (("missing", missing), ("changed", changed))
    return [f"{what}: {len(some)} {state}, the first is {some[0]!a}" for state, some in counted if some]


def copies(pattern: str = "2*Z", folder: Path | None = None) -> list[Path]:
    """Return the copies, oldest first; with "2*Z*" also those that are suspect."""
    return sorted(path for path in (folder or COPIES).glob(pattern) if path.is_dir() and not path.is_symlink())


def remembered() -> Files:
    """Return the content of the repository when all was well."""
    try:
        return schema.load(Files, STATE / SEEN)
    except FileNotFoundError:
        # The first run: use the copy with the newest backup.
        return max((files(path) for path in copies()), key=lambda had: max(backups(had), default=""), default={})


def store(name: str, content: object, mode: int = 0o600) -> None:
    """Replace a file of the state."""
    write_file(STATE / name, schema.dump(content, indent=None), mode)


def alarm() -> list[str]:
    """Return why copies are suspect; an empty list if all is well."""
    try:
        return schema.load(list[str], STATE / LOST)
    except FileNotFoundError:
        return []


def look(seen: Files, retention_days: int) -> list[str]:
    """Return what the repository has lost, and raise the alarm if that is anything."""
    for attempt in range(ATTEMPTS):
        lost = losses(seen, files(REPOSITORY), retention_days, datetime.now(UTC))
        if not lost:
            return []
        if attempt < ATTEMPTS - 1:
            time.sleep(PAUSE_S)
    store(LOST, lost)
    return lost


def prune(days: int, folder: Path | None = None) -> None:
    """Remove copies older than this, except the newest one that is not suspect; none if the clock may be wrong."""
    doubt = clock.doubt([_taken(path) for path in copies("2*Z*", folder)], time.time())
    if doubt:
        print(f"no copy is removed: {doubt}")
        return
    oldest_kept = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H-%M-%SZ")
    for path in {*copies("2*Z*", folder)} - {*copies(folder=folder)[-1:]}:
        if path.name < oldest_kept:
            shutil.rmtree(path)
            print(f"removed {path}, older than {days} days")


def _taken(copy: Path) -> float:
    moment = datetime.strptime(copy.name.partition("Z")[0], "%Y-%m-%dT%H-%M-%S")
    return moment.replace(tzinfo=UTC).timestamp()


def ensure_space(found: Files, latest: Path | None, free_mb: int) -> None:
    """Raise FailedError if the copy would leave too little space for the repository, which is on the same disk."""
    shared = files(latest) if latest else {}
    need = sum(size for path, (size, at) in found.items() if shared.get(path) != (size, at)) // 2**20
    free = shutil.disk_usage(COPIES).free // 2**20
    if free - need < free_mb:
        raise FailedError(
            f"not enough disk space: {free} MB are free, the copy needs {need} MB, and {free_mb} MB must stay free for "
            "the repository"
        )


def take(latest: Path | None, new: Path) -> None:
    """Copy the repository. Raises FailedError if the copy is not complete."""
    link = [f"--link-dest={path}" for path in [latest, *copies(f"2*Z{SUSPECT}")[-1:]] if path]
    rsync("--delete", "--exclude=*.pgbackrest.tmp", *link, f"{REPOSITORY}/", f"{new}/")
    run(["sync", "-f", str(new)])


def rsync(*arguments: str) -> None:
    """Run rsync. Raises FailedError if the copy is not complete."""
    argv = ["rsync", "-rtp", "--chmod=D700,F600", "--no-links", "--no-devices", "--no-specials", *arguments]
    for attempt in range(ATTEMPTS):
        try:
            run(argv)
            break
        except CommandError as error:
            # The next attempt sees the repository as it is then.
            if error.returncode != VANISHED or attempt == ATTEMPTS - 1:
                raise FailedError(f"{error}; the earlier copies are untouched") from None
            time.sleep(PAUSE_S)


def copy_restic(days: int, free_mb: int) -> None:
    """Copy restic's repository. Raises FailedError if the copy is not complete."""
    if not (RESTIC / "config").exists():
        return
    new = RESTIC_COPIES / ".new"
    shutil.rmtree(new, ignore_errors=True)
    prune(days, RESTIC_COPIES)
    latest = next(reversed(copies(folder=RESTIC_COPIES)), None)
    try:
        new.mkdir(parents=True, mode=0o700)
        ensure_space(files(RESTIC), latest, free_mb)
        # What a snapshot needs is there before it is: copied in the other order, each snapshot in the copy is whole.
        for part in ("snapshots/", "index/", ""):
            link = [f"--link-dest={latest}/{part}"] if latest else []
            skip = (
                ["--exclude=/locks/*"] if part else ["--exclude=/locks/*", "--exclude=/snapshots/", "--exclude=/index/"]
            )
            rsync(*skip, *link, f"{RESTIC}/{part}", f"{new}/{part}")
        (new / "locks").mkdir(exist_ok=True, mode=0o700)
        run(["sync", "-f", str(new)])
        new.rename(RESTIC_COPIES / time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime()))
    finally:
        shutil.rmtree(new, ignore_errors=True)


def copy(days: int, retention_days: int, free_mb: int) -> list[str]:
    """Take a copy; return why it is suspect."""
    new = COPIES / ".new"
    shutil.rmtree(new, ignore_errors=True)
    seen = remembered()
    lost = alarm() or look(seen, retention_days)
    if not lost:
        prune(days)
    found = files(REPOSITORY)
    if not backups(found) and not (lost and found):
        print("there is no backup, so there is nothing to copy")
        return lost
    latest = next(reversed(copies()), None)
    try:
        ensure_space(found, latest, free_mb)
        take(latest, new)
        copied = files(new)
        if not lost:
            lost = losses(seen, copied, retention_days, datetime.now(UTC))
            if lost:
                store(LOST, lost)
        target = COPIES / (time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime()) + (SUSPECT if lost else ""))
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    print(f"copied to {target}, newest backup: {max(backups(copied), default='none')}")
    if not lost:
        store(SEEN, copied)
    return lost


def accept() -> None:
    """End the alarm: from now on the repository is compared with its present content."""
    found = files(REPOSITORY)
    future = in_the_future(found, datetime.now(UTC))
    if future:
        raise FailedError(f"first remove the backups whose labels are in the future: {', '.join(future)}")
    store(SEEN, found)
    (STATE / LOST).unlink(missing_ok=True)
    print(f"accepted: {len(backups(found))} backups, the newest is {max(backups(found), default='none')}")


def timed(days: int, retention_days: int, free_mb: int) -> int:
    """Take a copy as the timer does, and publish the result; return the exit code."""
    trouble = "the copy was interrupted"
    try:
        lost = copy(days, retention_days, free_mb)
        copy_restic(days, free_mb)
        trouble = f"the repository has lost data: {lost[0]}" if lost else ""
    except BaseException as error:
        trouble = str(error) or trouble
        raise
    finally:
        report(trouble)
    for each in lost:
        print(f"THE REPOSITORY HAS LOST DATA: {each}", file=sys.stderr)
    if lost:
        last = next(reversed(copies()), None)
        print(
            "No copy is removed until you run `offsite-copy --accept`. If you did not delete the data yourself, first",
            file=sys.stderr,
        )
        print(f"restore a copy: offsite-restore-copy {last.name if last else ''}", file=sys.stderr)
    return EXIT_FAIL if lost else EXIT_PASS


def main(arguments: list[str]) -> int:
    """Take a copy or end the alarm. Raises FailedError if that is not possible."""
    accepting = arguments == ["--accept"]
    if not accepting and (len(arguments) != 3 or not all(each.isdecimal() for each in arguments)):
        raise FailedError("usage: offsite-copy DAYS RETENTION_DAYS FREE_MB, or offsite-copy --accept")
    # A timer that finds another copy running has nothing to do.
    with locked(COPIES / ".lock", "offsite-copy", code=EXIT_FAIL if accepting else EXIT_PASS):
        try:
            if not accepting:
                return timed(*map(int, arguments))
            accept()
        except OSError as error:
            raise FailedError(str(error)) from None
    return EXIT_PASS


def report(trouble: str) -> None:
    """Publish when a run last succeeded, and what is wrong since; the watcher's rules read it."""
    at = time.time() if not trouble else _last_success()
    store(SUCCESS, at)
    state = [({"reason": trouble[:300]}, 1.0)] if trouble else [({"reason": ""}, 0.0)]
    write_metrics(
        "minipc_offsite_copy",
        [
            Gauge("minipc_offsite_copy_last_success_timestamp_seconds", "When a copy last succeeded.", [({}, at)]),
            Gauge("minipc_offsite_copy_trouble", "What is wrong since then.", state),
        ],
    )


def _last_success() -> float:
    try:
        return schema.load(float, STATE / SUCCESS)
    except (OSError, schema.SchemaError):
        return 0
