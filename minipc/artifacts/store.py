"""The way to an upstream file: the pin, the locked hash, the cache, the publisher; or a file put in by hand."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from minipc.artifacts import formats
from minipc.artifacts.cache import Cache, Local
from minipc.artifacts.catalogue import FileArch, Item, Mirrors, load_catalogue, safe_url
from minipc.artifacts.checksums import published_hash
from minipc.artifacts.errors import HashMismatchError, UnobtainableError
from minipc.artifacts.files import sha256_of
from minipc.artifacts.lock import Lock
from minipc.artifacts.meter import Meter, meter
from minipc.errors import ConfigError, MinipcError

if TYPE_CHECKING:
    from minipc.artifacts.download import Downloader

MIRROR_VARIABLE = "MINIPC_ARTIFACTS_MIRROR"
OFFLINE_VARIABLE = "MINIPC_ARTIFACTS_OFFLINE"

Origin = Literal["locked", "local", "missing"]


@dataclass(frozen=True)
class Artifact:
    """What there is of an upstream file on this controller.

    Attributes:
        name, arch: what was asked for; `arch` is `all` where one file serves every architecture.
        origin: `locked` (its hash is in artifacts.lock), `local` (put in by hand; every report says so)
            or `missing` (what needs it is NOT EXERCISED).
        pinned_version: the version in artifacts.toml.
        version: the version exercised; another than the pin only when `local`; None when missing.
        path: the file, hashed just now; None when missing.
        sha256: of the file; None when missing.
        filename: its name with the publisher, or when it was put in by hand.
        why_missing: one line; None unless missing.
    """

    name: str
    arch: FileArch
    origin: Origin
    pinned_version: str
    filename: str
    path: Path | None = None
    version: str | None = None
    sha256: str | None = None
    why_missing: str | None = None

    def __str__(self) -> str:
        if self.origin == "missing":
            return f"{self.name} {self.pinned_version} ({self.arch}): NOT EXERCISED: {self.why_missing}"
        if self.origin == "local":
            return f"{self.name} {self.version} ({self.arch}): LOCAL file, pinned is {self.pinned_version}"
        return f"{self.name} {self.version} ({self.arch}): as locked"


@dataclass(frozen=True)
class Status:
    """A row of `minipc artifacts list`. Nothing is hashed for it.

    Attributes:
        version: the version that would be used.
        locked: whether artifacts.lock holds a hash for the pin.
        cached: whether a file that would be used is there.
    """

    name: str
    arch: FileArch
    component: str
    pinned_version: str
    version: str
    locked: bool
    cached: bool
    origin: Origin


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Store:
    """Everything about upstream files in one place.

    Args:
        catalogue: artifacts.toml.
        lock: artifacts.lock.
        cache: root of the cache.
        downloader: makes what fetches; asked only when something must be fetched.
        say: takes one line for the operator.
        meter: makes a progress meter from a label.

    Raises:
        ConfigError: artifacts.toml or the mirror is not valid.
    """

    def __init__(
        self,
        *,
        catalogue: Path,
        lock: Path,
        cache: Path,
        downloader: Callable[[], Downloader],
        say: Callable[[str], None] = _to_stderr,
        meter: Callable[[str], AbstractContextManager[Meter]] = meter,
    ) -> None:
        self.catalogue = load_catalogue(catalogue)
        self.cache = Cache(cache)
        self.lock = Lock(lock, guard=self.cache.locks / "artifacts.lock")
        self._mirrors = _mirrors(self.catalogue.mirrors)
        self._downloader = downloader
        self._say = say
        self._meter = meter

    def resolve(self, name: str, arch: str, *, fetch: bool = True) -> Artifact:
        """The file to use now; fetched when it isn't in the cache.

        A file put in by hand wins over the pin until `minipc artifacts forget`. What can't be had is not an
        error: the answer's origin is `missing` and says why.

        Args:
            name: as in artifacts.toml.
            arch: `amd64` or `arm64`.
            fetch: whether the network may be used; never when MINIPC_ARTIFACTS_OFFLINE is set.

        Raises:
            ConfigError: no such artifact or architecture, or a broken list, lock or record.
            HashMismatchError: a file is not what was promised.
        """
        item = self.catalogue.item(name, arch)
        found = self._present(item)
        if found:
            return found
        try:
            if os.environ.get(OFFLINE_VARIABLE):
                raise UnobtainableError(f"not in the cache, and {OFFLINE_VARIABLE} is set")
            if not fetch:
                raise UnobtainableError("not in the cache")
            with self.cache.working_on(item):
                # Whoever held the lock may have fetched it.
                return self._present(item) or self._fetch(item)
        except UnobtainableError as error:
            return Artifact(
                name=item.name,
                arch=item.arch,
                origin="missing",
                pinned_version=item.version,
                filename=item.filename,
                why_missing=error.what,
            )

    def add(self, name: str, file: Path, arch: str, version: str | None = None) -> Artifact:
        """Puts a file in by hand. It counts as the pin when it has the locked hash, as `local` otherwise.

        Args:
            version: what it is; `local-` and the begin of its hash when not given.

        Raises:
            ConfigError: no such artifact or architecture, or a version that can't be recorded.
            MinipcError: the file can't be read or is of another kind than the pinned one.
        """
        item = self.catalogue.item(name, arch)
        try:
            problem = formats.problem(file, item.format, item.arch)
            if problem:
                raise MinipcError(
                    f"{file} can't stand for {item}: {problem}",
                    "give a file of the same kind as the pinned one",
                )
            sha256 = self._take_in(file)
        except OSError as error:
            raise MinipcError(f"{file} can't be put into the cache: {error.strerror}", "check it") from error
        locked = self.lock.find(item)
        if locked and locked.sha256 == sha256:
            self.cache.forget_local(item)
        else:
            self.cache.record_local(item, version or f"local-{sha256[:12]}", sha256, file.name)
        return self.resolve(name, arch, fetch=False)

    def forget(self, name: str, arch: str) -> Local | None:
        """Stops using a file put in by hand; returns what was forgotten."""
        item = self.catalogue.item(name, arch)
        record = self.cache.local(item)
        if record:
            self.cache.forget_local(item)
        return record

    def lock_hash(self, name: str, arch: str, sha256: str) -> bool:
        """Locks a hash that the operator vouches for; False when it was locked already.

        Raises:
            ConfigError: no such artifact or architecture.
            RefusedError: another hash is locked for this version.
        """
        item = self.catalogue.item(name, arch)
        return self.lock.record(item, sha256, "given by hand: minipc artifacts lock")

    def lock_published(self, item: Item) -> bool:
        """Locks the hash in the publisher's checksum file, without fetching the file itself.

        Raises:
            UnobtainableError: there is no such file, or it can't be had.
            RefusedError: another hash is locked for this version.
        """
        sha256, source = self._published(item)
        return self.lock.record(item, sha256, source)

    def status(self) -> list[Status]:
        """All files, in the order of artifacts.toml."""
        return [self._status(item) for item in self.catalogue.items]

    def _status(self, item: Item) -> Status:
        locked, local = self.lock.find(item), self._usable_local(item)
        cached = bool(local) or bool(locked and self.cache.holds(locked.sha256))
        return Status(
            name=item.name,
            arch=item.arch,
            component=item.component,
            pinned_version=item.version,
            version=local.version if local else item.version,
            locked=locked is not None,
            cached=cached,
            origin="local" if local else "locked" if cached else "missing",
        )

    def _usable_local(self, item: Item) -> Local | None:
        local, locked = self.cache.local(item), self.lock.find(item)
        if local is None or (locked and locked.sha256 == local.sha256) or not self.cache.holds(local.sha256):
            return None
        return local

    def _present(self, item: Item) -> Artifact | None:
        local = self._usable_local(item)
        if local:
            path = self.cache.verified(local.sha256, str(item))
            return Artifact(
                name=item.name,
                arch=item.arch,
                origin="local",
                pinned_version=item.version,
                filename=local.filename,
                path=path,
                version=local.version,
                sha256=local.sha256,
            )
        locked = self.lock.find(item)
        path = self.cache.verified(locked.sha256, str(item)) if locked else None
        return self._as_locked(item, path, locked.sha256) if locked and path else None

    def _as_locked(self, item: Item, path: Path, sha256: str) -> Artifact:
        return Artifact(
            name=item.name,
            arch=item.arch,
            origin="locked",
            pinned_version=item.version,
            filename=item.filename,
            path=path,
            version=item.version,
            sha256=sha256,
        )

    def _fetch(self, item: Item) -> Artifact:
        locked = self.lock.find(item)
        if item.url is None:
            raise UnobtainableError(f"no publisher has it; {item.how}, then `minipc artifacts add {item.name}`")
        if locked:
            sha256, source = locked.sha256, self.lock.path.name
        else:
            sha256, source = self._published(item)
        path = self.cache.verified(sha256, str(item)) or self._download(item, item.url, sha256, source)
        if locked is None and self.lock.record(item, sha256, source):
            self._say(f"{item}: first fetch, verified; {self.lock.path.name} now holds {sha256} ({source})")
        return self._as_locked(item, path, sha256)

    def _published(self, item: Item) -> tuple[str, str]:
        """The publisher's own hash and where it says so; from the publisher, never from a mirror."""
        if item.checksums is None:
            raise UnobtainableError(
                "no hash is locked and the publisher has no checksum file; "
                f"compare it yourself, then `minipc artifacts lock {item.name} --sha256 …`"
            )
        try:
            return published_hash(self._downloader().text(item.checksums), item.filename), item.checksums
        except ValueError as error:
            raise UnobtainableError(f"no hash is locked, and {item.checksums}: {error}") from None
        except UnobtainableError as error:
            raise UnobtainableError(
                f"no hash is locked, and the publisher's checksum file can't be had: {error.what}"
            ) from error

    def _download(self, item: Item, url: str, sha256: str, source: str) -> Path:
        partial = self.cache.partial(item)
        try:
            resumed = self._into(partial, item, url)
            if sha256_of(partial) != sha256 and resumed:
                # The begin may have been damaged here: that would not be the publisher's fault.
                self._downloader().discard(partial)
                self._into(partial, item, url)
            actual = sha256_of(partial)
            if actual != sha256:
                self._downloader().discard(partial)
                raise HashMismatchError(
                    f"{item}: what came from {self._mirrors.apply(url)} has sha256 {actual}, "
                    f"{source} says {sha256}; it was not kept",
                    "don't use this file; fetch it again later, and compare with the publisher's announcement",
                )
            path = self.cache.place(partial, sha256)
        except OSError as error:
            raise MinipcError(
                f"{item} can't be stored below {self.cache.root}: {error.strerror}", "make room, then fetch again"
            ) from error
        self._downloader().discard(partial)
        return path

    def _into(self, partial: Path, item: Item, url: str) -> bool:
        with self._meter(str(item)) as progress:
            return self._downloader().file(self._mirrors.apply(url), partial, progress)

    def _take_in(self, file: Path) -> str:
        descriptor, name = tempfile.mkstemp(prefix="add-", dir=self.cache.partials)
        os.close(descriptor)
        temporary = Path(name)
        try:
            shutil.copyfile(file, temporary)
            # Of the copy: the original could change in between.
            sha256 = sha256_of(temporary)
            self.cache.place(temporary, sha256)
        finally:
            temporary.unlink(missing_ok=True)
        return sha256


def own_arch() -> str:
    """This machine's architecture in Debian's words."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _mirrors(configured: Mirrors) -> Mirrors:
    everywhere = os.environ.get(MIRROR_VARIABLE)
    if not everywhere:
        return configured
    try:
        return Mirrors(all=safe_url(everywhere))
    except ValueError as error:
        # Not shown: it may hold a password.
        raise ConfigError(f"{MIRROR_VARIABLE} is not {error}", "correct or unset it") from None
