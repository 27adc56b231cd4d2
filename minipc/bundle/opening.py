"""Write the files of a bundle to a clean clone and the home directory. Nothing of value is overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minipc.bundle import checkout
from minipc.bundle.archive import MAX_BYTES, BundleError, Entry, Manifest, Payload, unpack
from minipc.core import paths
from minipc.core.errors import RefusedError
from minipc.core.files import write_private
from minipc.secrets.age import AgeStore
from minipc.secrets.backends import age_key_file
from minipc.secrets.key_file import read_key
from minipc.secrets.sealed import is_sealed, open_sealed

Fate = Literal["written", "same"]


@dataclass(frozen=True)
class Placed:
    """One file, and whether it was `written` or already the `same`."""

    path: Path
    fate: Fate


@dataclass(frozen=True)
class Opened:
    """Result of opening a bundle.

    Attributes:
        secrets: number of secrets that the restored key opens.
        commit: commit of the checkout; "unknown" if it is not a checkout.
    """

    manifest: Manifest
    placed: list[Placed]
    secrets: int
    commit: str


def read_bundle(file: Path, passphrase: str) -> Payload:
    """Return the checked content of a bundle.

    Raises:
        BundleError: it cannot be read, is too large, or is not a valid bundle.
        SecretError: the passphrase is wrong, or the file is damaged or not sealed.
    """
    try:
        with file.open("rb") as handle:
            sealed = handle.read(2 * MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{file} cannot be read: {error.strerror}", "check the path, and that the USB stick is mounted"
        ) from None
    if len(sealed) > 2 * MAX_BYTES:
        raise BundleError(f"{file} is not a bundle: it is larger than {2 * MAX_BYTES >> 20} MB", "check the path")
    return unpack(open_sealed(sealed, passphrase))


def open_bundle(file: Path, passphrase: str, directory: Path) -> Opened:
    """Write all files, or none if one is in the way. After an interruption, run it again to continue.

    Args:
        directory: a clone of the repository, or an empty or new folder.

    Raises:
        RefusedError: lists every file that exists with other content; nothing was written.
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
            "move them away, or open the bundle in a clean clone with an empty home",
        )
    placed = [Placed(path, _write(path, payload.files[entry.path])) for entry, path in places.items()]
    return Opened(payload.manifest, placed, _readable_secrets(places), checkout.commit(directory))


def _check_directory(directory: Path, entries: Sequence[Entry]) -> None:
    """Refuse a folder with other files that is not a clone."""
    if not directory.exists() or (directory / ".git").exists():
        return
    if not directory.is_dir():
        raise RefusedError(f"{directory} is not a folder", "give a clone of the repository, or a new folder")
    ours = {entry.target.split("/")[0] for entry in entries if entry.base == "repository"}
    others = sorted({path.name for path in directory.iterdir()} - ours)
    if others:
        raise RefusedError(
            f"{directory} is neither a clone nor empty: it contains {', '.join(others[:5])}",
            "give a clone of the repository, or a new folder; nothing was written",
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
    """Return why the file cannot be written there; "" if it can."""
    if path.is_symlink():
        return "is a symbolic link"
    if entry.base == "repository" and not path.parent.resolve().is_relative_to(directory):
        return "is outside the folder, through a symbolic link"
    if not path.exists():
        return ""
    if not path.is_file():
        return "is not a regular file"
    if _content(path) == content:
        return ""
    if entry.base == "repository" and checkout.is_unmodified(directory, entry.target):
        return ""  # git has what is replaced
    return "exists with other content"


def _write(path: Path, content: bytes) -> Fate:
    if path.exists() and _content(path) == content:
        return "same"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BundleError(
            f"{path.parent} cannot be created: {error.strerror}", "fix the cause and run the command again"
        ) from None
    write_private(path, content)
    return "written"


def _content(path: Path) -> bytes:
    """Return the content of a file; of a key file with a passphrase, what is in it."""
    content = path.read_bytes()
    return read_key(path) if is_sealed(content) else content


def _readable_secrets(places: dict[Entry, Path]) -> int:
    by_role = {entry.role: path for entry, path in places.items()}
    return len(AgeStore(by_role["secrets"], by_role["age-key"]).names())
