"""What belongs into a bundle now: gathered from the checkout, the secret store and the operator's keys."""

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

from minipc import paths
from minipc.bundle import checkout
from minipc.bundle.archive import BundleError, Entry, Fingerprints, Manifest, Origin, Payload, Role, created_text
from minipc.inventory import Environment, targets
from minipc.secrets import catalogue
from minipc.secrets.age import encrypt_values
from minipc.secrets.backends import LAB, age_file, age_key_file, open_store
from minipc.secrets.files import read_private
from minipc.secrets.identity import new_identity, parse_identities
from minipc.secrets.secret import Secret
from minipc.secrets.store import SecretStore, resolve

AGE_KEY = "age.key"
SECRETS = "secrets.age"
_SHOWN_PATHS = 8

Base = Literal["repository", "home", "config", "state", "age-key"]


@dataclass(frozen=True, repr=False)
class Item:
    """One file for the bundle; no repr, because keys are among them."""

    path: str
    role: Role
    base: Base
    target: str
    content: bytes

    def entry(self) -> Entry:
        """How the manifest names it. Raises BundleError when it is too large or its name has unusual characters."""
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
            raise BundleError(f"{self.target} can't go into a bundle: {reason}", "rename or shrink it") from None


@dataclass(frozen=True, repr=False)
class Contents:
    """Everything, before it is packed.

    Attributes:
        measured: what it is ("secret NAME", "file PATH") -> the bytes that fingerprints are made from.
        gaps: what a rebuild may need and the bundle doesn't have.
    """

    environment: Environment
    backend: Literal["age", "vault"]
    items: list[Item]
    measured: Mapping[str, bytes]
    gaps: list[str]


def gather(environment: Environment, moment: datetime) -> Contents:
    """Reads everything; changes nothing.

    Args:
        moment: when, for the note in the configuration of a bundle whose secrets came from Vault.

    Raises:
        SecretError: a required secret is missing, or the store or a key can't be read.
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
        measured["age key"] = key
        backend = "age"
    return Contents(environment, backend, items, measured, [*key_gaps, *_checkout_gaps(items)])


def payload_of(contents: Contents, moment: datetime) -> Payload:
    """The contents with their manifest."""
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
    """Keyed hashes; the name is hashed along, so equal values of two secrets don't show as equal."""
    raw = bytes.fromhex(key)
    return Fingerprints(
        key=key,
        items={
            name: hmac.digest(raw, name.encode() + b"\0" + content, "sha256").hex()
            for name, content in sorted(measured.items())
        },
    )


def now() -> datetime:
    """This second, UTC."""
    return datetime.now(UTC).replace(microsecond=0)


def _values(store: SecretStore, environment: str) -> dict[str, Secret]:
    """All secrets there are; also those that no component asks for any more."""
    entries = catalogue.for_environment(environment)
    resolve(
        store,
        [entry.name for entry in entries if not entry.optional],
        [entry.name for entry in entries if entry.optional],
    )
    return store.read(store.names())


def _age_parts(store: SecretStore, environment: str, values: Mapping[str, Secret]) -> tuple[bytes, bytes]:
    """Identity and age file: the present ones, or for Vault an age file with what Vault holds."""
    path = age_key_file(environment)
    if store.backend == "age":
        return read_private(path, "the age key"), age_file(environment).read_bytes()
    key = read_private(path, "the age key") if path.exists() else new_identity()
    return key, encrypt_values(values, [parse_identities(key, str(path))[0].to_public()])


def _repository_items(environment: str) -> Iterator[Item]:
    required = [f"group_data/{environment}.py", f"inventory/{environment}.py"]
    for name in [*required, "inventory/pins.json", "artifacts.lock"]:
        path = paths.ROOT / name
        if path.is_file():
            yield Item(f"repository/{name}", "repository", "repository", name, path.read_bytes())
        elif name in required:
            raise BundleError(f"{path} is missing", "restore it from git; no rebuild goes without it")


def _secrets_item(environment: str, sealed: bytes) -> Item:
    if environment == LAB:
        return Item(SECRETS, "secrets", "state", f"{LAB}/secrets/{LAB}.age", sealed)
    return Item(SECRETS, "secrets", "repository", str(age_file(environment).relative_to(paths.ROOT)), sealed)


def _pins(environment: str) -> Iterator[Item]:
    """The lab keeps its pins beside its machines; production's are in the repository."""
    path = paths.state_dir(LAB) / "pins.json"
    if environment == LAB and path.is_file():
        yield Item("pins.json", "pins", "state", f"{LAB}/pins.json", path.read_bytes())


def _ssh_keys(environment: Environment) -> tuple[list[Item], list[str]]:
    """The private keys that the inventory names, with their public halves; and what is missing."""
    items: dict[str, Item] = {}
    gaps = []
    for target in targets(environment):
        key = target.data.get("ssh_key")
        if key is None:
            gaps.append(f"the SSH key for {target.alias}: the inventory names no key file (an SSH agent has it?)")
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
        raise BundleError(f"{file} is no private key in PEM or OpenSSH's form", "name the right file in inventory/")
    return content


def _base_of(file: Path) -> tuple[Base, str]:
    """Where a rebuild elsewhere has to put the file, so that the inventory finds it again."""
    places: list[tuple[Base, Path]] = [("state", paths.state_dir()), ("home", Path.home())]
    for base, folder in places:
        if file.is_relative_to(folder):
            return base, str(file.relative_to(folder))
    return "config", f"ssh/{file.name}"


def _with_age_backend(item: Item, environment: str, moment: datetime) -> Item:
    """The configuration that a rebuild uses: a Vault that went down with the machine can't unseal its own rebuild."""
    if item.path != f"repository/group_data/{environment}.py":
        return item
    note = (
        f"\n# Added by the break-glass bundle of {created_text(moment)}: Vault may be gone with the machine, so the\n"
        f"# secrets are in secrets/{environment}.age. Once Vault is back, `minipc secrets copy --from age --to vault`\n"
        '# and remove this.\nsecrets_backend = "age"\n'
    )
    return Item(item.path, item.role, item.base, item.target, item.content.rstrip(b"\n") + b"\n" + note.encode())


def _checkout_gaps(items: list[Item]) -> list[str]:
    commit = checkout.commit(paths.ROOT)
    if commit == "unknown":
        return ["the repository: this is no git checkout, so a clean clone may differ from it"]
    gaps = []
    if not checkout.is_pushed(paths.ROOT):
        gaps.append(f"commit {commit[:12]}: no remote branch has it, a clean clone won't either; push it")
    inside = {item.target for item in items if item.base == "repository"}
    changed = [path for path in checkout.changed_paths(paths.ROOT) if path not in inside]
    if changed:
        more = f" and {len(changed) - _SHOWN_PATHS} more" if len(changed) > _SHOWN_PATHS else ""
        gaps.append(f"uncommitted changes: {', '.join(changed[:_SHOWN_PATHS])}{more}")
    return gaps
