"""Generate the age identity, the age file, and the values that nobody needs to choose."""

from __future__ import annotations

import base64
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass

from minipc.config.secrets_settings import SecretsSettings
from minipc.core.errors import RefusedError, SecretError
from minipc.secrets.backends import open_store
from minipc.secrets.catalogue import BOUND, Entry, Generator, for_environment
from minipc.secrets.store import SecretStore

# 32 of 62 characters: 190 bits, and no character is special in a shell, URL, SQL or INI file.
PASSWORD_LENGTH = 32
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Filled:
    """Result of `fill`: names that were generated, names that existed, entries that the operator must supply."""

    generated: list[str]
    present: list[str]
    to_supply: list[Entry]


def generate(
    environment: str, entries: Iterable[Entry] | None = None, settings: SecretsSettings | None = None
) -> Filled:
    """Create the identity (age) and every missing secret that can be generated. Existing values are kept.

    Args:
        environment: `lab` keeps everything in the state directory, never in the repository.
        entries: None means the whole catalogue for this environment's group_data.
        settings: None reads the `secrets_*` keys of group_data.

    Raises:
        SecretError: the existing file cannot be opened (then no new key is made either), or nothing can be written.
    """
    store = open_store(environment, settings)
    store.prepare()
    return fill(store, for_environment(environment) if entries is None else entries)


def fill(store: SecretStore, entries: Iterable[Entry]) -> Filled:
    """Store a new value for every entry that has none and can be generated. Raises SecretError."""
    wanted = {entry.name: entry for entry in entries}
    present = store.read(wanted)
    missing = [entry for entry in wanted.values() if entry.name not in present]
    values = {entry.name: new_value(entry.generate) for entry in missing if entry.generate}
    store.set_many(values, keep_existing=True)
    return Filled(list(values), list(present), [entry for entry in missing if not entry.generate])


def renew(
    environment: str, names: Iterable[str], settings: SecretsSettings | None = None, *, bound: bool = False
) -> None:
    """Replace the named secrets by new values. The old values stop working with the next converge.

    Args:
        names: names of the catalogue that can be generated; `catalogue.GENERATION` for a new machine.
        bound: also those that data or a cluster depends on; the caller replaces that, too.

    Raises:
        RefusedError: data or a cluster depends on the present value; nothing was changed.
        SecretError: a value cannot be generated, or nothing can be written.
    """
    wanted = set(names)
    for name in sorted(wanted & BOUND.keys()) if not bound else ():
        raise RefusedError(f"{name} cannot be replaced alone; nothing was changed", BOUND[name])
    known = {entry.name: entry.generate for entry in for_environment(environment) if entry.generate}
    if unknown := sorted(wanted - set(known)):
        raise SecretError(f"cannot be generated: {', '.join(unknown)}", "use `minipc secrets set NAME`")
    open_store(environment, settings).set_many({name: new_value(known[name]) for name in wanted})


def new_value(generator: Generator) -> str:
    """Return a new random value."""
    match generator:
        case "alphanumeric":
            return alphanumeric()
        case "wireguard":
            return wireguard_private_key()
        case "ssh-key":
            return ssh_private_key()


def alphanumeric(length: int = PASSWORD_LENGTH) -> str:
    """Return random letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def ssh_private_key() -> str:
    """Return a new ed25519 key in OpenSSH's format, without a passphrase."""
    # Imported here: most runs make no key, and the library costs a tenth of a second.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415

    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def wireguard_private_key() -> str:
    """Return a new Curve25519 private key in base64, clamped as `wg genkey` does (RFC 7748, section 5)."""
    key = bytearray(secrets.token_bytes(32))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return base64.b64encode(key).decode()
