"""The lab's machines as inventory entries; also as stand-ins for production (`minipc rehearse --as production`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from minipc.config import services
from minipc.config.load import group_data
from minipc.core.environment import LAB, Environment, named
from minipc.core.variables import LAB_VPN_VARIABLE, REHEARSE_AS_VARIABLE
from minipc.evidence.records import Override
from minipc.remote.inventory import HostEntry, agent_machine, offsite_machine, target
from minipc.remote.pins import Pin, read_pins
from minipc.remote.sides import Side
from rehearsal.lab import offsite_storage, tunnel
from rehearsal.lab.machine import Machine, load_all
from rehearsal.lab.network import OPERATOR, PUBLIC
from rehearsal.lab.ssh import client_key, client_public_key
from rehearsal.lab.zone import Zone, resolver, zone_of

OFFSITE, AGENT = "offsite-", "agent-"
# The group's values for the mini PC's name and ports do not apply to another machine.
OTHERS_OWN = {"host_name", "firewall_public_tcp", "firewall_public_udp", "firewall_operator_access", "edge_http3"}
OTHERS_OWN |= {"firewall_operator_tcp", "k3s_node_ip", "k3s_server", "backups_offsite"}

# Overrides that a disposable machine needs; everything else is production's if it is rehearsed as production.
NEEDED_IN_LAB = {
    "environment": "generated secrets; production's are never used in the lab",
    "host_operator_keys": "the lab's own key, so that nobody else gets in",
    "firewall_public_interfaces": "the lab's interfaces",
    "firewall_operator_interfaces": "the lab's interfaces",
    "firewall_operator_networks": "the lab's networks",
    "firewall_operator_access": "the lab reaches its machines without the tunnel, too",
    "vpn_endpoint": "the lab's addresses",
    "vpn_peers": "the lab's own client",
    "edge_acme": "no ACME server reaches the lab",
    "edge_acme_url": "no ACME server reaches the lab",
    "edge_acme_root": "no ACME server reaches the lab",
    "firewall_operator_tcp": "ports of K3s only where it runs",
    "syslog_ng_loki_url": "logs of a disposable machine stay on it",
    "dns_provider": "nobody's real records are changed",
    "dns_follow": "nobody's real records are changed",
    "argocd_repository": "the lab hosts its own deploy repository",
    "argocd_known_hosts": "the lab hosts its own deploy repository",
    "argocd_path": "the lab hosts its own deploy repository",
    "services_runtime": "K3s needs artifacts that the lab may not have",
    "offsite_kind": "the lab has its own off-site side",
    "offsite_s3": "the lab has its own off-site side",
    "offsite_sftp": "the lab has its own off-site side",
    "backups_offsite": "the lab has its own off-site side",
    "alertmanager_channels": "alerts of a disposable machine wake nobody",
}


def lab_hosts() -> list[HostEntry]:
    """Return an inventory entry for each machine of the lab."""
    stands_for = os.environ.get(REHEARSE_AS_VARIABLE)
    data = stand_in_data(named(stands_for)) if stands_for else {}
    return [entry(machine, **data) for machine in load_all()]


def entry(machine: Machine, **data: Any) -> HostEntry:
    """Return one disposable machine: its host key was generated before it booted, adoption gave it the identity."""
    adopted = read_pins(LAB.pins_file).get(machine.name)
    same = adopted and adopted.host_key == machine.host_key
    pin = Pin(host_key=machine.host_key, identity=adopted.identity if adopted and same else None)
    data |= {"host_operator_keys": [client_public_key()], "sides": sides(machine)}
    if is_agent(machine.name):
        return _agent(machine, pin, data)
    if is_offsite(machine.name):
        data = {key: value for key, value in data.items() if key not in OTHERS_OWN}
        # Reached where the public is, as an off-site machine would be.
        data |= {"offsite_address": machine.public_ipv4, "watcher_address": _watched_by(machine.name)}
        data |= {
            "offsite_deploy_repository": any(other.k3s for other in load_all() if serves(machine.name, other.name))
        }
        return offsite_machine(
            machine.name, machine.ssh_host, group=LAB, user="root", key=client_key(), pin=pin, **data
        )
    offsite = _offsite_of(machine.name)
    data |= offsite_storage.settings_of(offsite) or {"backups_offsite": offsite}
    data |= tunnel.settings_of(machine.index, machine.public_ipv4)
    zone = zone_of(machine.name)
    if zone:
        data |= zone.data(public_names(data if "services_folders" in data else group_data("lab")))
    if machine.k3s:
        data |= {"services_runtime": "k3s", "firewall_operator_tcp": group_data("all")["firewall_operator_tcp"]}
        data |= {"k3s_node_ip": machine.operator_ipv4}
    address = tunnel.addresses(machine.index, 1)[0] if os.environ.get(LAB_VPN_VARIABLE) else machine.ssh_host
    return target(machine.name, address, user="root", key=client_key(), pin=pin, **data)


def sides(machine: Machine) -> dict[str, Side]:
    """Return the sides of a machine: a namespace for the public and the operator each, and the VPN in the latter."""
    zone = zone_of(machine.name)
    public = Side(
        PUBLIC.name,
        machine.public_ipv4,
        machine.public_ipv6,
        prefix=("ip", "netns", "exec", PUBLIC.name),
        resolver=resolver(zone) if zone else (),
    )
    prefix = ("ip", "netns", "exec", OPERATOR.name)
    return {
        public.name: public,
        OPERATOR.name: Side(OPERATOR.name, machine.operator_ipv4, machine.operator_ipv6, prefix),
        "vpn": Side(
            "vpn",
            *tunnel.addresses(machine.index, 1),
            prefix=prefix,
            connect=(sys.executable, "-m", "rehearsal.lab.tunnel", machine.name),
        ),
    }


def is_offsite(name: str) -> bool:
    """Return whether a lab machine is an off-site host, from its name."""
    return name.startswith(OFFSITE)


def is_agent(name: str) -> bool:
    """Return whether a lab machine is an agent of a cluster, from its name."""
    return name.startswith(AGENT)


def public_names(data: Mapping[str, Any]) -> list[str]:
    """Return the names that the public uses, as the services of a group have them."""
    found = services.dns_records(services.read(data["services_folders"]), ipv6=False)
    return [record["name"] for record in found]


def _agent(machine: Machine, pin: Pin, data: dict[str, Any]) -> HostEntry:
    data = {key: value for key, value in data.items() if key not in OTHERS_OWN}
    if machine.k3s:
        data |= {"services_runtime": "k3s"}
    server = machine.name.removeprefix(AGENT)
    return agent_machine(machine.name, machine.ssh_host, server=server, key=client_key(), pin=pin, **data)


def _offsite_of(name: str) -> str | None:
    """Return the off-site host of a mini PC: `offsite-NAME` also serves `NAME-2`."""
    return next((machine.name for machine in load_all() if serves(machine.name, name)), None)


def serves(offsite: str, name: str) -> bool:
    """Return whether the machine `offsite` is the off-site host of the machine `name`."""
    served = offsite.removeprefix(OFFSITE)
    return is_offsite(offsite) and (name == served or name.startswith(f"{served}-"))


def _watched_by(offsite: str) -> str | None:
    """Return the public address of an off-site host's mini PC, because no DNS has the lab's names.

    While a machine and its replacement both exist, it is the former's, whose name is the shorter one.
    """
    served = [machine for machine in load_all() if serves(offsite, machine.name)]
    return min(served, key=lambda machine: len(machine.name)).public_ipv4 if served else None


def stand_in_data(group: Environment) -> dict[str, Any]:
    """Return another group's values with the overrides of the lab. As host data they override group_data/lab.py."""
    lab = group_data("lab")
    return group_data(group.name) | {key: lab[key] for key in NEEDED_IN_LAB}


def overrides(group: Environment, zone: Zone | None = None) -> list[Override]:
    """Return each value of the group that the lab replaced, with the reason.

    Args:
        zone: the lab's own, which held the public name.
    """
    theirs, lab = group_data(group.name), group_data("lab")
    own = zone.data(public_names(theirs)) if zone else {}
    why_own = "a zone of the lab's own: nobody's real records are changed"
    used = [(key, lab[key], why) for key, why in NEEDED_IN_LAB.items() if key not in own]
    used += [(key, value, why_own) for key, value in own.items()]
    return [
        Override(key=key, production_value=repr(theirs[key]), used_value=repr(value), why=why)
        for key, value, why in used
        if theirs[key] != value
    ]
