"""Makes what can be made: the identity, the file, and values that nobody needs to choose."""

from __future__ import annotations

import base64
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass

from minipc.errors import SecretError
from minipc.secrets.backends import LAB, open_store
from minipc.secrets.catalogue import Entry, Generator, for_environment
from minipc.secrets.settings import SecretsSettings
from minipc.secrets.store import SecretStore

# 32 of 62 characters: 190 bits, and no character that a shell, URL, SQL or INI file treats specially.
PASSWORD_LENGTH = 32
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Filled:
    """What `fill` found and did: names only."""

    generated: list[str]
    present: list[str]
    to_supply: list[Entry]


def generate(
    environment: str = LAB, entries: Iterable[Entry] | None = None, settings: SecretsSettings | None = None
) -> Filled:
    """Has the identity (age) and every secret that can be generated. What is there already keeps its value.

    Args:
        environment: `lab` keeps everything in the state directory, never in the repository.
        entries: None takes the whole catalogue for this environment's group_data.
        settings: None reads the `secrets_*` keys of group_data.

    Raises:
        SecretError: a present file can't be opened (then no new key is made either), or nothing can be written.
    """
    store = open_store(environment, settings)
    store.prepare()
    return fill(store, for_environment(environment) if entries is None else entries)


def fill(store: SecretStore, entries: Iterable[Entry]) -> Filled:
    """Stores a new value for every entry that has none and can be generated. Raises SecretError."""
    wanted = {entry.name: entry for entry in entries}
    present = store.read(wanted)
    missing = [entry for entry in wanted.values() if entry.name not in present]
    values = {entry.name: new_value(entry.generate) for entry in missing if entry.generate}
    store.set_many(values, keep_existing=True)
    return Filled(list(values), list(present), [entry for entry in missing if not entry.generate])


def renew(environment: str, names: Iterable[str], settings: SecretsSettings | None = None) -> None:
    """Replaces the named secrets by new values: what the old ones opened stays shut to them after the next converge.

    Args:
        names: of the catalogue, each one that can be generated; `catalogue.GENERATION` for a new machine.

    Raises:
        SecretError: a name can't be generated, or nothing can be written.
    """
    wanted = set(names)
    known = {entry.name: entry.generate for entry in for_environment(environment) if entry.generate}
    if unknown := sorted(wanted - set(known)):
        raise SecretError(f"can't be generated: {', '.join(unknown)}", "minipc secrets set NAME stores one of yours")
    open_store(environment, settings).set_many({name: new_value(known[name]) for name in wanted})


def new_value(generator: Generator) -> str:
    """A fresh random value."""
    match generator:
        case "alphanumeric":
            return alphanumeric()
        case "wireguard":
            return wireguard_private_key()
        case "ssh-key":
            return ssh_private_key()


def alphanumeric(length: int = PASSWORD_LENGTH) -> str:
    """Random letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def ssh_private_key() -> str:
    """An ed25519 key in OpenSSH's format, without passphrase; `minipc.keys` derives the rest from it."""
    # Imported here: most runs make no key, and the library costs them a tenth of a second.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def wireguard_private_key() -> str:
    """A Curve25519 private key in base64, clamped as `wg genkey` does (RFC 7748, section 5)."""
    key = bytearray(secrets.token_bytes(32))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return base64.b64encode(key).decode()
