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
    return parse_identities(read_private(path, "the age key"), str(path))


def parse_identities(content: bytes, where: str) -> list[pyrage.x25519.Identity]:
    """The identities in the content of a key file.

    Raises:
        SecretError: none is usable; names `where`, never what is there.
    """
    identities = []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        identity = _parse(text)
        if identity is None:
            raise SecretError(f"line {number} of {where} is not an age identity", f"allowed: comments and {_PREFIX}…")
        identities.append(identity)
    if not identities:
        raise SecretError(f"{where} has no age identity", f"a line {_PREFIX}… is expected")
    return identities


def create_identity(path: Path) -> bool:
    """Makes a new identity, 0600; False when the file is there already (it is never replaced).

    Raises:
        SecretError: it can't be written.
    """
    return create_private(path, new_identity())


def new_identity() -> bytes:
    """The content of a key file with a fresh identity."""
    identity = pyrage.x25519.Identity.generate()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return f"# created: {made}\n# public key: {identity.to_public()}\n{identity}\n".encode()


def _parse(text: str) -> pyrage.x25519.Identity | None:
    try:
        return pyrage.x25519.Identity.from_str(text)
    except pyrage.IdentityError:
        return None
