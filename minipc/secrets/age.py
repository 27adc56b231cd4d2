"""Keep secrets in an age file: encrypted YAML, name: value. Decrypted text is never written to disk."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyrage  # type: ignore[import-untyped]
import yaml

from minipc.core import yaml_text
from minipc.core.errors import SecretError
from minipc.core.files import lock, write_private
from minipc.core.formatting import first_line
from minipc.secrets import key_file
from minipc.secrets.identity import PluginIdentity, create_identity, new_identity, openers, public_text, read_identities
from minipc.secrets.secret import Secret
from minipc.secrets.store import resolve

_HEADER = "# minipc secrets. Change with `minipc secrets set NAME`.\n"
_RENEWED = "# renewed: "
LOCK_WAIT_S = 10.0
# A token may want a touch for each decryption; a run reads the same file many times.
_opened_by_token: dict[tuple[bytes, tuple[str, ...]], bytes] = {}
_MAGIC = (b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")


class AgeStore:
    """Secrets in an age file.

    Args:
        path: the encrypted file.
        key_path: the identity that opens it; mode 0600, outside the repository.
        recipients: public keys that may open it as well.
    """

    backend = "age"

    def __init__(self, path: Path, key_path: Path, recipients: Sequence[str] = ()) -> None:
        self.path = path
        self.key_path = key_path
        self._recipients = tuple(recipients)

    @property
    def location(self) -> str:
        """Return the path of the file."""
        return str(self.path)

    def where(self, name: str) -> str:
        """Return nothing: there is only one file."""
        return ""

    def prepare(self) -> list[str]:
        """Create the key and the file if neither exists; return what was created.

        Raises:
            SecretError: the file exists and its key does not; a new key could not open it.
            MinipcError: another process holds the lock.
        """
        made = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock(self.path.parent, LOCK_WAIT_S):
            if not self.key_path.exists() and not self.path.exists() and create_identity(self.key_path):
                made.append(f"age key {self.key_path}")
            if not self.path.exists():
                write_private(self.path, self._encrypt({}))
                made.append(f"age file {self.path}")
        self._values()
        return made

    def get(self, name: str) -> Secret:
        """Return a secret. Raises SecretError."""
        return resolve(self, [name])[name]

    def read(self, names: Collection[str]) -> dict[str, Secret]:
        """Return those of the secrets that exist. Raises SecretError."""
        values = self._values()
        return {name: values[name] for name in names if name in values}

    def names(self) -> list[str]:
        """Return all names, sorted. Raises SecretError."""
        return sorted(self._values())

    def set_many(self, values: Mapping[str, str], *, keep_existing: bool = False) -> None:
        """Encrypt the file again with these values in it; keep the previous version as `.bak`.

        Raises:
            SecretError: the file cannot be opened or the new one cannot be written; the file is unchanged.
            MinipcError: another process holds the lock.
        """
        added = {name: Secret(name, value) for name, value in values.items()}
        with lock(self.path.parent, LOCK_WAIT_S):
            present = self._values()
            if keep_existing:
                added = {name: secret for name, secret in added.items() if name not in present}
            if not added:
                return
            today = datetime.now(UTC).strftime("%Y-%m-%d")
            sealed = self._encrypt({**present, **added}, self.renewed() | dict.fromkeys(added, today))
            write_private(Path(f"{self.path}.bak"), self._bytes())
            write_private(self.path, sealed)

    def rekey(self) -> None:
        """Make a new key, encrypt the file for it, and remove the old key. An interruption loses nothing: run it again.

        A passphrase of the key file stays. The new key is in the file, also if the old one was in a hardware token.

        Raises:
            SecretError: the file cannot be opened, or the key or the file cannot be written.
        """
        with lock(self.path.parent, LOCK_WAIT_S):
            values, days = self._values(), self.renewed()
            new = new_identity()
            # The first key encrypts, all decrypt.
            key_file.write_key(self.key_path, new + key_file.read_key(self.key_path))
            write_private(self.path, self._encrypt(values, days))
            # The old key opens it.
            Path(f"{self.path}.bak").unlink(missing_ok=True)
            key_file.write_key(self.key_path, new)

    def unlock(self) -> None:
        """Read the key, and ask for its passphrase if it has one. Raises SecretError."""
        read_identities(self.key_path)

    def protect(self, passphrase: str | None) -> None:
        """Give the key file a new passphrase, or remove it with None.

        Raises:
            SecretError: the key cannot be read, the passphrase can be guessed, or the file cannot be written.
            MinipcError: another process holds the lock.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock(self.path.parent, LOCK_WAIT_S):
            read_identities(self.key_path)
            key_file.protect(self.key_path, passphrase)

    def renewed(self) -> dict[str, str]:
        """Return the day of each secret that was set or renewed since minipc remembers it."""
        found = re.search(rf"^{_RENEWED}(.*)$", self._decrypt(self._bytes()).decode(), re.M)
        days: dict[str, str] = json.loads(found[1]) if found else {}
        return days

    def _values(self) -> dict[str, Secret]:
        return _parse(self._decrypt(self._bytes()), self.location)

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            raise SecretError(
                f"{self.path} does not exist", "create it with `minipc secrets init`, or restore it from git"
            ) from None
        except OSError as error:
            raise SecretError(f"{self.path} cannot be read: {error.strerror}", "check its path and owner") from None

    def _decrypt(self, sealed: bytes) -> bytes:
        identities = read_identities(self.key_path)
        token = tuple(public_text(each) for each in identities if isinstance(each, PluginIdentity))
        if (sealed, token) in _opened_by_token:
            return _opened_by_token[sealed, token]
        try:
            plain: bytes = pyrage.decrypt(sealed, openers(identities))
        except pyrage.DecryptError as error:
            reason = str(error)
        else:
            if token:
                _opened_by_token[sealed, token] = plain
            return plain
        restore = f"restore it from git or from {self.path}.bak"
        if not sealed.startswith(_MAGIC):
            raise SecretError(f"{self.path} is not an age file ({len(sealed)} bytes)", restore)
        if reason == "No matching keys found":
            public = ", ".join(public_text(identity) for identity in identities)
            raise SecretError(
                f"{self.path} is not encrypted for the key in {self.key_path} ({public})",
                f"give the right key in $MINIPC_AGE_KEY_FILE; if this is the right key, {restore}",
            )
        if token:
            raise SecretError(
                f"{self.path} cannot be opened with {', '.join(token)}: {first_line(reason)}",
                f"connect the token and try again; if that does not help, {restore}",
            )
        raise SecretError(f"{self.path} is damaged or incomplete", restore)

    def _encrypt(self, values: Mapping[str, Secret], days: Mapping[str, str] = MappingProxyType({})) -> bytes:
        own = read_identities(self.key_path)[0].to_public()
        others = [_recipient(text) for text in self._recipients]
        sealed = encrypt_values(values, [own, *others], days)
        # A file that cannot be read back must not replace the present one.
        if _parse(self._decrypt(sealed), self.location) != values:
            raise SecretError(f"a value cannot be stored in {self.path}", "store binary values as base64")
        return sealed


def encrypt_values(
    values: Mapping[str, Secret],
    recipients: Sequence[pyrage.x25519.Recipient],
    days: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Return the content of an age file with these secrets, encrypted for the recipients.

    Args:
        days: when each secret got its value. They are a comment, which earlier versions skip.
    """
    content = yaml.safe_dump(
        {name: values[name].reveal() for name in sorted(values)}, allow_unicode=True, default_flow_style=False
    )
    sealed: bytes = pyrage.encrypt(f"{_HEADER}{_RENEWED}{json.dumps(dict(days))}\n{content}".encode(), list(recipients))
    return sealed


class _UniqueKeys(yaml_text.LOADER):  # type: ignore[misc] # with libyaml or without
    """Refuse two equal keys: PyYAML keeps only the last one, and the next write would lose the other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) != len(set(keys)):
            raise yaml.constructor.ConstructorError(None, None, "a name is given twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _parse(plain: bytes, location: str) -> dict[str, Secret]:
    # Errors of YAML and UTF-8 quote the text, so they must not be in the chain of the exception raised here.
    next_step = "correct it with the age tool, or restore the previous version"
    try:
        values = yaml.load(plain.decode(), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = f"is not valid YAML{line}, or gives a name twice"
    except (yaml.YAMLError, RecursionError, ValueError):
        problem = "is not valid YAML"
    else:
        if values is None:
            return {}
        if isinstance(values, dict) and all(isinstance(name, str) for name in values):
            return {name: Secret(name, value) for name, value in values.items()}
        problem = "is not a mapping of names to text"
    raise SecretError(f"the decrypted content of {location} {problem}", next_step)


def _recipient(text: str) -> pyrage.x25519.Recipient:
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise SecretError(f"secrets_age_recipients: {text!r} is not an age public key", "allowed: age1…") from None
