"""Seal bytes with a passphrase (age, scrypt), for data that must be opened when every key file is lost.

`age -d` or `rage -d` open the result too.
"""

from __future__ import annotations

import pyrage  # type: ignore[import-untyped]

from minipc.core.errors import SecretError

# scrypt makes one guess take about a second, so 10^18 guesses are out of reach. Four random words have more.
MIN_GUESSES_LOG10 = 18
_KNOWN = ["correct horse battery staple", "correcthorsebatterystaple", "minipc", "break glass"]
_HEADER = b"age-encryption.org/v1\n-> scrypt "


def check_passphrase(passphrase: str) -> None:
    """Accept a passphrase that nobody can guess; its length alone does not count.

    Raises:
        SecretError: it can be guessed; never shows it.
    """
    # Imported here: its word lists take 0.1 s to load.
    from zxcvbn import zxcvbn  # type: ignore[import-untyped]  # noqa: PLC0415

    text = passphrase.strip()
    # zxcvbn takes 72 characters at most.
    if not text or zxcvbn(text[:72], user_inputs=_KNOWN)["guesses_log10"] < MIN_GUESSES_LOG10:
        raise SecretError(
            "the passphrase can be guessed: it is too short, or consists of common words, patterns or repetitions",
            "choose six or more random words (a dice list), or 20 or more random characters",
        )


def seal(payload: bytes, passphrase: str) -> bytes:
    """Return the payload, encrypted and authenticated.

    Sealing and opening each take about a second of work on purpose. The amount of work is measured when sealing, so
    opening takes longer on a slower computer.

    Args:
        passphrase: see `check_passphrase`; blanks at its ends are removed.

    Raises:
        SecretError: the passphrase can be guessed.
    """
    check_passphrase(passphrase)
    sealed: bytes = pyrage.passphrase.encrypt(payload, passphrase.strip())
    return sealed


def is_sealed(content: bytes) -> bool:
    """Return whether the content is, or begins like, data sealed with a passphrase."""
    return content.startswith(_HEADER)


def open_sealed(sealed: bytes, passphrase: str) -> bytes:
    """Return the payload of `seal`; any passphrase is tried.

    Raises:
        SecretError: not sealed with a passphrase, wrong passphrase, damaged or incomplete.
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
            "this computer is too slow or too busy to open the file", "try again on a faster or idle computer"
        )
    # The passphrase's header line is authenticated first, so a wrong passphrase differs from a damaged payload.
    if reason == "Decryption failed":
        raise SecretError(
            "the passphrase is wrong, or the beginning of the file is damaged", "try again, or use another copy"
        )
    raise SecretError("the sealed file is damaged or incomplete", "use another copy")
