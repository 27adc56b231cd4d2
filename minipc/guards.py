"""Never provision the wrong machine. Inventory, `config.py` and each deploy (by `minipc.deploying.config`) ask here, so
plain `pyinfra` refuses as well as the CLI does.

A refusal exits 3 before anything is written.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NoReturn

import click
from pyinfra import context

from minipc.components import missing_needs
from minipc.config import Settings
from minipc.errors import ConfigError, MinipcError, RefusedError
from minipc.facts.backups import BackupsState
from minipc.facts.files import FileContents
from minipc.facts.machine import IDENTITY_FILE, Absent, Admission
from minipc.halt import stop

DEBIAN_VERSION = "13"
# Packages of all components unpack to 900 MB; a database that finds no room stops.
NEEDED_MB = 1536
VPN_INTERFACE = "wg0"


def refuse_another_database() -> None:
    """Refuses a machine whose database is not the one that its backups were made of."""
    host = context.host
    found = host.get_fact(BackupsState)
    if found.live and found.stanza and found.live != found.stanza:
        _refuse(
            f"{host.name}: the running database (system identifier {found.live}) is not the one that was backed up "
            f"({found.stanza})",
            "restore the backup (docs/howto/restore-drill.md, by hand); if the new database is really meant, remove "
            "/var/lib/minipc/backups/stanza.json and the stanzas. Nothing was changed",
        )


def refuse_replaced_key(own: str, authorized: str, replaced: str) -> list[str]:
    """Refuses the key of a machine that was replaced: this computer's secrets are older than the last rebuild.

    Args:
        own: the public key that these secrets let in.
        authorized, replaced: paths on the off-site machine, of the key that gets in and of those that never may again.

    Returns:
        The keys that never may again once `own` is in place.
    """
    found = context.host.get_fact(FileContents, paths=[authorized, replaced])
    try:
        return replaced_keys(own, found.get(authorized, b"").decode(), found.get(replaced, b"").decode())
    except MinipcError as error:
        stop(error)


def replaced_keys(own: str, authorized: str, replaced: str) -> list[str]:
    """`refuse_replaced_key` for the content of both files. Raises RefusedError."""
    gone = replaced.splitlines()
    if own in gone:
        raise RefusedError(
            "these secrets are older than the last rebuild: the key of the machine that was replaced would get in "
            "again, and the one in its place would be locked out of its backups",
            "get the newer ones: pull secrets/production.age, or open the newest bundle. Nothing was changed",
        )
    # `restrict ssh-ed25519 AAAA… mini PC`
    before = [" ".join(line.split()[1:3]) for line in authorized.splitlines()]
    return list(dict.fromkeys([*gone, *(key for key in before if key != own)]))


def admit(name: str, pinned: str | None, found: Admission) -> None:
    """Whether this is the machine that the inventory means, and one that can be converged.

    Raises:
        RefusedError: says which condition isn't met.
    """
    adopt = f"`minipc adopt {name} --fingerprint SHA256:…` enrols a machine that is blank or already yours"
    if not pinned:
        raise RefusedError(f"{name}: the inventory pins no machine identity", adopt)
    if not found.identity:
        raise RefusedError(f"{name}: the machine has no identity ({IDENTITY_FILE}); it was never adopted", adopt)
    if found.identity != pinned:
        raise RefusedError(
            f"{name}: this is another machine: its identity is {found.identity}, the inventory pins {pinned}",
            "check the address in inventory/; nothing was changed",
        )
    if found.user != "root":
        raise RefusedError(
            f"{name}: logged in as {found.user}; converging needs root",
            'set user="root" in inventory/ (by key, from the operator side); nothing was changed',
        )
    if found.version != DEBIAN_VERSION:
        raise RefusedError(
            f"{name}: Debian {DEBIAN_VERSION} is needed, the machine has {found.version or 'something else'}",
            f"install Debian {DEBIAN_VERSION}; nothing was changed",
        )
    if found.free_mb < NEEDED_MB:
        raise RefusedError(
            f"{name}: {found.free_mb} MB free below /var, {NEEDED_MB} MB are needed",
            "look what fills it: `du -xh --max-depth=3 /var | sort -h | tail`; nothing was changed",
        )


def refuse_lockout(name: str, settings: Settings, found: Admission) -> None:
    """Refuses settings under which the firewall and sshd would no longer let us in.

    Args:
        found: whence and where our connection came in, as the machine sees it; nothing without SSH (a console).

    Raises:
        RefusedError: our address is in none of the operator's networks, our port is not among those that are open to
            the operator, or our interface is none of the operator's.
    """
    firewall = settings.firewall
    networks = [*firewall.operator_networks, *settings.vpn.networks]
    nothing = "nothing was changed"
    if not found.client:
        return
    if not any(ip_address(found.client) in ip_network(network) for network in networks):
        raise RefusedError(
            f"{name}: you come from {found.client}, which is in none of firewall_operator_networks "
            f"({', '.join(firewall.operator_networks)}) nor in the VPN: the firewall would lock you out",
            f"add the network you converge from; {nothing}",
        )
    if found.port not in firewall.operator_tcp:
        raise RefusedError(
            f"{name}: your SSH is on port {found.port}, which is not in firewall_operator_tcp "
            f"({', '.join(map(str, firewall.operator_tcp))}): the firewall would lock you out",
            f"add the port; {nothing}",
        )
    if found.interface not in (*firewall.operator_interfaces, VPN_INTERFACE):
        raise RefusedError(
            f"{name}: your SSH comes in through {found.interface or 'an unknown interface'}, which is none of "
            f"firewall_operator_interfaces ({', '.join(firewall.operator_interfaces)}): you would be locked out",
            f"correct the interfaces (on the machine: `ip -br link`); {nothing}",
        )


def refuse_wrong_order(name: str, deploys: Sequence[str]) -> None:
    """Refuses components whose needs are neither on the machine nor in the same run.

    Args:
        deploys: names of the deploy files, `site` among them when it is everything.

    Raises:
        RefusedError: names what comes first.
    """
    needs = missing_needs(deploys)
    absent = context.host.get_fact(Absent, paths=list(needs)) if needs and "site" not in deploys else []
    if absent:
        first = {needs[trace][0]: None for trace in absent}
        wanted = ", ".join(f"`{needs[trace][1]}` needs `{needs[trace][0]}`" for trace in absent)
        raise RefusedError(
            f"{name}: {wanted}, which is not on the machine",
            f"`minipc apply {' '.join([*first, *deploys])}`, or everything: `minipc apply`. Nothing was changed",
        )


def refuse_unsafe_options() -> None:
    """Refuses the pyinfra options that make a failure look like a success (pyinfra 3.10: `--no-wait` exits 0)."""
    params = _pyinfra_options()
    if params.get("no_wait"):
        _refuse("--no-wait exits 0 even when operations fail", "run without --no-wait")
    if params.get("dry") and params.get("yes"):
        _refuse("--dry together with -y reports no changes at all", "run with --dry alone, or `minipc plan`")


def refuse_empty_match(hosts: Sequence[tuple[str, dict[str, Any]]], group: str) -> None:
    """Refuses an inventory, or a --limit on it, that leaves no machine: pyinfra would do nothing and exit 0."""
    names = [name for name, _ in hosts]
    if not names and _pyinfra_options():
        _refuse(
            f"the inventory `{group}` has no machines",
            "bring one up with `minipc lab up`" if group == "lab" else "add your machine to inventory/production.py",
        )
    for name, data in hosts if _pyinfra_options() else ():
        _refuse_unpinned(name, data)
    for pattern in _pyinfra_options().get("limit") or ():
        if not any(fnmatch.fnmatch(name, pattern) for name in [*names, group]):
            _refuse(f"--limit {pattern} matches no machine; there are: {', '.join(names)}", "correct the name")


def _refuse_unpinned(name: str, data: Mapping[str, Any]) -> None:
    """Before pyinfra connects: without a pinned host key, or without our own key file, it could only fail obscurely."""
    patterns = _pyinfra_options().get("limit") or ["*"]
    if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
        return
    known_hosts, key = Path(data["ssh_known_hosts_file"]), data.get("ssh_key")
    if not known_hosts.exists() or not known_hosts.read_text(encoding="utf-8").strip():
        _refuse(f"{name}: the inventory pins no SSH host key", f"`minipc adopt {name} --fingerprint SHA256:…`")
    if key and not Path(key).is_file():
        stop(
            ConfigError(
                f"{name}: there is no private key {key}", "correct `key=` in inventory/, or make one: ssh-keygen"
            )
        )


def _pyinfra_options() -> dict[str, Any]:
    current = click.get_current_context(silent=True)
    return current.params if current and current.info_name and "pyinfra" in current.info_name else {}


def _refuse(what: str, next_step: str) -> NoReturn:
    stop(RefusedError(what, next_step))
