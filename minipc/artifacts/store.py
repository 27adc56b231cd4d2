"""Find an upstream file: in the cache under its locked hash, from its publisher, or a local file.

The cache on the controller:
    sha256/HASH      verified files, named by their content
    local.json       local files, added with `minipc artifacts add` (`origin: local`)
    partial/HASH     unfinished downloads, resumed by the next run
    locks/           lock files
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from minipc.artifacts import formats, image_set
from minipc.artifacts.catalogue import (
    FileArch,
    Filename,
    Mirrors,
    Name,
    Pin,
    Sha256,
    Version,
    load_catalogue,
    safe_url,
)
from minipc.artifacts.checksums import published_hash
from minipc.artifacts.errors import HashMismatchError, UnobtainableError
from minipc.artifacts.lock import Lock
from minipc.core import files
from minipc.core.errors import ConfigError, MinipcError
from minipc.core.process import say
from minipc.core.strict import Strict, validate

if TYPE_CHECKING:
    from minipc.artifacts.download import Downloader

MIRROR_VARIABLE = "MINIPC_ARTIFACTS_MIRROR"
OFFLINE_VARIABLE = "MINIPC_ARTIFACTS_OFFLINE"
_WAIT_S = 2 * 3600.0  # for another process's download, which may take an hour

Origin = Literal["locked", "local", "missing"]


@dataclass(frozen=True)
class Artifact:
    """An upstream file on this controller.

    Attributes:
        name, arch: the requested file; `arch` is `all` if one file serves every architecture.
        origin: `locked` (it has the hash in artifacts.lock), `local` (a local file; every report says so)
            or `missing` (what needs it is NOT EXERCISED).
        pinned_version: the version in artifacts.toml.
        version: the version used; differs from the pin only if `local`; None if missing.
        path: the file, whose hash was just verified; None if missing.
        sha256: None if missing.
        filename: its name at the publisher, or the name of the local file.
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
    """A row of `minipc artifacts list`; no hash is computed for it.

    Attributes:
        version: the version that would be used.
        locked: whether artifacts.lock contains a hash for the pin.
        cached: whether a file that would be used is in the cache.
    """

    name: str
    arch: FileArch
    component: str
    pinned_version: str
    version: str
    locked: bool
    cached: bool
    origin: Origin


class Local(Strict):
    """A local file, added with `minipc artifacts add`.

    Attributes:
        version: its version according to the operator; reports show it next to the pin.
        filename: its name when it was put in.
        added: when, UTC, ISO 8601.
    """

    origin: Literal["local"] = "local"
    name: Name
    arch: FileArch
    version: Version
    sha256: Sha256
    filename: Filename
    added: str


class _Locals(Strict):
    schema_: Literal[1] = Field(1, alias="schema", serialization_alias="schema")
    artifacts: list[Local] = Field(default_factory=list)


class Store:
    """The pins, the lock file and the cache; safe for several threads and processes.

    Args:
        catalogue: artifacts.toml.
        lock: artifacts.lock.
        cache: root of the cache, created if missing.
        downloader: makes the downloader when something must be downloaded; None: a patient one.
        say: prints one line for the operator.

    Raises:
        ConfigError: artifacts.toml or the mirror is not valid.
    """

    def __init__(
        self,
        *,
        catalogue: Path,
        lock: Path,
        cache: Path,
        downloader: Callable[[], Downloader] | None = None,
        say: Callable[[str], None] = say,
    ) -> None:
        self.catalogue = load_catalogue(catalogue)
        self.objects, self.partial, self._locks = (cache / name for name in ("sha256", "partial", "locks"))
        for directory in (self.objects, self.partial, self._locks):
            directory.mkdir(parents=True, exist_ok=True)
        self.lock = Lock(lock, guard=self._locks / "artifacts.lock")
        self._local_file = cache / "local.json"
        self._mirrors = _mirrors(self.catalogue.mirrors)
        self._new_downloader = downloader
        self._known_downloader: Downloader | None = None
        self._say = say

    def resolve(self, name: str, arch: str, *, fetch: bool = True) -> Artifact:
        """Return the file to use now; download it if it is not in the cache.

        A local file is used instead of the pin until `minipc artifacts forget`. A file that cannot be
        obtained is not an error: the result has the origin `missing` and says why.

        Args:
            name: as in artifacts.toml.
            arch: `amd64` or `arm64`.
            fetch: whether the network may be used; never if MINIPC_ARTIFACTS_OFFLINE is set.

        Raises:
            ConfigError: there is no such artifact or architecture, or a file of ours is not valid.
            HashMismatchError: a file does not have the expected hash.
        """
        pin = self.catalogue.find(name, arch)
        local = self._local_in_use(pin)
        if local:
            return self._found(pin, "local", self.path(local.sha256), local.version, local.filename)
        try:
            return self._found(pin, "locked", self.fetch(pin, network=fetch), pin.version, pin.filename)
        except UnobtainableError as error:
            return Artifact(pin.name, pin.arch, "missing", pin.version, pin.filename, why_missing=error.what)

    def fetch(self, pin: Pin, *, network: bool = True) -> Path:
        """Return the verified file of a pin; download it if it is not in the cache.

        Raises:
            UnobtainableError: it is not in the cache and cannot be downloaded.
            HashMismatchError: the file does not have the expected hash.
        """
        if path := self._cached(pin):
            return path
        if os.environ.get(OFFLINE_VARIABLE):
            raise UnobtainableError(f"not in the cache, and {OFFLINE_VARIABLE} is set")
        if not network:
            raise UnobtainableError("not in the cache")
        with files.lock(self._locks / f"{pin.name}_{pin.version}_{pin.arch}", _WAIT_S):
            # Another process may have fetched it while this one waited.
            return self._cached(pin) or self._download(pin)

    def path(self, sha256: str) -> Path:
        """Return where the file with this hash is or would be in the cache."""
        return self.objects / sha256

    def place(self, temporary: Path, sha256: str) -> Path:
        """Move a file, whose hash the caller verified, into the cache. Raises OSError."""
        temporary.chmod(0o444)
        files.move_into_place(temporary, self.path(sha256))
        return self.path(sha256)

    def add(self, name: str, file: Path, arch: str, version: str | None = None) -> Artifact:
        """Add a local file to the cache. It counts as the pin if it has the locked hash, else as `local`.

        Args:
            version: its version; default: `local-` and the beginning of its hash.

        Raises:
            ConfigError: there is no such artifact or architecture, or the version cannot be recorded.
            MinipcError: the file cannot be read, or is of another kind than the pinned one.
        """
        pin = self.catalogue.find(name, arch)
        try:
            if problem := formats.problem(file, pin.format, pin.arch):
                raise MinipcError(f"{file} cannot replace {pin}: {problem}", "give a file of the same kind as the pin")
            with tempfile.TemporaryDirectory(dir=self.partial) as scratch:
                copy = Path(scratch) / "file"
                shutil.copyfile(file, copy)
                sha256 = files.sha256_of(copy)  # of the copy: the original could change meanwhile
                self.place(copy, sha256)
        except OSError as error:
            raise MinipcError(f"{file} cannot be put into the cache: {error.strerror}", "check the file") from error
        locked = self.lock.find(pin)
        if locked and locked.sha256 == sha256:
            self._replace_local(pin, None)
        else:
            self.record_local(pin, version or f"local-{sha256[:12]}", sha256, file.name)
        return self.resolve(name, arch, fetch=False)

    def record_local(self, pin: Pin, version: str, sha256: str, filename: str) -> None:
        """Record a file in the cache as local; replace an earlier one. Raise ConfigError if it cannot be recorded."""
        values = {"name": pin.name, "arch": pin.arch, "version": version, "sha256": sha256, "filename": filename}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = validate(Local, values | {"added": now}, self._local_file.name, "give another --version")
        self._replace_local(pin, record)

    def forget(self, name: str, arch: str) -> Local | None:
        """Stop using a local file; return its record. The file stays in the cache."""
        pin = self.catalogue.find(name, arch)
        record = self._local(pin)
        if record:
            self._replace_local(pin, None)
        return record

    def lock_hash(self, name: str, arch: str, sha256: str) -> bool:
        """Lock a hash that the operator vouches for; return False if it was locked already.

        Raises:
            ConfigError: there is no such artifact or architecture.
            RefusedError: another hash is locked for this version.
        """
        return self.lock.record(self.catalogue.find(name, arch), sha256, "given by hand: minipc artifacts lock")

    def lock_published(self, pin: Pin) -> bool:
        """Lock the hash in the publisher's checksum file; the file itself is not downloaded.

        Raises:
            UnobtainableError: there is no checksum file, or it cannot be downloaded.
            RefusedError: another hash is locked for this version.
        """
        return self.lock.record(pin, *self._published(pin))

    def unlocked(self) -> list[Pin]:
        """Return the pins whose hash neither the lock nor a publisher states, so that a person must accept it once."""
        return [
            pin
            for pin in self.catalogue.pins
            if not pin.checksums and not self.lock.find(pin) and not self._local_in_use(pin)
        ]

    def download_once(self, pin: Pin) -> Path:
        """Download an unlocked file from its publisher, and return it; nothing uses it before `accept`.

        Raises:
            UnobtainableError: it cannot be downloaded.
        """
        partial = self.partial / f"{pin.name}-{pin.arch}"
        partial.unlink(missing_ok=True)
        if pin.url:
            self._downloader.file(pin.url, partial, str(pin))
        else:
            self._save_images(pin, partial)
        return partial

    def _save_images(self, pin: Pin, target: Path) -> None:
        """Save the images that another artifact names.

        Raises:
            UnobtainableError: that artifact is missing or local, or an image cannot be pulled.
        """
        named_by = self.resolve(pin.images_of or "", pin.arch)
        if named_by.path is None:
            raise UnobtainableError(f"{pin.images_of}, which names its images, is missing: {named_by.why_missing}")
        if named_by.origin == "local":
            raise UnobtainableError(
                f"{named_by}: its images may be others than those of the pin; "
                f"save them yourself, then `minipc artifacts add {pin.name}`"
            )
        image_set.save(image_set.named_in(named_by.path.read_text(encoding="utf-8")), pin.arch, target)

    def accept(self, pin: Pin, file: Path) -> None:
        """Lock the hash of a file from `download_once`, which a person has accepted, and keep the file.

        Raises:
            RefusedError: another hash is locked for this version.
        """
        sha256 = files.sha256_of(file)
        self.lock.record(pin, sha256, f"downloaded once from {pin.publisher}, accepted by a person")
        self.place(file, sha256)

    def status(self) -> list[Status]:
        """Return the state of all pins, in the order of artifacts.toml."""
        return [self._status(pin) for pin in self.catalogue.pins]

    def _status(self, pin: Pin) -> Status:
        locked, local = self.lock.find(pin), self._local_in_use(pin)
        cached = bool(local) or bool(locked and self.path(locked.sha256).is_file())
        return Status(
            name=pin.name,
            arch=pin.arch,
            component=pin.component,
            pinned_version=pin.version,
            version=local.version if local else pin.version,
            locked=locked is not None,
            cached=cached,
            origin="local" if local else "locked" if cached else "missing",
        )

    def _found(self, pin: Pin, origin: Origin, path: Path, version: str, filename: str) -> Artifact:
        self._verify(path, pin)
        return Artifact(pin.name, pin.arch, origin, pin.version, filename, path, version, path.name)

    def _cached(self, pin: Pin) -> Path | None:
        locked = self.lock.find(pin)
        return self.path(locked.sha256) if locked and self.path(locked.sha256).is_file() else None

    def _verify(self, path: Path, pin: Pin) -> None:
        actual = files.sha256_of(path)
        if actual != path.name:
            raise HashMismatchError(
                f"{pin}: the cached file {path} was changed: its sha256 is {actual}",
                f"find out who changed it; `rm {path}`, then fetch or add it again",
            )

    def _download(self, pin: Pin) -> Path:
        locked = self.lock.find(pin)
        sha256, source = (locked.sha256, self.lock.path.name) if locked else self._published(pin)
        url, partial = self._mirrors.apply(pin.url) if pin.url else pin.publisher, self.partial / sha256
        try:
            for _ in range(2):
                resumed = bool(pin.url) and self._downloader.file(url, partial, str(pin))
                if not pin.url:
                    self._save_images(pin, partial)
                actual = files.sha256_of(partial)
                if actual != sha256:
                    partial.unlink()
                if actual == sha256 or not resumed:  # else the resumed part may be wrong: download the whole file
                    break
            if actual != sha256:
                raise HashMismatchError(
                    f"{pin}: the file from {url} has sha256 {actual}, {source} says {sha256}; it was not kept",
                    "do not use this file; fetch it again later, and compare with the publisher's announcement",
                )
            path = self.place(partial, sha256)
        except OSError as error:
            raise MinipcError(
                f"{pin} cannot be stored in {self.objects.parent}: {error.strerror}",
                "free some space, then fetch again",
            ) from error
        if self.lock.record(pin, sha256, source):
            self._say(f"{pin}: first download, verified; {self.lock.path.name} now contains {sha256} ({source})")
        return path

    @property
    def _downloader(self) -> Downloader:
        if self._known_downloader is None:
            # Here, because httpx takes 90 ms to import and a converge with a full cache downloads nothing.
            from minipc.artifacts.download import Downloader  # noqa: PLC0415

            self._known_downloader = (self._new_downloader or Downloader)()
        return self._known_downloader

    def _published(self, pin: Pin) -> tuple[str, str]:
        """Return the publisher's own hash and its address; always from the publisher, never from a mirror."""
        if pin.checksums is None:
            raise UnobtainableError(
                "no hash is locked and the publisher has no checksum file; "
                f"accept the file once (`minipc artifacts fetch {pin.name}` on a terminal), "
                f"or compare the hash yourself, then `minipc artifacts lock {pin.name} --sha256 …`"
            )
        try:
            return published_hash(self._downloader.text(pin.checksums), pin.filename), pin.checksums
        except ValueError as error:
            raise UnobtainableError(f"no hash is locked, and {pin.checksums}: {error}") from None
        except UnobtainableError as error:
            raise UnobtainableError(
                f"no hash is locked, and the publisher's checksum file cannot be downloaded: {error.what}"
            ) from error

    def _locals(self) -> list[Local]:
        next_step = "remove it, then `minipc artifacts add` the files again"
        try:
            values = json.loads(self._local_file.read_bytes())
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise ConfigError(f"{self._local_file} is not valid JSON: {error}", next_step) from None
        return validate(_Locals, values, self._local_file.name, next_step).artifacts

    def _local(self, pin: Pin) -> Local | None:
        return next((each for each in self._locals() if (each.name, each.arch) == (pin.name, pin.arch)), None)

    def _local_in_use(self, pin: Pin) -> Local | None:
        local, locked = self._local(pin), self.lock.find(pin)
        if local is None or (locked and locked.sha256 == local.sha256) or not self.path(local.sha256).is_file():
            return None
        return local

    def _replace_local(self, pin: Pin, record: Local | None) -> None:
        with files.lock(self._locks / "local.json", 60.0):
            others = [each for each in self._locals() if (each.name, each.arch) != (pin.name, pin.arch)]
            records = sorted([*others, *([record] if record else [])], key=lambda each: (each.name, each.arch))
            text = _Locals(schema=1, artifacts=records).model_dump_json(by_alias=True, indent=2)
            files.write_atomic(self._local_file, f"{text}\n".encode())


def own_arch() -> str:
    """Return this computer's architecture as Debian names it."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _mirrors(configured: Mirrors) -> Mirrors:
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return configured
    try:
        return Mirrors(all=safe_url(mirror))
    except ValueError as error:
        # The value is not shown: it may contain a password.
        raise ConfigError(f"{MIRROR_VARIABLE} is not {error}", "correct or unset it") from None
