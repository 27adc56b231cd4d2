"""One table of all credentials: what each allows, where it is, when it was renewed, and which check tries it.

minipc audit
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from minipc import config
from minipc.config import Settings
from minipc.config.components import BY_NAME
from minipc.core.environment import Environment
from minipc.evidence.display import console_for
from minipc.secrets import open_store
from minipc.secrets.age import AgeStore
from minipc.secrets.catalogue import Entry, whole
from minipc.secrets.identity import protection_of

_PLACES = {"mini": "mini PC", "offsite": "off-site host", "agent": "agents"}
UNKNOWN = "not known"


@dataclass(frozen=True)
class Credential:
    """A row: what it allows, where it is besides the secret store, the day of its renewal, the check that tries it."""

    name: str
    allows: str
    where: str
    renewed: str
    tested: str


def credentials(settings: Settings, present: dict[str, str], age_key: str = UNKNOWN) -> Iterator[Credential]:
    """Yield all credentials: those of the secret catalogue, then those that are keys of people and devices.

    Args:
        present: the secrets that are stored -> day of the last renewal, or UNKNOWN.
        age_key: what protects the age key on this computer.
    """
    entries = {entry.name: entry for entry in whole(settings)}
    for entry in entries.values():
        if entry.name in present:
            yield Credential(entry.name, entry.description, _where(entry), present[entry.name], _check(entry))
    for name in sorted(present.keys() - entries.keys()):
        yield Credential(name, "unused: no component and no service needs it", "secret store only", present[name], "")
    for key in settings.host.operator_keys:
        name = key.split(maxsplit=2)[-1]
        yield Credential(f"SSH key {name}", "root on every machine", "that person's computer", UNKNOWN, "verify host")
    for peer in settings.vpn.peers:
        yield Credential(f"VPN client {peer.name}", "the operator's ports", "that device", UNKNOWN, "verify vpn")
    if settings.secrets.backend == "age":
        where = f"controller ({age_key}), bundle"
        yield Credential("age key", "every secret here, also in old commits", where, UNKNOWN, "")
        for each in settings.secrets.age_recipients:
            yield Credential(
                f"age key {each[:12]}…", "every secret here, also in old commits", "another person", UNKNOWN, ""
            )


def _where(entry: Entry) -> str:
    return entry.on or ", ".join(_PLACES[role] for role in BY_NAME[entry.component].roles)


def _check(entry: Entry) -> str:
    """Return the command whose checks try what the credential allows."""
    module = entry.tested.partition("::")[0].removeprefix("test_")
    return f"verify {module}" if module else ""


def audit(environment: Environment) -> None:
    """Print the table. No value is read into it. Raises SecretError if the store cannot be read."""
    settings = config.load(environment.name)
    store = open_store(environment.name, settings.secrets)
    days = store.renewed()
    present = {name: days.get(name) or UNKNOWN for name in store.names()}
    table = Table("credential", "what it is and allows", "where", "renewed", "tested by")
    age_key = protection_of(store.key_path) if isinstance(store, AgeStore) else UNKNOWN
    for each in credentials(settings, present, age_key):
        table.add_row(each.name, each.allows, each.where, each.renewed, f"minipc {each.tested}" if each.tested else "-")
    console = console_for()
    console.print(table)
    console.print("renew one: minipc secrets renew NAME, or minipc secrets set NAME; then minipc apply", markup=False)
