"""Read and create age identities: the keys that open the encrypted files, in the format of `age-keygen`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pyrage  # type: ignore[import-untyped]

from minipc.core.errors import SecretError
from minipc.core.files import create_private
from minipc.secrets.key_file import is_protected, read_key
from minipc.secrets.passphrase import ask_on_terminal

_PREFIX = "AGE-SECRET-KEY-1"
_PLUGIN_PREFIX = "AGE-PLUGIN-"


class PluginIdentity:
    """An identity that a program `age-plugin-NAME` on PATH uses, for example a key in a hardware token.

    Args:
        text: the identity, `AGE-PLUGIN-NAME-1…`. It is no secret: it names a key that does not leave the token.

    Raises:
        pyrage.IdentityError: it is not one.
    """

    def __init__(self, text: str) -> None:
        self._identity = pyrage.plugin.Identity.from_str(text)

    @property
    def plugin(self) -> str:
        """Return the name of the plugin, `NAME` in `age-plugin-NAME`."""
        return str(self._identity.plugin())

    def to_public(self) -> Any:
        """Return a recipient: the plugin encrypts for this identity.

        Raises:
            SecretError: the plugin is not on PATH.
        """
        try:
            return pyrage.plugin.RecipientPluginV1(self.plugin, [], [self._identity], _Person())
        except pyrage.EncryptError:
            raise self._missing() from None

    def opener(self) -> Any:
        """Return what `pyrage.decrypt` takes. Raises SecretError if the plugin is not on PATH."""
        try:
            return pyrage.plugin.IdentityPluginV1(self.plugin, [self._identity], _Person())
        except pyrage.DecryptError:
            raise self._missing() from None

    def _missing(self) -> SecretError:
        return SecretError(
            f"the age key needs the program age-plugin-{self.plugin}, which is not on PATH",
            "install it, or use another key",
        )


class _Person:
    """What a plugin may ask of the person at the terminal. pyrage calls these methods."""

    def display_message(self, message: str) -> None:
        print(f"age plugin: {message}", file=sys.stderr, flush=True)

    def confirm(self, message: str, yes_string: str, no_string: str | None) -> bool | None:
        answer = _asked(f"age plugin: {message} ({yes_string}: type yes)")
        return None if answer is None else answer == "yes"

    def request_public_string(self, description: str) -> str | None:
        return _asked(f"age plugin: {description}")

    def request_passphrase(self, description: str) -> str | None:
        return _asked(f"age plugin: {description}")


Identity: TypeAlias = pyrage.x25519.Identity | PluginIdentity


def read_identities(path: Path) -> list[Identity]:
    """Return the identities of a key file. The first one is used to encrypt; all are tried to decrypt.

    Raises:
        SecretError: missing, accessible to others, without a usable identity, or its passphrase is wrong.
    """
    return parse_identities(read_key(path), str(path))


def parse_identities(content: bytes, where: str) -> list[Identity]:
    """Return the identities in the content of a key file.

    Raises:
        SecretError: none is usable; names `where`, never the content.
    """
    identities = []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        identity = _parse(text)
        if identity is None:
            raise SecretError(
                f"line {number} of {where} is not an age identity",
                f"allowed: comments, {_PREFIX}…, {_PLUGIN_PREFIX}NAME-1…",
            )
        identities.append(identity)
    if not identities:
        raise SecretError(f"{where} contains no age identity", f"it needs a line {_PREFIX}…")
    return identities


def openers(identities: Sequence[Identity]) -> list[Any]:
    """Return what `pyrage.decrypt` takes: the keys in the file first, then the plugins.

    Raises:
        SecretError: a plugin is not on PATH.
    """
    ready = [each for each in identities if not isinstance(each, PluginIdentity)]
    return [*ready, *(each.opener() for each in identities if isinstance(each, PluginIdentity))]


def public_text(identity: Identity) -> str:
    """Return the public key as text, or which plugin has it."""
    if isinstance(identity, PluginIdentity):
        return f"a key of age-plugin-{identity.plugin}"
    return str(identity.to_public())


def protection_of(path: Path) -> str:
    """Return what protects a key file, in words, without asking for a passphrase.

    Raises:
        SecretError: it is missing, accessible to others, or without a usable identity.
    """
    if is_protected(path):
        return "with a passphrase"
    names = {each.plugin for each in read_identities(path) if isinstance(each, PluginIdentity)}
    return f"in age-plugin-{', '.join(sorted(names))}" if names else "without a passphrase"


def create_identity(path: Path) -> bool:
    """Create a key file (0600); return False if it exists. It is never replaced.

    Raises:
        SecretError: it cannot be written.
    """
    return create_private(path, new_identity())


def new_identity() -> bytes:
    """Return the content of a key file with a new identity."""
    identity = pyrage.x25519.Identity.generate()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return f"# created: {made}\n# public key: {identity.to_public()}\n{identity}\n".encode()


def _parse(text: str) -> Identity | None:
    try:
        return PluginIdentity(text) if text.startswith(_PLUGIN_PREFIX) else pyrage.x25519.Identity.from_str(text)
    except pyrage.IdentityError:
        return None


def _asked(question: str) -> str | None:
    """Return the answer; None if nobody can be asked, which the plugin then reports."""
    try:
        return ask_on_terminal(question, "")
    except SecretError:
        return None
