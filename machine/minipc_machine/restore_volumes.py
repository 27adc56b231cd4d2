"""Restore the volumes of the lost machine: restore-volumes [SERVICE/NAME…], without a name all of them.

Each comes from its newest snapshot (with `minipc rebuild --at`: the newest before that moment), is compared with the
manifest in it, and takes its place in one step. A volume that is not empty here is left alone. A volume without a
snapshot is reported and is not an error: it may be new. Exit code 4: the repository can't be reached.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from minipc_machine import backup_state, schema
from minipc_machine.files import write_file
from minipc_machine.program import EXIT_COULD_NOT_VERIFY, EXIT_PASS, FailedError, say
from minipc_machine.repositories import Settings, Snapshot, restic, settings, snapshots, until
from minipc_machine.volume_backup import COMPANIONS
from minipc_machine.volume_files import (
    COPIES,
    MANIFEST,
    FileEntry,
    Volume,
    VolumeResult,
    compare,
    digest,
    loads_manifest,
    problem,
    scan,
)

DONE = backup_state.RESTORED_VOLUMES


def main(names: list[str]) -> int:
    """Restore the volumes. Raises FailedError if the repository can't be reached, or restic failed."""
    config = settings()
    for volume in config.volumes:
        if not names or volume.key in names:
            _record(volume, restore(config, volume))
    return EXIT_PASS


def restore(config: Settings, volume: Volume) -> VolumeResult | None:
    """Restore one volume; return None if it was left as it is."""
    if volume.path.is_dir() and any(volume.path.iterdir()):
        say(f"{volume.key}: is not empty, left as it is")
        return None
    try:
        found = snapshots(config, volume.tag)
    except FailedError as error:
        raise FailedError(f"{error}; {volume.key} was not restored, run again", EXIT_COULD_NOT_VERIFY) from None
    found = until(found, backup_state.moment())
    if not found:
        say(f"{volume.key}: there is no snapshot of it")
        return VolumeResult(volume.service, volume.name, volume.data_class)
    result = _restore(config, volume, found[-1])
    say(f"{volume.key}: restored from snapshot {result.snapshot} of {found[-1].time[:16]}: {result.text}")
    return result


def _restore(config: Settings, volume: Volume, snapshot: Snapshot) -> VolumeResult:
    # A restore that is interrupted must not leave a volume that looks complete.
    files, added = (_new(path.with_name(f".{path.name}.restoring")) for path in (volume.path, volume.staging))
    try:
        restic(config, "restore", f"{snapshot.id}:{volume.path}", "--target", str(files))
        restic(config, "restore", f"{snapshot.id}:{volume.staging}", "--target", str(added))
        manifest = loads_manifest((added / MANIFEST).read_bytes(), volume)
        result = compare(volume, manifest, scan(files), snapshot.short_id)
        result = _with_databases(volume, manifest.sqlite, files, added / COPIES, result)
        os.chown(files, volume.user, volume.user)
        files.chmod(0o700)
        os.sync()
        if volume.path.exists():
            volume.path.rmdir()
        files.rename(volume.path)
        return result
    finally:
        shutil.rmtree(added, ignore_errors=True)


def _new(path: Path) -> Path:
    """Return a new, empty folder; what an interrupted restore has left there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, mode=0o700)
    return path


def _with_databases(
    volume: Volume, entries: Sequence[FileEntry], files: Path, copies: Path, result: VolumeResult
) -> VolumeResult:
    """Put the consistent copies of SQLite files in the place of the files, and add them to the result."""
    good, wrong = 0, [result.problem] if result.problem else []
    for entry in entries:
        try:
            if _put(volume, entry, files, copies):
                good += 1
            else:
                wrong.append("the copy of a SQLite file has other content")
        except OSError as error:
            wrong.append(f"a SQLite file could not be put in its place: {error.strerror}")
    fields = vars(result) | {"found": result.found + good, "problem": problem(wrong)}
    return VolumeResult(**fields)


def _put(volume: Volume, entry: FileEntry, files: Path, copies: Path) -> bool:
    """Put one copy in its place; return whether it has the size and hash of the manifest.

    The folder is opened step by step: one that became a link while the backup was taken leads nowhere.
    """
    path = PurePosixPath(entry.path)
    if path.is_absolute() or ".." in path.parts or PurePosixPath(entry.copy).name != entry.copy:
        raise OSError(0, "its path is not one in the volume")
    folder = os.open(files, os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for part in path.parts[:-1]:
            inner = os.open(part, os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        for ending in ("", *COMPANIONS):
            _remove(path.name + ending, folder)
        target = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        try:
            with (copies / entry.copy).open("rb") as copy:
                while block := copy.read(1 << 20):
                    os.write(target, block)
            os.fchown(target, volume.user, volume.user)
            os.fchmod(target, entry.mode & 0o777)
            os.utime(target, ns=(entry.modified_ns, entry.modified_ns))
            os.lseek(target, 0, os.SEEK_SET)
            return digest(target, entry.size + 1) == (entry.size, entry.sha256)
        finally:
            os.close(target)
    finally:
        os.close(folder)


def _remove(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _record(volume: Volume, result: VolumeResult | None) -> None:
    """Remember that the volume was asked for: from now on this machine makes its own."""
    known = backup_state.restored_volumes(DONE.read_text()) if DONE.exists() else {}
    left = VolumeResult(volume.service, volume.name, volume.data_class)
    write_file(DONE, schema.dump({volume.key: left} | known if result is None else known | {volume.key: result}))
