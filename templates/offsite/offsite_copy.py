#!/usr/bin/python3
"""A copy of pgBackRest's repository that the mini PC's account can't reach, and the alarm when something was taken.

Written by minipc (templates/offsite/offsite_copy.py).

    offsite-copy DAYS RETENTION_DAYS FREE_MB    a copy; those older than DAYS go
    offsite-copy --accept                       what is there now is right: ends the alarm

A copy has its own files, never hard links into the repository: the account could write through those. Unchanged files
are hard links between copies. What the repository has is compared with what it had (`SEEN`, root's). Once something is
missing that pgBackRest would not have removed, every run fails and no copy goes, until the operator says --accept; what
is copied meanwhile is called TIME-suspect.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

REPOSITORY = Path("/srv/minipc-offsite/sftp/pgbackrest")
COPIES = Path("/srv/minipc-offsite/copies")
STATE = Path("/var/lib/minipc-offsite")
# What the repository had when all was well; why it is not well; for the watcher.
SEEN, LOST, STATUS = "seen.json", "lost.json", "status.json"

SUSPECT = "-suspect"
LABEL = r"([0-9]{8}-[0-9]{6}F(?:_[0-9]{8}-[0-9]{6}[DI])?)"
MANIFEST = re.compile(rf"backup/[^/]+/{LABEL}/backup\.manifest")
IN_BACKUP = re.compile(rf"backup/[^/]+/{LABEL}/")
SEGMENT = re.compile(r"archive/[^/]+/[^/]+/[0-9A-F]{16}/[0-9A-F]{24}-[0-9a-f]{40}")
INFO = re.compile(r"(?:archive|backup)/[^/]+/(?:archive|backup)\.info")
# pgBackRest removes what expires while we look: what seems lost must be lost three times.
LOOKS, BETWEEN_LOOKS_S = 3, 10
# Labels are in the mini PC's local time.
A_DAY = timedelta(days=1)

Files = dict[str, tuple[int, int]]


class FailedError(Exception):
    """No copy was taken; the earlier ones are untouched."""


def files(root: Path) -> Files:
    """Path -> size and time of each file that is not still being written."""
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
    """Label -> path of its manifest, which pgBackRest writes last and removes first."""
    return {match[1]: path for path in found if (match := MANIFEST.fullmatch(path))}


def moment(label: str) -> datetime:
    """When the backup was made; the end of all time for one that claims what is no moment."""
    try:
        return max(datetime.strptime(each, "%Y%m%d-%H%M%S").replace(tzinfo=UTC) for each in (label[:15], label[-16:-1]))
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)


def in_the_future(found: Mapping[str, object], now: datetime) -> list[str]:
    """A label that no later backup could ever be newer than: it would hide that backups are gone."""
    return sorted(label for label in backups(found) if moment(label) > now + A_DAY)


def what_is_lost(seen: Files, found: Files, retention_days: int, now: datetime) -> list[str]:
    """What `found` lacks although pgBackRest would not have removed or changed it, in words; usually nothing."""
    told = [f"a backup is labelled in the future: {label}" for label in in_the_future(found, now)]
    had, has = backups(seen), backups(found)
    if had and max(had) not in has:
        told.append(f"its newest backup {max(had)} is gone")
    # A day less: the label's clock is another one.
    young = now - timedelta(days=retention_days - 1)
    gone = sorted(had.keys() - has)
    told += [f"backup {label} is gone, too young to expire" for label in gone if moment(label) > young]
    kept = had.keys() & has
    within = [path for path in seen if (match := IN_BACKUP.match(path)) and match[1] in kept]
    told += _gone(seen, found, within, "files of backups")
    fulls = sorted(label for label in kept if label.endswith("F"))
    if fulls:
        # All WAL before a backup has arrived when its manifest is written; what came later stays as long as it does.
        since = seen[had[fulls[0]]][1]
        told += _gone(seen, found, [path for path in seen if SEGMENT.match(path) and seen[path][1] > since], "WAL")
    for path in sorted(seen):
        if INFO.fullmatch(path) and path not in found and f"{path}.copy" not in found:
            told.append(f"{path!a} is gone")
    return told


def _gone(seen: Files, found: Files, paths: list[str], what: str) -> list[str]:
    missing = sorted(path for path in paths if path not in found)
    changed = sorted(path for path in paths if path in found and found[path] != seen[path])
    counted = (("missing", missing), ("changed", changed))
    return [f"{what}: {len(some)} {state}, the first is {some[0]!a}" for state, some in counted if some]


def copies(pattern: str = "2*Z") -> list[Path]:
    """Oldest first."""
    return sorted(path for path in COPIES.glob(pattern) if path.is_dir() and not path.is_symlink())


def remembered() -> Files:
    """What the repository had when all was well."""
    try:
        return {path: (size, at) for path, (size, at) in json.loads((STATE / SEEN).read_text()).items()}
    except FileNotFoundError:
        # The first run: whichever copy has the newest backup.
        return max((files(path) for path in copies()), key=lambda had: max(backups(had), default=""), default={})


def write(name: str, content: object) -> None:
    STATE.mkdir(exist_ok=True)
    candidate = STATE / f"{name}.new"
    candidate.write_text(json.dumps(content))
    candidate.chmod(0o644 if name == STATUS else 0o600)
    candidate.rename(STATE / name)


def alarm() -> list[str]:
    """Why copies are suspect; nothing when all is well."""
    try:
        return list(json.loads((STATE / LOST).read_text()))
    except FileNotFoundError:
        return []


def look(seen: Files, retention_days: int) -> list[str]:
    """What the repository has lost; raises the alarm."""
    for attempt in range(LOOKS):
        told = what_is_lost(seen, files(REPOSITORY), retention_days, datetime.now(UTC))
        if not told:
            return []
        if attempt < LOOKS - 1:
            time.sleep(BETWEEN_LOOKS_S)
    write(LOST, told)
    return told


def prune(days: int) -> None:
    """The newest copy that is not suspect stays, whatever its age."""
    oldest_kept = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H-%M-%SZ")
    for path in {*copies("2*Z*")} - {*copies()[-1:]}:
        if path.name < oldest_kept:
            shutil.rmtree(path)
            print(f"removed {path}, older than {days} days")


def make_room(found: Files, latest: Path | None, free_mb: int) -> None:
    """Refuses what would leave the living repository, on the same disk, without room."""
    shared = files(latest) if latest else {}
    need = sum(size for path, (size, at) in found.items() if shared.get(path) != (size, at)) // 2**20
    free = shutil.disk_usage(COPIES).free // 2**20
    if free - need < free_mb:
        raise FailedError(f"no room: {free} MB are free, the copy takes {need}, {free_mb} are the repository's to grow")


def take(latest: Path | None, new: Path) -> None:
    """Raises FailedError when it can't be complete."""
    link = [f"--link-dest={path}" for path in [latest, *copies(f"2*Z{SUSPECT}")[-1:]] if path]
    argv = ["rsync", "-rtp", "--delete", "--chmod=D700,F600", "--no-links", "--no-devices", "--no-specials"]
    argv += ["--exclude=*.pgbackrest.tmp", *link, f"{REPOSITORY}/", f"{new}/"]
    for _ in range(LOOKS):
        code = subprocess.run(argv).returncode
        # 24: a file expired while it was read. The next attempt sees the repository as it is then.
        if code != 24:
            break
        time.sleep(BETWEEN_LOOKS_S)
    if code:
        raise FailedError(f"rsync ended with {code}; the earlier copies are untouched")
    subprocess.run(["sync", "-f", str(new)], check=True)


def copy(days: int, retention_days: int, free_mb: int) -> list[str]:
    """Takes a copy; returns why it is suspect."""
    new = COPIES / ".new"
    shutil.rmtree(new, ignore_errors=True)
    seen = remembered()
    lost = alarm() or look(seen, retention_days)
    if not lost:
        prune(days)
    found = files(REPOSITORY)
    if not backups(found) and not (lost and found):
        print("there is no backup, nothing to copy")
        return lost
    latest = next(reversed(copies()), None)
    try:
        make_room(found, latest, free_mb)
        take(latest, new)
        copied = files(new)
        if not lost:
            lost = what_is_lost(seen, copied, retention_days, datetime.now(UTC))
            if lost:
                write(LOST, lost)
        target = COPIES / (time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime()) + (SUSPECT if lost else ""))
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    print(f"copied to {target}, newest backup: {max(backups(copied), default='none')}")
    if not lost:
        write(SEEN, copied)
    return lost


def accept() -> None:
    """Ends the alarm: from now on the repository is compared with what it has now."""
    found = files(REPOSITORY)
    future = in_the_future(found, datetime.now(UTC))
    if future:
        raise FailedError(f"first remove the backups that are labelled in the future: {', '.join(future)}")
    write(SEEN, found)
    (STATE / LOST).unlink(missing_ok=True)
    print(f"accepted: {len(backups(found))} backups, the newest is {max(backups(found), default='none')}")


def timed(days: int, retention_days: int, free_mb: int) -> int:
    """What the timer does; notes how it went."""
    trouble = "it was cut off"
    try:
        lost = copy(days, retention_days, free_mb)
        trouble = f"the repository is not what it was: {lost[0]}" if lost else ""
    except BaseException as error:
        trouble = str(error) or trouble
        raise
    finally:
        note(trouble)
    for each in lost:
        print(f"THE REPOSITORY IS NOT WHAT IT WAS: {each}", file=sys.stderr)
    if lost:
        last = next(reversed(copies()), None)
        print("No copy is removed until `offsite-copy --accept`. If it was no act of yours, put a", file=sys.stderr)
        print(f"copy back first: offsite-restore-copy {last.name if last else ''}", file=sys.stderr)
    return 1 if lost else 0


def main(arguments: list[str]) -> int:
    accepting = arguments == ["--accept"]
    if not accepting and (len(arguments) != 3 or not all(each.isdecimal() for each in arguments)):
        print(__doc__, file=sys.stderr)
        return 2
    with (COPIES / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another copy is under way")
            return 1 if accepting else 0
        try:
            if not accepting:
                return timed(*map(int, arguments))
            accept()
            return 0
        except (FailedError, OSError, ValueError, subprocess.SubprocessError) as error:
            print(error, file=sys.stderr)
            return 1


def note(trouble: str) -> None:
    """For the watcher: when a run last went well, and what is wrong since."""
    try:
        before = json.loads((STATE / STATUS).read_text())["at"]
    except (OSError, ValueError, KeyError):
        before = 0
    write(STATUS, {"at": before if trouble else time.time(), "trouble": trouble})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
