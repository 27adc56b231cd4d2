"""Volumes of the services: list their files, remember them in a manifest, and compare what came back with it.

A service chooses names and content of its files, and may change them at any moment. So nothing here follows a symbolic
link, and a name is only data: never part of a command line, a pattern or a path that is opened by its text.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minipc_machine import schema

VOLUMES = Path("/srv/minipc/volumes")
STAGING = Path("/var/lib/minipc/volumes")
"""Per volume, what a backup adds to its files: the manifest, and consistent copies of SQLite files."""
MANIFEST = "manifest.json"
COPIES = "sqlite"
# A file that changes after it was read must get another time; the kernel's clock for files ticks each 10 ms at most.
TICK_S = 0.02
SHOWN = 5


@dataclass(frozen=True)
class Volume:
    """A volume of a service. `deploys/repositories.py` writes it into the settings.

    Attributes:
        user: user and group that own it.
        limit_bytes: the most that it may hold.
        sqlite: patterns of SQLite files, relative to the volume; `*` matches any characters, `/` included.
        data_class: the promise for its files.
    """

    service: str
    name: str
    user: int
    limit_bytes: int
    sqlite: list[str]
    data_class: str

    @property
    def key(self) -> str:
        """Return `SERVICE/NAME`."""
        return f"{self.service}/{self.name}"

    @property
    def tag(self) -> str:
        """Return the tag of its snapshots."""
        return f"volume:{self.key}"

    @property
    def path(self) -> Path:
        """Return the folder with its files."""
        return VOLUMES / self.service / self.name

    @property
    def staging(self) -> Path:
        """Return the folder with what a backup adds."""
        return STAGING / self.service / self.name


@dataclass(frozen=True)
class FileEntry:
    """A regular file.

    Attributes:
        path: relative to the volume.
        modified_ns: time of its last change, nanoseconds since the epoch.
        copy: of a SQLite file: name of its consistent copy; the size and hash are then the copy's.
    """

    path: str
    size: int
    sha256: str
    modified_ns: int
    mode: int = 0o600
    copy: str = ""


@dataclass(frozen=True)
class Manifest:
    """The files that a volume had when its backup began.

    Attributes:
        at_ns: when the list was made, nanoseconds since the epoch.
        sqlite: SQLite files, of which the backup has a consistent copy.
    """

    service: str
    volume: str
    at_ns: int
    files: list[FileEntry]
    sqlite: list[FileEntry] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """Something that came back: a regular file with its hash, or a folder (no hash)."""

    path: str
    modified_ns: int
    size: int = 0
    sha256: str | None = None
    mode: int = 0


@dataclass(frozen=True)
class VolumeResult:
    """What came back of a volume.

    Attributes:
        snapshot: short ID; None if there is none.
        files: in the manifest.
        found: of these, how many came back unchanged.
        size: bytes of the files that came back.
        changed: files that were changed or removed while the backup was taken, so that nothing is known about them.
        problem: what is wrong; empty if nothing is.
    """

    service: str
    volume: str
    data_class: str
    snapshot: str | None = None
    files: int = 0
    found: int = 0
    size: int = 0
    changed: int = 0
    problem: str = ""

    @property
    def text(self) -> str:
        """Return the result as half a sentence."""
        if self.problem:
            return self.problem
        changed = f", {self.changed} changed during the backup" if self.changed else ""
        return f"{self.found} of {self.files} files, {self.size} bytes, compared by hash{changed}"


def loads_manifest(text: str | bytes, volume: Volume) -> Manifest:
    """Return a manifest. Raises SchemaError if it is not one of this volume."""
    manifest = schema.loads(Manifest, text, f"manifest of {volume.key}", ignore_unknown=True)
    if (manifest.service, manifest.volume) != (volume.service, volume.name):
        raise schema.SchemaError(f"the manifest is of {manifest.service}/{manifest.volume}, not of {volume.key}")
    return manifest


def scan(root: Path) -> Iterator[Found]:
    """Yield all folders and regular files below a folder, with hashes. Links and everything else are left out.

    Raises:
        OSError: a folder can't be read.
    """
    for folder, _, names, descriptor in os.fwalk(root, onerror=_raise):
        relative = os.path.relpath(folder, root)
        yield Found("" if relative == "." else relative, os.fstat(descriptor).st_mtime_ns)
        for name in names:
            found = _read(descriptor, name, os.path.normpath(os.path.join(relative, name)))
            if found:
                yield found


def listing(volume: Volume) -> tuple[int, list[FileEntry]]:
    """Return the time, and the files of a volume with their hashes. Raises OSError."""
    at_ns = time.time_ns()
    files = []
    for folder, _, names, descriptor in os.fwalk(volume.path, onerror=_raise):
        relative = os.path.relpath(folder, volume.path)
        for name in names:
            found = _read(descriptor, name, os.path.normpath(os.path.join(relative, name)))
            if found and found.sha256 is not None:
                files.append(FileEntry(found.path, found.size, found.sha256, found.modified_ns, found.mode))
    return at_ns, files


def used_bytes(root: Path) -> int:
    """Return the disk space that the files below a folder use. Files that disappear meanwhile don't count."""
    total = 0
    for _, folders, names, descriptor in os.fwalk(root):
        for name in [*folders, *names]:
            try:
                total += os.lstat(name, dir_fd=descriptor).st_blocks * 512
            except OSError:
                continue
    return total


def digest(descriptor: int, limit: int) -> tuple[int, str]:
    """Return size and SHA-256 of what a file descriptor reads, up to a limit: a file may grow as fast as it is read."""
    hashed, size = hashlib.sha256(), 0
    while size < limit and (block := os.read(descriptor, min(1 << 20, limit - size))):
        hashed.update(block)
        size += len(block)
    return size, hashed.hexdigest()


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _read(folder: int, name: str, path: str) -> Found | None:
    """Return a regular file; None for anything else, and for a file that is gone by now."""
    try:
        # Without O_NONBLOCK a pipe of the service would stop us for ever.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            return None
        if time.time_ns() - about.st_mtime_ns < TICK_S * 1e9:
            time.sleep(TICK_S)
        size, sha256 = digest(descriptor, about.st_size)
        return Found(path, about.st_mtime_ns, size, sha256, stat.S_IMODE(about.st_mode))
    finally:
        os.close(descriptor)


def compare(volume: Volume, manifest: Manifest, came_back: Iterable[Found], snapshot: str) -> VolumeResult:
    """Compare what came back with the manifest.

    A file that has another time than in the manifest was changed while the backup was taken; a file whose folder has a
    later time than the manifest was perhaps removed then. Neither is damage.
    """
    files: dict[str, Found] = {}
    folders: dict[str, int] = {}
    size = 0
    for each in came_back:
        if each.sha256 is None:
            folders[each.path] = each.modified_ns
        else:
            files[each.path] = each
            size += each.size
    good, changed, wrong = 0, 0, []
    for entry in manifest.files:
        found = files.get(entry.path)
        if found is None:
            if _removed_meanwhile(entry.path, folders, manifest.at_ns):
                changed += 1
            else:
                wrong.append(f"{_shown(entry.path)} is missing")
        elif (found.size, found.sha256) == (entry.size, entry.sha256):
            good += 1
        elif found.modified_ns != entry.modified_ns:
            changed += 1
        else:
            wrong.append(f"{_shown(entry.path)} has other content")
    return VolumeResult(
        service=volume.service,
        volume=volume.name,
        data_class=volume.data_class,
        snapshot=snapshot,
        files=len(manifest.files) + len(manifest.sqlite),
        found=good,
        size=size,
        changed=changed,
        problem=problem(wrong),
    )


def problem(wrong: list[str]) -> str:
    """Return the first of several problems as one sentence."""
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return "; ".join(wrong[:SHOWN]) + more


def _removed_meanwhile(path: str, folders: Mapping[str, int], at_ns: int) -> bool:
    """Return whether the nearest folder that came back was changed after the manifest was made."""
    folder = os.path.dirname(path)
    while folder and folder not in folders:
        folder = os.path.dirname(folder)
    return folders.get(folder, 0) > at_ns


def _shown(path: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in path)[:200]
