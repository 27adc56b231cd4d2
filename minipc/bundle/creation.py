"""Makes a bundle, and remembers on this computer which one is the newest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from minipc import paths
from minipc.bundle.archive import BundleError, Manifest, pack, unpack
from minipc.bundle.contents import gather, now, payload_of
from minipc.bundle.state import State, write_state
from minipc.errors import RefusedError
from minipc.inventory import Environment
from minipc.secrets.files import write_private
from minipc.secrets.sealed import is_sealed, open_sealed, seal


@dataclass(frozen=True)
class Created:
    """What was made.

    Attributes:
        size: bytes of the sealed file.
    """

    file: Path
    manifest: Manifest
    size: int


def create(
    environment: Environment, file: Path, passphrase: str, *, replace: bool = False, moment: datetime | None = None
) -> Created:
    """Gathers, seals, opens again to compare, and only then gives the file its name (0600).

    Args:
        passphrase: see `minipc.secrets.sealed.seal`.
        replace: whether an older bundle of that name may go.
        moment: when; now unless given.

    Raises:
        RefusedError: the file would be in the repository, is there already, or is something else than a bundle.
        SecretError: a secret or key can't be read, the passphrase is too short, or the file can't be written.
        BundleError, ConfigError: as in `gather`.
    """
    check_place(file, replace=replace)
    moment = moment or now()
    payload = payload_of(gather(environment, moment), moment)
    packed = pack(payload)
    unpack(packed)  # a bundle that this version would not open must not be made
    sealed = seal(packed, passphrase)
    if open_sealed(sealed, passphrase) != packed:
        raise BundleError("sealed and opened again, the bundle is another; nothing was written", "run it again")
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
    """Raises RefusedError unless a bundle may be written there."""
    whole = file.expanduser().resolve()
    if whole.is_relative_to(paths.ROOT):
        raise RefusedError(
            f"{file} is inside the repository; a bundle belongs off this computer",
            "name a place on a USB stick or another machine's disk",
        )
    if not whole.parent.is_dir():
        raise RefusedError(f"{whole.parent} is no folder", "is the stick mounted?")
    if not whole.exists():
        return
    if not whole.is_file() or not is_sealed(whole.read_bytes()):
        raise RefusedError(f"{file} exists and is no bundle", "give another name")
    if not replace:
        raise RefusedError(f"{file} exists", "give another name, or --replace the older bundle")
