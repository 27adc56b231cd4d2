"""Puts a bundle's files where a rebuild finds them: a clean clone and a fresh home. Nothing of value is overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minipc import paths
from minipc.bundle import checkout
from minipc.bundle.archive import MAX_BYTES, BundleError, Entry, Manifest, Payload, unpack
from minipc.errors import RefusedError
from minipc.secrets.age import AgeStore
from minipc.secrets.backends import age_key_file
from minipc.secrets.files import write_private
from minipc.secrets.sealed import open_sealed

Fate = Literal["written", "same"]


@dataclass(frozen=True)
class Placed:
    """One file and what became of it: `written`, or `same` because it was there already."""

    path: Path
    fate: Fate


@dataclass(frozen=True)
class Opened:
    """What was restored.

    Attributes:
        secrets: how many can be read with the restored key.
        commit: what the checkout is at; "unknown" where it is none.
    """

    manifest: Manifest
    placed: list[Placed]
    secrets: int
    commit: str


def read_bundle(file: Path, passphrase: str) -> Payload:
    """The checked inside of a bundle.

    Raises:
        BundleError: it can't be read, is too large, or is not what a bundle is.
        SecretError: the passphrase is wrong, or the file is damaged or no sealed file.
    """
    try:
        with file.open("rb") as handle:
            sealed = handle.read(2 * MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{file} can't be read: {error.strerror}", "check its path; is the stick mounted?") from None
    if len(sealed) > 2 * MAX_BYTES:
        raise BundleError(f"{file} is larger than {2 * MAX_BYTES >> 20} MB; no bundle is", "check the path")
    return unpack(open_sealed(sealed, passphrase))


def open_bundle(file: Path, passphrase: str, directory: Path) -> Opened:
    """Restores everything, or nothing where one file is in the way. Cut off, it goes on when run again.

    Args:
        directory: a clone of the repository, or an empty or new folder.

    Raises:
        RefusedError: lists every file that is there with other content; nothing was written.
        BundleError, SecretError: as in `read_bundle`.
    """
    payload = read_bundle(file, passphrase)
    directory = directory.expanduser().resolve()
    _check_directory(directory, payload.manifest.entries)
    places = {entry: _place(entry, payload.manifest.environment, directory) for entry in payload.manifest.entries}
    in_the_way = [
        f"{path}: {reason}"
        for entry, path in places.items()
        if (reason := _in_the_way(path, entry, payload.files[entry.path], directory))
    ]
    if in_the_way:
        lines = "".join(f"\n  - {line}" for line in in_the_way)
        raise RefusedError(
            f"{len(in_the_way)} of {len(places)} files are in the way, nothing was written:{lines}",
            "move them aside, or open the bundle in a clean clone with a fresh home",
        )
    placed = [Placed(path, _write(path, payload.files[entry.path])) for entry, path in places.items()]
    return Opened(payload.manifest, placed, _readable_secrets(places), checkout.commit(directory))


def _check_directory(directory: Path, entries: Sequence[Entry]) -> None:
    """Only a clone, or a folder with nothing else in it: elsewhere the files would be lost among others."""
    if not directory.exists() or (directory / ".git").exists():
        return
    if not directory.is_dir():
        raise RefusedError(f"{directory} is no folder", "name a clone of the repository, or a new folder")
    ours = {entry.target.split("/")[0] for entry in entries if entry.base == "repository"}
    others = sorted({path.name for path in directory.iterdir()} - ours)
    if others:
        raise RefusedError(
            f"{directory} is neither a clone nor empty: it has {', '.join(others[:5])}",
            "name a clone of the repository, or a new folder; nothing was written",
        )


def _place(entry: Entry, environment: str, directory: Path) -> Path:
    match entry.base:
        case "repository":
            return directory / entry.target
        case "home":
            return Path.home() / entry.target
        case "state":
            return paths.state_dir() / entry.target
        case "config":
            return paths.config_dir() / entry.target
        case "age-key":
            return age_key_file(environment)


def _in_the_way(path: Path, entry: Entry, content: bytes, directory: Path) -> str:
    """Why the file can't be put there; "" when it can."""
    if path.is_symlink():
        return "is a symbolic link"
    if entry.base == "repository" and not path.parent.resolve().is_relative_to(directory):
        return "leads out of the folder, by a symbolic link"
    if not path.exists():
        return ""
    if not path.is_file():
        return "is no plain file"
    if path.read_bytes() == content:
        return ""
    if entry.base == "repository" and checkout.is_unmodified(directory, entry.target):
        return ""  # git has what is replaced
    return "is there with other content"


def _write(path: Path, content: bytes) -> Fate:
    if path.exists() and path.read_bytes() == content:
        return "same"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BundleError(f"{path.parent} can't be made: {error.strerror}", "mend it and run again") from None
    write_private(path, content)
    return "written"


def _readable_secrets(places: dict[Entry, Path]) -> int:
    by_role = {entry.role: path for entry, path in places.items()}
    return len(AgeStore(by_role["secrets"], by_role["age-key"]).names())
