"""Offline bundles: cached files with a manifest in one tar, for a USB stick.

    manifest.json    first; what each file is, its size and sha256
    sha256/HASH      the files

A bundle proves nothing about itself: what it says is locked must be in this checkout's artifacts.lock with the
same hash. Anything else is taken only on request, as put in by hand.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from minipc.artifacts.catalogue import FileArch, Filename, Item, Name, Sha256, Strict, Version, validated
from minipc.artifacts.errors import HashMismatchError
from minipc.artifacts.files import CHUNK, move_into_place
from minipc.artifacts.store import Artifact, Store
from minipc.errors import MinipcError, RefusedError

_MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 20  # bytes
_END_OF_ARCHIVE = 1024  # bytes, all zero (POSIX.1-2017, pax, ustar)
_NEXT = "make the bundle again with `minipc artifacts bundle create`; nothing reached the cache"


class _Entry(Strict):
    name: Name
    arch: FileArch
    version: Version
    origin: Literal["locked", "local"]
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    filename: Filename


class _Manifest(Strict):
    schema_: Literal[1] = Field(alias="schema", serialization_alias="schema")
    entries: Annotated[list[_Entry], Field(min_length=1)]


def create(store: Store, file: Path, arches: Iterable[str]) -> list[Artifact]:
    """Writes what the cache holds for some architectures into a bundle; the same files give the same bytes.

    Returns:
        Every artifact of these architectures, those with origin `missing` are not in the bundle.

    Raises:
        RefusedError: the file exists.
        MinipcError: the cache holds none of it, or the file can't be written.
        HashMismatchError: a cached file was changed.
    """
    if file.exists():
        raise RefusedError(f"{file} exists", "give another name, or remove it first")
    wanted = dict.fromkeys(
        (item.name, item.arch) for arch in arches for item in store.catalogue.items if item.arch in (arch, "all")
    )
    artifacts = [store.resolve(name, arch, fetch=False) for name, arch in wanted]
    paths = {each.sha256: each.path for each in artifacts if each.sha256 and each.path}
    if not paths:
        raise MinipcError("the cache holds none of the files", "`minipc artifacts fetch` first")
    entries = [_entry(each) for each in artifacts if each.origin != "missing"]
    manifest = json.dumps({"schema": 1, "entries": [each.model_dump() for each in entries]}, indent=2) + "\n"
    temporary = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with tarfile.open(temporary, "x", format=tarfile.USTAR_FORMAT) as tar:
            tar.addfile(_member(_MANIFEST, len(manifest.encode())), io.BytesIO(manifest.encode()))
            for sha256, path in sorted(paths.items()):
                with path.open("rb") as content:
                    tar.addfile(_member(f"sha256/{sha256}", path.stat().st_size), content)
        move_into_place(temporary, file)
    except OSError as error:
        raise MinipcError(f"{file} can't be written: {error.strerror}", "check the path and its room") from error
    finally:
        temporary.unlink(missing_ok=True)
    return artifacts


def _entry(artifact: Artifact) -> _Entry:
    return _Entry.model_validate(
        {
            "name": artifact.name,
            "arch": artifact.arch,
            "version": artifact.version,
            "origin": artifact.origin,
            "sha256": artifact.sha256,
            "size": artifact.path.stat().st_size if artifact.path else None,
            "filename": artifact.filename,
        }
    )


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o444
    return member


def import_bundle(store: Store, file: Path, *, trust_local: bool = False) -> list[str]:
    """Takes a bundle into the cache, all of it or nothing.

    Args:
        trust_local: whether files that artifacts.lock doesn't vouch for are taken, as put in by hand.

    Returns:
        One line per file: what it is and how it counts.

    Raises:
        MinipcError: the bundle is not whole or holds what it should not.
        HashMismatchError: a file is not what the manifest or artifacts.lock says.
        RefusedError: it holds such files, and they are not to be trusted.
        ConfigError: an artifact that this checkout doesn't know.
    """
    staging = Path(tempfile.mkdtemp(prefix="import-", dir=store.cache.partials))
    try:
        manifest = _unpack(file, staging)
        verdicts = [(entry, *_judged(store, entry, file)) for entry in manifest.entries]
        unvouched = [f"{entry.name} {entry.version}" for entry, _, locked in verdicts if not locked]
        if unvouched and not trust_local:
            raise RefusedError(
                f"{file} holds files that {store.lock.path.name} does not vouch for: {', '.join(unvouched)}",
                "bring artifacts.lock up to date, or import with --trust-local if you made the bundle yourself",
            )
        for sha256 in {entry.sha256 for entry in manifest.entries}:
            store.cache.place(staging / sha256, sha256)
        lines = []
        for entry, item, locked in verdicts:
            if not locked:
                store.cache.record_local(item, entry.version, entry.sha256, entry.filename)
            counts = "as locked" if locked else f"LOCAL file, pinned is {item.version}"
            lines.append(f"{entry.name} {entry.version} ({entry.arch}): {counts}")
        return lines
    except tarfile.TarError as error:
        raise MinipcError(f"{file} is not a whole bundle: {error}", _NEXT) from error
    except OSError as error:
        raise MinipcError(f"{file} can't be imported: {error.strerror}", "check the file and the room") from error
    finally:
        shutil.rmtree(staging)


def _judged(store: Store, entry: _Entry, file: Path) -> tuple[Item, bool]:
    """The item an entry is for, and whether its hash is locked here."""
    item = store.catalogue.item(entry.name, entry.arch)
    if item.arch != entry.arch:
        raise MinipcError(f"{file}: {entry.name} has no file for `{entry.arch}` here", _NEXT)
    locked = store.lock.entries().get((entry.name, entry.arch, entry.version))
    if entry.origin == "local" or locked is None:
        return item, False
    if locked.sha256 != entry.sha256:
        raise HashMismatchError(
            f"{file}: {entry.name} {entry.version} ({entry.arch}) has sha256 {entry.sha256}, "
            f"{store.lock.path.name} says {locked.sha256}",
            "don't use this bundle; find out where it comes from",
        )
    return item, True


def _unpack(file: Path, staging: Path) -> _Manifest:
    """Copies the members to the staging directory, each checked against the manifest."""
    _check_end(file)
    seen: set[str] = set()
    with tarfile.open(file, "r:") as tar:
        manifest = _read_manifest(tar, file)
        sizes = {entry.sha256: entry.size for entry in manifest.entries}
        room = shutil.disk_usage(staging).free
        if sum(sizes.values()) > room:
            raise MinipcError(f"{file} needs {sum(sizes.values())} bytes, the cache has {room}", "make room")
        while member := tar.next():
            sha256 = member.name.removeprefix("sha256/")
            if member.name in seen:
                raise MinipcError(f"{file} holds {member.name!r} twice", _NEXT)
            if member.name != f"sha256/{sha256}" or sha256 not in sizes:
                raise MinipcError(f"{file} holds {member.name!r}, which its manifest does not name", _NEXT)
            seen.add(member.name)
            _copy(tar, member, staging / sha256, sizes[sha256], file)
    missing = sorted(set(sizes) - {path.name for path in staging.iterdir()})
    if missing:
        raise MinipcError(f"{file} lacks {', '.join(missing)}, which its manifest names", _NEXT)
    return manifest


def _check_end(file: Path) -> None:
    # tarfile takes a missing end for an end; a stick pulled too early should not pass for whole.
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - _END_OF_ARCHIVE))
        if content.read() != bytes(_END_OF_ARCHIVE):
            raise MinipcError(f"{file} is cut off or not a tar", _NEXT)


def _read_manifest(tar: tarfile.TarFile, file: Path) -> _Manifest:
    member = tar.next()
    if member is None or member.name != _MANIFEST or not _plain(member) or member.size > _MAX_MANIFEST:
        raise MinipcError(f"{file} does not begin with {_MANIFEST}", _NEXT)
    content = tar.extractfile(member)
    try:
        values = json.loads(content.read() if content else b"")
    except ValueError as error:
        raise MinipcError(f"{file}: {_MANIFEST} is not valid JSON: {error}", _NEXT) from None
    manifest = validated(Path(f"{file.name}:{_MANIFEST}"), _Manifest, values, _NEXT)
    keys = [(entry.name, entry.arch) for entry in manifest.entries]
    if len(set(keys)) != len(keys):
        raise MinipcError(f"{file}: {_MANIFEST} names a file twice", _NEXT)
    return manifest


def _plain(member: tarfile.TarInfo) -> bool:
    """A regular file and nothing else: no link, device, directory or sparse file."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, size: int, file: Path) -> None:
    content = tar.extractfile(member) if _plain(member) else None
    if content is None or member.size != size:
        raise MinipcError(f"{file}: {member.name!r} is not a regular file of {size} bytes", _NEXT)
    digest = hashlib.sha256()
    with target.open("xb") as output:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            output.write(chunk)
    if digest.hexdigest() != target.name:
        raise HashMismatchError(f"{file}: {member.name!r} has sha256 {digest.hexdigest()}", _NEXT)
