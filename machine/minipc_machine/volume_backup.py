"""Back up volumes: a manifest and consistent copies of SQLite files first, then a restic snapshot of everything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from minipc_machine import schema
from minipc_machine.files import write_file
from minipc_machine.processes import CommandError, run
from minipc_machine.program import FailedError
from minipc_machine.repositories import Settings, Summary, backup_summary, parent, restic
from minipc_machine.volume_files import COPIES, MANIFEST, FileEntry, Manifest, Volume, digest, listing, problem

COPY_SQLITE = "/usr/local/lib/minipc/copy-sqlite"
COPY_LIMIT_S = 1800
# Files that SQLite keeps next to a database while it is in use; a consistent copy needs none of them.
COMPANIONS = ("-wal", "-shm", "-journal")
# Exit code of restic: a file could not be read, for example because the service removed it meanwhile.
INCOMPLETE = 3


def back_up(config: Settings, volume: Volume) -> Summary:
    """Take a snapshot of a volume.

    Raises:
        FailedError: there is no such folder, restic failed, or a SQLite file could not be copied; in the last case the
            snapshot was taken nevertheless, without a consistent copy of that file.
    """
    if not volume.path.is_dir():
        raise FailedError(f"{volume.path} does not exist: `minipc apply volumes` makes it")
    copies = volume.staging / COPIES
    shutil.rmtree(copies, ignore_errors=True)
    try:
        at_ns, files = listing(volume)
        copied, problems = _copy_databases(volume, files, copies)
        consistent = {entry.path for entry in copied}
        replaced = {path + ending for path in consistent for ending in ("", *COMPANIONS)}
        kept = [entry for entry in files if entry.path not in replaced]
        manifest = Manifest(volume.service, volume.name, at_ns, kept, copied)
        write_file(volume.staging / MANIFEST, schema.dump(manifest, indent=None), 0o600)
        summary = _snapshot(config, volume)
    except OSError as error:
        raise FailedError(f"{volume.key} can't be read: {error.strerror}") from None
    finally:
        shutil.rmtree(copies, ignore_errors=True)
    if problems:
        raise FailedError(f"snapshot {summary.snapshot_id[:8]} was taken, but {problem(problems)}")
    return summary


def _snapshot(config: Settings, volume: Volume) -> Summary:
    command = ["backup", "--json", "--quiet", "--host", config.host, "--tag", volume.tag, *parent(config, volume.tag)]
    command += [str(volume.path), str(volume.staging)]
    try:
        return backup_summary(restic(config, *command))
    except CommandError as error:
        if error.returncode != INCOMPLETE:
            raise
    return backup_summary(restic(config, *command))


def _copy_databases(volume: Volume, files: Sequence[FileEntry], folder: Path) -> tuple[list[FileEntry], list[str]]:
    """Copy the SQLite files of a volume, and return them with the hashes of their copies, and what went wrong."""
    wanted = [entry for entry in files if is_database(volume, entry.path)]
    if not wanted:
        return [], []
    # The copies are made by the volume's own account.
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, volume.user, volume.user)
    account = [f"--reuid={volume.user}", f"--regid={volume.user}", "--clear-groups", "--no-new-privs"]
    copied, problems = [], []
    for number, entry in enumerate(wanted):
        name = f"{number}.sqlite"
        argv = ["setpriv", *account, "--", COPY_SQLITE, f"{volume.path}/{entry.path}", f"{folder}/{name}"]
        try:
            run(argv, COPY_LIMIT_S)
        except FailedError as error:
            problems.append(f"a SQLite file could not be copied: {error}")
            continue
        copied.append(_of_copy(entry, folder, name))
    return copied, problems


def _of_copy(entry: FileEntry, folder: Path, name: str) -> FileEntry:
    descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size, sha256 = digest(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
    return FileEntry(entry.path, size, sha256, entry.modified_ns, entry.mode, name)


def is_database(volume: Volume, path: str) -> bool:
    """Return whether a file is one of those that the service declares as SQLite."""
    return not path.endswith(COMPANIONS) and any(fnmatchcase(path, pattern) for pattern in volume.sqlite)
