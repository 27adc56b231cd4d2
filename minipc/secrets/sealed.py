"""Seals bytes with a passphrase (age, scrypt): for what must be opened when every key file is gone.

`age -d` or `rage -d` open the result as well.
"""

from __future__ import annotations

import pyrage  # type: ignore[import-untyped]

from minipc.errors import SecretError

# scrypt slows guessing down about a million times; shorter ones than this are still guessed.
MIN_PASSPHRASE = 16
_HEADER = b"age-encryption.org/v1\n-> scrypt "


def seal(payload: bytes, passphrase: str) -> bytes:
    """The payload, encrypted and authenticated. About a second of work on purpose, and as much again to open it.

    How much work is measured when sealing, so a seal made on a fast, idle computer takes longer on a slow one.

    Args:
        payload: any bytes.
        passphrase: at least MIN_PASSPHRASE characters; surrounding blanks don't count and are not part of it.

    Raises:
        SecretError: the passphrase is too short.
    """
    passphrase = passphrase.strip()
    if len(passphrase) < MIN_PASSPHRASE:
        raise SecretError(
            f"the passphrase has fewer than {MIN_PASSPHRASE} characters",
            "take six or more random words, or a generated one",
        )
    sealed: bytes = pyrage.passphrase.encrypt(payload, passphrase)
    return sealed


def is_sealed(content: bytes) -> bool:
    """Whether this is, or begins as, something sealed with a passphrase."""
    return content.startswith(_HEADER)


def open_sealed(sealed: bytes, passphrase: str) -> bytes:
    """The payload.

    Args:
        sealed: what `seal` returned.
        passphrase: the one it was sealed with; surrounding blanks don't count.

    Raises:
        SecretError: not sealed with a passphrase, wrong passphrase, damaged or cut short.
    """
    if not is_sealed(sealed):
        raise SecretError(
            f"not sealed with a passphrase ({len(sealed)} bytes)",
            "check that it is the right file and that it is complete",
        )
    try:
        payload: bytes = pyrage.passphrase.decrypt(sealed, passphrase.strip())
    except pyrage.DecryptError as error:
        reason = str(error)
    else:
        return payload
    if reason.startswith("Excessive work"):
        raise SecretError(
            "this computer is too slow or too busy for the work that the seal asks for", "try on a faster or idle one"
        )
    # The passphrase's own line is authenticated first, so a wrong one is told apart from a damaged payload.
    if reason == "Decryption failed":
        raise SecretError(
            "the passphrase is wrong, or the file's first lines are damaged", "try again, or another copy"
        )
    raise SecretError("the sealed file is damaged or cut short", "take another copy")
