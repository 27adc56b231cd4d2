"""Compare the newest snapshot of a volume with its manifest. Nothing is written to disk: restic's output is hashed."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from decimal import Decimal

from minipc_machine.program import FailedError
from minipc_machine.repositories import Settings, restic, restic_output, snapshots
from minipc_machine.volume_files import (
    COPIES,
    MANIFEST,
    FileEntry,
    Found,
    Volume,
    VolumeResult,
    compare,
    loads_manifest,
    problem,
)


def verify(config: Settings, volume: Volume) -> VolumeResult:
    """Return what the newest snapshot of a volume contains.

    Raises:
        FailedError: the repository can't be reached or read.
    """
    found = snapshots(config, volume.tag)
    if not found:
        missing = "there is no snapshot of it"
        return VolumeResult(volume.service, volume.name, volume.data_class, problem=missing)
    newest = found[-1]
    text = restic(config, "dump", newest.id, str(volume.staging / MANIFEST))
    manifest = loads_manifest(text, volume)
    # SQLite files are compared by their copies.
    result = compare(volume, manifest, stored(config, f"{newest.id}:{volume.path}"), newest.short_id)
    if not manifest.sqlite:
        return result
    copies = {each.path: each for each in stored(config, f"{newest.id}:{volume.staging / COPIES}")}
    good = [entry for entry in manifest.sqlite if _is_there(entry, copies.get(entry.copy))]
    wrong = [result.problem] if result.problem else []
    if len(good) < len(manifest.sqlite):
        wrong.append(f"{len(manifest.sqlite) - len(good)} copies of SQLite files are missing or have other content")
    fields = vars(result) | {"found": result.found + len(good), "problem": problem(wrong)}
    return VolumeResult(**fields)


def _is_there(entry: FileEntry, copy: Found | None) -> bool:
    return copy is not None and (copy.size, copy.sha256) == (entry.size, entry.sha256)


def stored(config: Settings, folder: str) -> Iterator[Found]:
    """Yield the folders and regular files of a folder of a snapshot, with hashes. Raises FailedError."""
    with restic_output(config, "dump", "--archive", "tar", folder, "/") as output:
        try:
            with tarfile.open(fileobj=output, mode="r|") as archive:
                for member in archive:
                    yield from _found(archive, member)
        except tarfile.TarError as error:
            raise FailedError(f"restic dump: what it printed can't be read: {error}") from None


def _found(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[Found]:
    path = member.name.strip("/").removeprefix("./")
    path = "" if path == "." else path
    # As text it has all digits; as a number tarfile rounds it.
    modified_ns = int(Decimal(member.pax_headers.get("mtime", str(int(member.mtime)))) * 10**9)
    if member.isdir():
        yield Found(path, modified_ns)
    elif member.isreg():
        content = archive.extractfile(member)
        hashed = hashlib.sha256()
        while content and (block := content.read(1 << 20)):
            hashed.update(block)
        yield Found(path, modified_ns, member.size, hashed.hexdigest())
