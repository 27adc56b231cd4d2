"""Refuse to provision the wrong machine.

The inventory, `config.py` and each deploy (through `deploying.config`) call these guards, so plain `pyinfra` refuses as
well as the CLI does.

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

from minipc.config import Settings
from minipc.config.components import missing_needs
from minipc.core.environment import named
from minipc.core.errors import ConfigError, MinipcError, RefusedError
from minipc.pyinfra_ext.abort import stop
from minipc.pyinfra_ext.facts.backups import BackupsState
from minipc.pyinfra_ext.facts.files import FileContents
from minipc.pyinfra_ext.facts.machine import IDENTITY_FILE, Absent, Admission

DEBIAN_VERSION = "13"
# The packages of all components need 900 MB; a database on a full disk stops.
NEEDED_MB = 1536
VPN_INTERFACE = "wg0"


def refuse_another_database() -> None:
    """Refuse a machine whose database is not the one in its backups."""
    host = context.host
    found = host.get_fact(BackupsState)
    if found.live and found.stanza and found.live != found.stanza:
        _refuse(
            f"{host.name}: the running database (system identifier {found.live}) is not the one that was backed up "
            f"({found.stanza})",
            "restore the backup (docs/howto/restore-drill.md); if you want to keep the new database, remove "
            "/var/lib/minipc/backups/stanza.json and the stanzas. Nothing was changed",
        )


def refuse_replaced_key(own: str, authorized: str, replaced: str) -> list[str]:
    """Refuse the key of a machine that was replaced: this computer's secrets are older than the last rebuild.

    Args:
        own: the public key in these secrets.
        authorized, replaced: paths on the off-site host of the admitted key and of the revoked keys.

    Returns:
        The revoked keys, once `own` is installed.
    """
    found = context.host.get_fact(FileContents, paths=[authorized, replaced])
    try:
        return replaced_keys(own, found.get(authorized, b"").decode(), found.get(replaced, b"").decode())
    except MinipcError as error:
        stop(error)


def replaced_keys(own: str, authorized: str, replaced: str) -> list[str]:
    """Return the revoked keys, from the content of both files. Raise RefusedError if `own` is one of them."""
    gone = replaced.splitlines()
    if own in gone:
        raise RefusedError(
            "these secrets are older than the last rebuild: a converge would let the replaced machine in again and "
            "lock the new one out of its backups",
            "get the newer secrets: pull secrets/production.age, or open the newest bundle. Nothing was changed",
        )
    # `restrict ssh-ed25519 AAAA… mini PC`
    before = [" ".join(line.split()[1:3]) for line in authorized.splitlines()]
    return list(dict.fromkeys([*gone, *(key for key in before if key != own)]))


def admit(name: str, pinned: str | None, found: Admission) -> None:
    """Check that this is the machine in the inventory and that it can be converged.

    Raises:
        RefusedError: the message names the condition that is not met.
    """
    adopt = f"run `minipc adopt {name} --fingerprint SHA256:…`, if the machine is blank or was enrolled before"
    if not pinned:
        raise RefusedError(f"{name}: the inventory does not pin an identity for this machine", adopt)
    if not found.identity:
        raise RefusedError(f"{name}: the machine has no identity ({IDENTITY_FILE}); it was not adopted", adopt)
    if found.identity != pinned:
        raise RefusedError(
            f"{name}: this is another machine: its identity is {found.identity}, the inventory pins {pinned}",
            "check the address in inventory/; nothing was changed",
        )
    if found.user != "root":
        raise RefusedError(
            f"{name}: logged in as {found.user}; converging needs root",
            'set user="root" in inventory/; root may log in by key, from the operator side. Nothing was changed',
        )
    if found.version != DEBIAN_VERSION:
        raise RefusedError(
            f"{name}: Debian {DEBIAN_VERSION} is needed, the machine has {found.version or 'something else'}",
            f"install Debian {DEBIAN_VERSION}; nothing was changed",
        )
    if found.free_mb < NEEDED_MB:
        raise RefusedError(
            f"{name}: {found.free_mb} MB free below /var, {NEEDED_MB} MB are needed",
            "find what fills it: `du -xh --max-depth=3 /var | sort -h | tail`. Nothing was changed",
        )


def refuse_lockout(name: str, settings: Settings, found: Admission) -> None:
    """Refuse settings with which the firewall or sshd would lock us out.

    Args:
        found: source and destination of our SSH connection, as the machine sees it; empty on a console.

    Raises:
        RefusedError: our address is not in the operator's networks, our port is not open to the operator, or our
            interface is not one of the operator's.
    """
    firewall = settings.firewall
    networks = [*firewall.operator_networks, *settings.vpn.networks]
    nothing = "nothing was changed"
    if not found.client:
        return
    if not any(ip_address(found.client) in ip_network(network) for network in networks):
        raise RefusedError(
            f"{name}: you connect from {found.client}, which is neither in firewall_operator_networks "
            f"({', '.join(firewall.operator_networks)}) nor in the VPN: the firewall would lock you out",
            f"add your network; {nothing}",
        )
    if found.port not in firewall.operator_tcp:
        raise RefusedError(
            f"{name}: your SSH connection uses port {found.port}, which is not in firewall_operator_tcp "
            f"({', '.join(map(str, firewall.operator_tcp))}): the firewall would lock you out",
            f"add the port; {nothing}",
        )
    if found.interface not in (*firewall.operator_interfaces, VPN_INTERFACE):
        raise RefusedError(
            f"{name}: your SSH connection uses {found.interface or 'an unknown interface'}, which is not in "
            f"firewall_operator_interfaces ({', '.join(firewall.operator_interfaces)}): you would be locked out",
            f"correct the interfaces (on the machine: `ip -br link`); {nothing}",
        )


def refuse_wrong_order(name: str, deploys: Sequence[str]) -> None:
    """Refuse a component if a component that it needs is neither on the machine nor in the same run.

    Args:
        deploys: names of the deploy files; `site` stands for everything.

    Raises:
        RefusedError: the message names the component that must come first.
    """
    needs = missing_needs(deploys)
    absent = context.host.get_fact(Absent, paths=list(needs)) if needs and "site" not in deploys else []
    if absent:
        first = {needs[trace][0]: None for trace in absent}
        wanted = ", ".join(f"`{needs[trace][1]}` needs `{needs[trace][0]}`" for trace in absent)
        raise RefusedError(
            f"{name}: {wanted}, which is not on the machine",
            f"run `minipc apply {' '.join([*first, *deploys])}`, or for everything `minipc apply`. Nothing was changed",
        )


def refuse_unsafe_options() -> None:
    """Refuse the pyinfra options that make a failure look like a success (pyinfra 3.10: `--no-wait` exits 0)."""
    params = _pyinfra_options()
    if params.get("no_wait"):
        _refuse("--no-wait exits 0 even when operations fail", "run without --no-wait")
    if params.get("dry") and params.get("yes"):
        _refuse("--dry together with -y reports no changes at all", "run with --dry alone, or `minipc plan`")


def refuse_empty_match(hosts: Sequence[tuple[str, dict[str, Any]]], group: str) -> None:
    """Refuse an inventory, or a --limit, without any machine: pyinfra would do nothing and exit 0."""
    names = [name for name, _ in hosts]
    if not names and _pyinfra_options():
        step = named(group).add_machine.format(file=f"inventory/{group}.py")
        _refuse(f"the inventory `{group}` has no machines", step)
    for name, data in hosts if _pyinfra_options() else ():
        _refuse_unpinned(name, data)
    for pattern in _pyinfra_options().get("limit") or ():
        if not any(fnmatch.fnmatch(name, pattern) for name in [*names, group]):
            _refuse(f"--limit {pattern} matches no machine; the inventory has: {', '.join(names)}", "correct the name")


def _refuse_unpinned(name: str, data: Mapping[str, Any]) -> None:
    """Refuse a machine without a pinned host key or private key file, because pyinfra's own error is not clear."""
    patterns = _pyinfra_options().get("limit") or ["*"]
    if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
        return
    known_hosts, key = Path(data["ssh_known_hosts_file"]), data.get("ssh_key")
    if not known_hosts.exists() or not known_hosts.read_text(encoding="utf-8").strip():
        _refuse(f"{name}: the inventory pins no SSH host key", f"run `minipc adopt {name} --fingerprint SHA256:…`")
    if key and not Path(key).is_file():
        stop(
            ConfigError(
                f"{name}: there is no private key {key}",
                "correct `key=` in inventory/, or create a key with ssh-keygen",
            )
        )


def _pyinfra_options() -> dict[str, Any]:
    current = click.get_current_context(silent=True)
    return current.params if current and current.info_name and "pyinfra" in current.info_name else {}


def _refuse(what: str, next_step: str) -> NoReturn:
    stop(RefusedError(what, next_step))
