"""The age identity: the one key that opens the encrypted files. The file is what `age-keygen` writes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyrage  # type: ignore[import-untyped]

from minipc.errors import SecretError
from minipc.secrets.files import create_private, read_private

_PREFIX = "AGE-SECRET-KEY-1"


def read_identities(path: Path) -> list[pyrage.x25519.Identity]:
    """The identities of a key file; the first one is encrypted for, all are tried for opening.

    Raises:
        SecretError: missing, accessible to others, or without a usable identity.
    """
    if not path.exists():
        raise SecretError(
            f"the age key {path} is missing",
            "put the key there (a copy is in the break-glass bundle) or name it in $MINIPC_AGE_KEY_FILE",
        )
    identities = []
    for number, line in enumerate(read_private(path, "the age key").decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        identity = _parse(text)
        if identity is None:
            raise SecretError(f"line {number} of {path} is not an age identity", f"allowed: comments and {_PREFIX}…")
        identities.append(identity)
    if not identities:
        raise SecretError(f"{path} has no age identity", f"a line {_PREFIX}… is expected")
    return identities


def create_identity(path: Path) -> bool:
    """Makes a new identity, 0600; False when the file is there already (it is never replaced).

    Raises:
        SecretError: it can't be written.
    """
    identity = pyrage.x25519.Identity.generate()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    text = f"# created: {made}\n# public key: {identity.to_public()}\n{identity}\n"
    return create_private(path, text.encode())


def _parse(text: str) -> pyrage.x25519.Identity | None:
    try:
        return pyrage.x25519.Identity.from_str(text)
    except pyrage.IdentityError:
        return None
