"""The age backend: one encrypted YAML file, name: value. Decrypted text is only ever in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyrage  # type: ignore[import-untyped]
import yaml

from minipc.errors import SecretError
from minipc.secrets.files import locked, write_private
from minipc.secrets.identity import create_identity, read_identities
from minipc.secrets.secret import Secret
from minipc.secrets.store import resolve

_HEADER = "# minipc secrets. Change with `minipc secrets set NAME`.\n"
_MAGIC = (b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")


class AgeStore:
    """Secrets in an age file.

    Args:
        path: the encrypted file.
        key_path: the identity that opens it; must be 0600 and outside the repository.
        recipients: public keys that may open it as well.
    """

    backend = "age"

    def __init__(self, path: Path, key_path: Path, recipients: Sequence[str] = ()) -> None:
        self.path = path
        self.key_path = key_path
        self._recipients = tuple(recipients)

    @property
    def location(self) -> str:
        """The file."""
        return str(self.path)

    def where(self, name: str) -> str:
        """Nothing to add: there is one file."""
        return ""

    def prepare(self) -> list[str]:
        """Makes the key and the file, if there is neither; what it made, for messages.

        Raises:
            SecretError: the file is there and its key is not: a new key could not open it.
        """
        made = []
        with locked(self.path.parent):
            if not self.key_path.exists() and not self.path.exists() and create_identity(self.key_path):
                made.append(f"age key {self.key_path}")
            if not self.path.exists():
                write_private(self.path, self._encrypt({}))
                made.append(f"age file {self.path}")
        self._values()
        return made

    def get(self, name: str) -> Secret:
        """The secret. Raises SecretError."""
        return resolve(self, [name])[name]

    def read(self, names: Collection[str]) -> dict[str, Secret]:
        """Those of the names that are there. Raises SecretError."""
        values = self._values()
        return {name: values[name] for name in names if name in values}

    def names(self) -> list[str]:
        """All names, sorted. Raises SecretError."""
        return sorted(self._values())

    def set_many(self, values: Mapping[str, str], *, keep_existing: bool = False) -> None:
        """Encrypts the file anew, with these values in it; the version before stays as `.bak`.

        Raises:
            SecretError: the present file can't be opened, or the new one not written; the present one is untouched.
        """
        added = {name: Secret(name, value) for name, value in values.items()}
        with locked(self.path.parent):
            present = self._values()
            if keep_existing:
                added = {name: secret for name, secret in added.items() if name not in present}
            if not added:
                return
            sealed = self._encrypt({**present, **added})
            write_private(Path(f"{self.path}.bak"), self._bytes())
            write_private(self.path, sealed)

    def _values(self) -> dict[str, Secret]:
        return _parse(self._decrypt(self._bytes()), self.location)

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            raise SecretError(
                f"{self.path} does not exist", "minipc secrets init creates it; or restore it from git"
            ) from None
        except OSError as error:
            raise SecretError(f"{self.path} can't be read: {error.strerror}", "check its path and owner") from None

    def _decrypt(self, sealed: bytes) -> bytes:
        identities = read_identities(self.key_path)
        try:
            plain: bytes = pyrage.decrypt(sealed, identities)
        except pyrage.DecryptError as error:
            reason = str(error)
        else:
            return plain
        restore = f"restore it from git or from {self.path}.bak"
        if not sealed.startswith(_MAGIC):
            raise SecretError(f"{self.path} is not an age file ({len(sealed)} bytes)", restore)
        if reason == "No matching keys found":
            public = ", ".join(str(identity.to_public()) for identity in identities)
            raise SecretError(
                f"{self.path} is not encrypted for the key in {self.key_path} ({public})",
                f"name the key it was made with in $MINIPC_AGE_KEY_FILE; if this is the one, {restore}",
            )
        raise SecretError(f"{self.path} is damaged or cut short", restore)

    def _encrypt(self, values: Mapping[str, Secret]) -> bytes:
        own = read_identities(self.key_path)[0].to_public()
        others = [_recipient(text) for text in self._recipients]
        sealed = encrypt_values(values, [own, *others])
        # What can't be read back must not replace what can.
        if _parse(self._decrypt(sealed), self.location) != values:
            raise SecretError(f"a value does not survive being written to {self.path}", "store binary values as base64")
        return sealed


def encrypt_values(values: Mapping[str, Secret], recipients: Sequence[pyrage.x25519.Recipient]) -> bytes:
    """What the file of an AgeStore holds: these secrets, for everyone who may open them."""
    content = yaml.safe_dump(
        {name: values[name].reveal() for name in sorted(values)}, allow_unicode=True, default_flow_style=False
    )
    sealed: bytes = pyrage.encrypt((_HEADER + content).encode(), list(recipients))
    return sealed


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys silently; the next write would then lose the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) != len(set(keys)):
            raise yaml.constructor.ConstructorError(None, None, "a name occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(plain: bytes, location: str) -> dict[str, Secret]:
    # Errors of YAML and of UTF-8 quote the text: they must not be in the chain of what is raised here.
    mend = "mend it with the age tool, or restore the version before"
    try:
        values = yaml.load(plain.decode(), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = f"is not valid YAML{line}, or has a name twice"
    except (yaml.YAMLError, RecursionError, ValueError):
        problem = "is not valid YAML"
    else:
        if values is None:
            return {}
        if isinstance(values, dict) and all(isinstance(name, str) for name in values):
            return {name: Secret(name, value) for name, value in values.items()}
        problem = "is not a mapping of names to texts"
    raise SecretError(f"the decrypted content of {location} {problem}", mend)


def _recipient(text: str) -> pyrage.x25519.Recipient:
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise SecretError(f"not an age public key in secrets_age_recipients: {text!r}", "allowed: age1…") from None
