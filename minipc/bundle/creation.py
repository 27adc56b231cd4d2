"""Create a bundle, and note on this computer which bundle is the newest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from minipc.bundle.archive import BundleError, Manifest, pack, unpack
from minipc.bundle.contents import gather, now, payload_of
from minipc.bundle.state import State, write_state
from minipc.core import paths
from minipc.core.environment import EnvironmentName
from minipc.core.errors import RefusedError
from minipc.core.files import write_private
from minipc.secrets.sealed import is_sealed, open_sealed, seal


@dataclass(frozen=True)
class Created:
    """The new bundle.

    Attributes:
        size: of the sealed file, bytes.
    """

    file: Path
    manifest: Manifest
    size: int


def create(
    environment: EnvironmentName, file: Path, passphrase: str, *, replace: bool = False, moment: datetime | None = None
) -> Created:
    """Gather and seal everything, open it again to compare, and only then write the file (0600).

    Args:
        passphrase: see `minipc.secrets.sealed.check_passphrase`.
        replace: whether an older bundle at this path may be replaced.
        moment: time of creation; default: now.

    Raises:
        RefusedError: the file would be in the repository, exists, or is not a bundle.
        SecretError: a secret or key cannot be read, the passphrase can be guessed, or the file cannot be written.
        BundleError, ConfigError: as in `gather`.
    """
    check_place(file, replace=replace)
    moment = moment or now()
    payload = payload_of(gather(environment, moment), moment)
    packed = pack(payload)
    unpack(packed)  # a bundle that this version does not open must not be written
    sealed = seal(packed, passphrase)
    if open_sealed(sealed, passphrase) != packed:
        raise BundleError(
            "the sealed bundle has another content when opened again; nothing was written", "run it again"
        )
    write_private(file, sealed)
    digest = hashlib.sha256(sealed).hexdigest()
    write_state(
        State(
            environment=environment,
            created=moment,
            file=str(file.resolve()),
            sha256=digest,
            fingerprints=payload.manifest.fingerprints,
        )
    )
    return Created(file, payload.manifest, len(sealed))


def check_place(file: Path, *, replace: bool) -> None:
    """Raise RefusedError unless a bundle may be written there."""
    whole = file.expanduser().resolve()
    if whole.is_relative_to(paths.ROOT):
        raise RefusedError(
            f"{file} is inside the repository; keep a bundle off this computer",
            "give a path on a USB stick or another computer",
        )
    if not whole.parent.is_dir():
        raise RefusedError(f"{whole.parent} is not a folder", "mount the USB stick, or correct the path")
    if not whole.exists():
        return
    if not whole.is_file() or not is_sealed(whole.read_bytes()):
        raise RefusedError(f"{file} exists and is not a bundle", "give another name")
    if not replace:
        raise RefusedError(f"{file} exists", "give another name, or replace the older bundle with --replace")
