"""Offline set: cached files with a manifest in one tar, for a USB stick.

    manifest.json    name, version, architecture, size and SHA-256 of each file
    sha256/HASH      the files

An offline set proves nothing about itself: a file counts as locked only if this checkout's artifacts.lock contains
the same hash. Any other file is imported only on request, as a local file.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from minipc.artifacts.catalogue import FileArch, Filename, Name, Sha256, Version
from minipc.artifacts.errors import HashMismatchError
from minipc.artifacts.store import Artifact, Store
from minipc.core import files
from minipc.core.errors import MinipcError, RefusedError
from minipc.core.strict import Strict, validate

_MANIFEST = "manifest.json"
_NEXT = "create the offline set again with `minipc artifacts offline-set create`; nothing was imported"


class _Entry(Strict):
    name: Name
    arch: FileArch
    version: Version
    origin: Literal["locked", "local"]
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    filename: Filename


class _Manifest(Strict):
    schema_: Literal[1] = Field(alias="schema")
    entries: Annotated[list[_Entry], Field(min_length=1)]


def create(store: Store, file: Path, arches: Iterable[str]) -> list[Artifact]:
    """Write the cached files for some architectures to a tar; the same files give the same bytes.

    Returns:
        Every artifact of these architectures; those with the origin `missing` are not in the tar.

    Raises:
        RefusedError: the file exists.
        MinipcError: the cache contains none of the files, or the tar cannot be written.
        HashMismatchError: a cached file was changed.
    """
    if file.exists():
        raise RefusedError(f"{file} exists", "give another name, or remove it first")
    wanted = {
        (pin.name, pin.arch): None for arch in arches for pin in store.catalogue.pins if pin.arch in (arch, "all")
    }
    artifacts = [store.resolve(name, arch, fetch=False) for name, arch in wanted]
    paths = {each.sha256: each.path for each in artifacts if each.sha256 and each.path}
    if not paths:
        raise MinipcError("the cache contains none of the files", "run `minipc artifacts fetch` first")
    manifest = {"schema": 1, "entries": [_entry(each, each.path) for each in artifacts if each.path]}
    temporary = file.with_name(f".{file.name}.new")
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            _append(tar, _MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
            for sha256, path in sorted(paths.items()):
                _append(tar, f"sha256/{sha256}", path)
        files.move_into_place(temporary, file)
    except OSError as error:
        raise MinipcError(f"{file} cannot be written: {error.strerror}", "check the path and free space") from error
    finally:
        temporary.unlink(missing_ok=True)
    return artifacts


def _entry(artifact: Artifact, path: Path) -> dict[str, object]:
    return {
        "name": artifact.name,
        "arch": artifact.arch,
        "version": artifact.version,
        "origin": artifact.origin,
        "sha256": artifact.sha256,
        "size": path.stat().st_size,
        "filename": artifact.filename,
    }


def _append(tar: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    member = tarfile.TarInfo(name)
    member.mode = 0o444
    if isinstance(content, bytes):
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    else:
        member.size = content.stat().st_size
        with content.open("rb") as file:
            tar.addfile(member, file)


def import_(store: Store, file: Path, *, trust_local: bool = False) -> list[str]:
    """Import an offline set into the cache, all of it or nothing.

    Args:
        trust_local: whether to import files that are not in artifacts.lock, as local files.

    Returns:
        One line per file: what it is and how it counts.

    Raises:
        MinipcError: the tar is damaged, lacks a file, or contains anything but regular files.
        HashMismatchError: a file does not have the hash in the manifest or in artifacts.lock.
        RefusedError: it contains files that artifacts.lock does not vouch for, and they are not to be trusted.
        ConfigError: it contains an artifact that this checkout does not know.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="import-", dir=store.partial) as scratch:
            entries = _unpack(file, Path(scratch)).entries
            checked = [
                (entry, store.catalogue.find(entry.name, entry.arch), _locked(store, entry)) for entry in entries
            ]
            unvouched = [f"{entry.name} {entry.version}" for entry, _, locked in checked if not locked]
            if unvouched and not trust_local:
                raise RefusedError(
                    f"{file} contains files that are not in {store.lock.path.name}: {', '.join(unvouched)}",
                    "update artifacts.lock, or import with --trust-local if you created the offline set yourself",
                )
            for sha256 in {entry.sha256 for entry in entries}:
                store.place(Path(scratch) / "sha256" / sha256, sha256)
    except tarfile.TarError as error:
        raise MinipcError(f"{file} is not a complete offline set: {error}", _NEXT) from error
    except OSError as error:
        raise MinipcError(f"{file} cannot be imported: {error.strerror}", "check the file and free space") from error
    lines = []
    for entry, pin, locked in checked:
        if not locked:
            store.record_local(pin, entry.version, entry.sha256, entry.filename)
        counts = "as locked" if locked else f"LOCAL file, pinned is {pin.version}"
        lines.append(f"{entry.name} {entry.version} ({entry.arch}): {counts}")
    return lines


def _locked(store: Store, entry: _Entry) -> bool:
    """Return whether artifacts.lock vouches for the file. Raises HashMismatchError if it contradicts."""
    locked = store.lock.entries().get((entry.name, entry.arch, entry.version))
    if entry.origin == "local" or locked is None:
        return False
    if locked.sha256 != entry.sha256:
        raise HashMismatchError(
            f"{entry.name} {entry.version} ({entry.arch}) in the offline set has sha256 {entry.sha256}, "
            f"{store.lock.path.name} says {locked.sha256}",
            "do not use this offline set; find out where it comes from",
        )
    return True


def _unpack(file: Path, scratch: Path) -> _Manifest:
    """Extract regular files only, and verify each that the manifest names; others are not used."""

    def regular_files_only(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        if not member.isreg():
            raise MinipcError(f"{file}: {member.name!r} is not a regular file", _NEXT)
        return tarfile.data_filter(member, path)

    with tarfile.open(file, "r:") as tar:
        tar.extractall(scratch, filter=regular_files_only)  # noqa: S202 - the filter and the hashes below
    try:
        values = json.loads((scratch / _MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError) as error:
        raise MinipcError(f"{file}: {_MANIFEST} is missing or not valid JSON: {error}", _NEXT) from None
    manifest = validate(_Manifest, values, f"{file.name}:{_MANIFEST}", _NEXT)
    for entry in manifest.entries:
        path = scratch / "sha256" / entry.sha256
        if not path.is_file():
            raise MinipcError(f"{file} lacks {entry.sha256}, which its {_MANIFEST} names", _NEXT)
        if (actual := files.sha256_of(path)) != entry.sha256:
            raise HashMismatchError(f"{file}: {path.name} has sha256 {actual}", _NEXT)
    return manifest
