"""Gather the content of a bundle from the checkout, the secret store and the operator's keys."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from minipc.bundle import checkout
from minipc.bundle.archive import PINS, BundleError, Entry, Fingerprints, Manifest, Origin, Payload, Role, created_text
from minipc.core import paths
from minipc.core.environment import EnvironmentName, named
from minipc.core.files import read_private
from minipc.remote.inventory import targets
from minipc.secrets import catalogue
from minipc.secrets.age import encrypt_values
from minipc.secrets.backends import age_file, age_key_file, open_store
from minipc.secrets.identity import PluginIdentity, new_identity, parse_identities
from minipc.secrets.key_file import read_key
from minipc.secrets.secret import Secret
from minipc.secrets.store import SecretStore, resolve

AGE_KEY = "age.key"
SECRETS = "secrets.age"
_SHOWN_PATHS = 8
SERVICES = "services"
"""Folder of the service files, where `services_folders` does not name others."""

Base = Literal["repository", "home", "config", "state", "age-key"]


@dataclass(frozen=True, repr=False)
class Item:
    """One file for the bundle; no repr, because it may be a key."""

    path: str
    role: Role
    base: Base
    target: str
    content: bytes

    def entry(self) -> Entry:
        """Return its entry in the manifest. Raises BundleError if it is too large or its name is not allowed."""
        try:
            return Entry(
                path=self.path,
                role=self.role,
                base=self.base,
                target=self.target,
                sha256=hashlib.sha256(self.content).hexdigest(),
                size=len(self.content),
            )
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise BundleError(
                f"{self.target} cannot be put into a bundle: {reason}", "rename it or make it smaller"
            ) from None


@dataclass(frozen=True, repr=False)
class Contents:
    """Everything that goes into a bundle.

    Attributes:
        measured: description ("secret NAME", "file PATH") -> the bytes that its fingerprint is made from.
        gaps: what a rebuild may need and the bundle does not contain.
    """

    environment: EnvironmentName
    backend: Literal["age", "vault"]
    items: list[Item]
    measured: Mapping[str, bytes]
    gaps: list[str]


def gather(environment: EnvironmentName, moment: datetime) -> Contents:
    """Read everything; change nothing.

    Args:
        moment: for the note in the configuration, if the secrets come from Vault.

    Raises:
        SecretError: a required secret is missing, or the store or a key cannot be read.
        ConfigError: group_data or the inventory is wrong.
        BundleError: a file that every rebuild needs is missing.
    """
    store = open_store(environment)
    values = _values(store, environment)
    key, sealed = _age_parts(store, environment, values)
    repository = list(_repository_items(environment))
    keys, key_gaps = _ssh_keys(environment)
    items = [
        *repository,
        Item(AGE_KEY, "age-key", "age-key", "age.key", key),
        _secrets_item(environment, sealed),
        *keys,
        *_pins(environment),
    ]
    measured = {f"file {item.target}": item.content for item in repository}
    measured |= {f"secret {name}": secret.reveal().encode() for name, secret in values.items()}
    measured |= {f"SSH key {item.target}": item.content for item in keys}
    if store.backend == "vault":
        items = [_with_age_backend(item, environment, moment) for item in items]
        backend: Literal["age", "vault"] = "vault"
    else:
        measured["age key"] = read_key(age_key_file(environment))
        backend = "age"
    return Contents(environment, backend, items, measured, [*key_gaps, *_checkout_gaps(items)])


def payload_of(contents: Contents, moment: datetime) -> Payload:
    """Return the contents with their manifest."""
    manifest = Manifest(
        format=1,
        created=moment,
        environment=contents.environment,
        backend=contents.backend,
        origin=Origin(remote=checkout.remote(paths.ROOT), commit=checkout.commit(paths.ROOT)),
        entries=[item.entry() for item in contents.items],
        fingerprints=fingerprints(contents.measured, secrets.token_hex(32)),
        gaps=contents.gaps,
    )
    return Payload(manifest, {item.path: item.content for item in contents.items})


def fingerprints(measured: Mapping[str, bytes], key: str) -> Fingerprints:
    """Return keyed hashes. The name is part of the input, so equal values have different hashes."""
    raw = bytes.fromhex(key)
    return Fingerprints(
        key=key,
        items={
            name: hmac.digest(raw, name.encode() + b"\0" + content, "sha256").hex()
            for name, content in sorted(measured.items())
        },
    )


def now() -> datetime:
    """Return the present time in UTC, without microseconds."""
    return datetime.now(UTC).replace(microsecond=0)


def _values(store: SecretStore, environment: str) -> dict[str, Secret]:
    """Return all secrets, with those that no component uses any more. Raises SecretError if one is missing."""
    entries = catalogue.for_environment(environment)
    resolve(
        store,
        [entry.name for entry in entries if not entry.optional],
        [entry.name for entry in entries if entry.optional],
    )
    return store.read(store.names())


def _age_parts(store: SecretStore, environment: str, values: Mapping[str, Secret]) -> tuple[bytes, bytes]:
    """Return identity and age file: the existing ones, or a new age file with the secrets in Vault.

    The identity is without its passphrase: the bundle has one, and must open when the other is forgotten. A key in a
    hardware token is replaced by a new one in the bundle, which must open when the token is lost.
    """
    path = age_key_file(environment)
    key = read_key(path) if store.backend == "age" or path.exists() else new_identity()
    if isinstance(parse_identities(key, str(path))[0], PluginIdentity):
        key = new_identity()
    elif store.backend == "age":
        return key, age_file(environment).read_bytes()
    return key, encrypt_values(values, [parse_identities(key, str(path))[0].to_public()])


def _repository_items(environment: str) -> Iterator[Item]:
    required = [f"group_data/{environment}.py", f"inventory/{environment}.py"]
    # Who may sign what is synced, and what was approved last: a rebuild syncs exactly that.
    trusted = ["inventory/allowed_signers", "inventory/approved.json"]
    for name in [*required, "inventory/pins.json", *trusted, "artifacts.lock"]:
        path = paths.ROOT / name
        if path.is_file():
            yield Item(f"repository/{name}", "repository", "repository", name, path.read_bytes())
        elif name in required:
            raise BundleError(f"{path} is missing", "restore it from git; a rebuild needs it")
    # Service files with their rules and checks. Other folders of services are part of the repository.
    for path in sorted((paths.ROOT / SERVICES).glob("*")):
        if path.is_file():
            name = f"{SERVICES}/{path.name}"
            yield Item(f"repository/{name}", "repository", "repository", name, path.read_bytes())


def _secrets_item(environment: EnvironmentName, sealed: bytes) -> Item:
    if not named(environment).in_repository:
        return Item(SECRETS, "secrets", "state", f"{environment}/secrets/{environment}.age", sealed)
    return Item(SECRETS, "secrets", "repository", str(age_file(environment).relative_to(paths.ROOT)), sealed)


def _pins(environment: EnvironmentName) -> Iterator[Item]:
    """Yield the pins that are not files of the repository."""
    where = named(environment)
    for name in () if where.in_repository else PINS:
        path = where.pins_file.with_name(name)
        if path.is_file():
            yield Item(name, "pins", "state", f"{environment}/{name}", path.read_bytes())


def _ssh_keys(environment: EnvironmentName) -> tuple[list[Item], list[str]]:
    """Return the SSH keys that the inventory names, private and public, and the gaps."""
    items: dict[str, Item] = {}
    gaps = []
    for target in targets(named(environment)):
        key = target.data.get("ssh_key")
        if key is None:
            gaps.append(f"the SSH key for {target.alias}: the inventory names no key file; it may be in an SSH agent")
            continue
        path = Path(key)
        for file in (path, path.with_name(f"{path.name}.pub")):
            if file.is_file():
                base, relative = _base_of(file)
                content = _private_key(file) if file == path else file.read_bytes()
                items[str(file)] = Item(f"ssh/{len(items)}-{file.name}", "ssh-key", base, relative, content)
            elif file == path:
                gaps.append(f"the SSH key for {target.alias}: {path} is missing")
    return list(items.values()), gaps


def _private_key(file: Path) -> bytes:
    content = read_private(file, "the SSH key")
    if not content.startswith(b"-----BEGIN "):
        raise BundleError(f"{file} is not a private key in PEM or OpenSSH format", "name the right file in inventory/")
    return content


def _base_of(file: Path) -> tuple[Base, str]:
    """Return where the file must be on another computer, so that the inventory finds it."""
    places: list[tuple[Base, Path]] = [("state", paths.state_dir()), ("home", Path.home())]
    for base, folder in places:
        if file.is_relative_to(folder):
            return base, str(file.relative_to(folder))
    return "config", f"ssh/{file.name}"


def _with_age_backend(item: Item, environment: str, moment: datetime) -> Item:
    """Switch the configuration to the age file: a Vault that was lost with the machine cannot serve its rebuild."""
    if item.path != f"repository/group_data/{environment}.py":
        return item
    note = (
        f"\n# Added by the break-glass bundle of {created_text(moment)}: Vault may be lost with the machine, so the\n"
        f"# secrets are in secrets/{environment}.age. When Vault is back, run\n"
        '# `minipc secrets copy --from age --to vault` and remove these lines.\nsecrets_backend = "age"\n'
    )
    return Item(item.path, item.role, item.base, item.target, item.content.rstrip(b"\n") + b"\n" + note.encode())


def _checkout_gaps(items: list[Item]) -> list[str]:
    commit = checkout.commit(paths.ROOT)
    if commit == "unknown":
        return ["the repository: this is not a git checkout, so a clean clone may differ from it"]
    gaps = []
    if not checkout.is_pushed(paths.ROOT):
        gaps.append(f"commit {commit[:12]}: no remote branch has it, so a clean clone lacks it; push it")
    inside = {item.target for item in items if item.base == "repository"}
    changed = [path for path in checkout.changed_paths(paths.ROOT) if path not in inside]
    if changed:
        more = f" and {len(changed) - _SHOWN_PATHS} more" if len(changed) > _SHOWN_PATHS else ""
        gaps.append(f"uncommitted changes: {', '.join(changed[:_SHOWN_PATHS])}{more}")
    return gaps
