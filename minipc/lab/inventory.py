"""The lab's machines as inventory entries; also as stand-ins for production (`minipc rehearse --as production`)."""

from __future__ import annotations

import os
from typing import Any

from minipc.config.load import group_data
from minipc.inventory import HostEntry, agent_machine, offsite_machine, target
from minipc.lab import tunnel
from minipc.lab.machine import Machine, load_all
from minipc.lab.ssh import client_key, client_public_key
from minipc.lab.zone import Zone, zone_of
from minipc.paths import state_dir
from minipc.pins import Pin, read_pins, write_pin
from minipc.records import Override
from minipc.variables import LAB_VPN_VARIABLE, REHEARSE_AS_VARIABLE

OFFSITE, AGENT = "offsite-", "agent-"
# What the group says of the mini PC's name and ports is not another machine's.
OTHERS_OWN = {"host_name", "firewall_public_tcp", "firewall_public_udp", "firewall_operator_access", "edge_http3"}
OTHERS_OWN |= {"firewall_operator_tcp", "k3s_node_ip", "k3s_server"}

# What a disposable machine can't do without; everything else is production's when it stands for production.
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
    "watcher_channels": "what a watcher in the lab sees wakes nobody",
    "syslog_ng_loki_url": "logs of a disposable machine stay on it",
    "dns_provider": "nobody's real records are changed",
    "dns_follow": "nobody's real records are changed",
    "workload_runtime": "K3s needs artifacts that the lab may not have",
    "alertmanager_slack": "alerts of a disposable machine wake nobody",
}


def pins_file() -> Any:
    """Where the lab's pins are: beside its machines, not in the repository."""
    return state_dir("lab") / "pins.json"


def pin_lab_machine(alias: str, pin: Pin) -> None:
    """Pins a disposable machine."""
    write_pin(alias, pin, pins_file())


def lab_hosts() -> list[HostEntry]:
    """An inventory entry for each machine of the lab."""
    stands_for = os.environ.get(REHEARSE_AS_VARIABLE)
    data = stand_in_data(stands_for) if stands_for else {}
    return [entry(machine, **data) for machine in load_all()]


def entry(machine: Machine, **data: Any) -> HostEntry:
    """One disposable machine: the host key is the one made before it booted, the identity is what adoption gave it."""
    adopted = read_pins(pins_file()).get(machine.name)
    same = adopted and adopted.host_key == machine.host_key
    pin = Pin(host_key=machine.host_key, identity=adopted.identity if adopted and same else None)
    data |= {"host_operator_keys": [client_public_key()]}
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
            machine.name, machine.ssh_host, group="lab", user="root", key=client_key(), pin=pin, **data
        )
    offsite = _offsite_of(machine.name)
    # Somebody waits for the ping only where there is an off-site machine.
    data |= {"backups_offsite": offsite, "alertmanager_watchdog": offsite is not None}
    data |= tunnel.settings_of(machine.index, machine.public_ipv4)
    zone = zone_of(machine.name)
    if zone:
        data |= zone.data(data.get("edge_domain") or group_data("lab")["edge_domain"])
    if machine.k3s:
        data |= {"workload_runtime": "k3s", "firewall_operator_tcp": group_data("all")["firewall_operator_tcp"]}
        data |= {"k3s_node_ip": machine.operator_ipv4}
    address = tunnel.addresses(machine.index, 1)[0] if os.environ.get(LAB_VPN_VARIABLE) else machine.ssh_host
    return target(machine.name, address, user="root", key=client_key(), pin=pin, **data)


def is_offsite(name: str) -> bool:
    """Whether a lab machine is an off-site one: its name says so."""
    return name.startswith(OFFSITE)


def is_agent(name: str) -> bool:
    """Whether a lab machine is a further one of a cluster: its name says so, and of which."""
    return name.startswith(AGENT)


def _agent(machine: Machine, pin: Pin, data: dict[str, Any]) -> HostEntry:
    data = {key: value for key, value in data.items() if key not in OTHERS_OWN}
    if machine.k3s:
        data |= {"workload_runtime": "k3s"}
    server = machine.name.removeprefix(AGENT)
    return agent_machine(machine.name, machine.ssh_host, server=server, key=client_key(), pin=pin, **data)


def _offsite_of(name: str) -> str | None:
    """The off-site machine of a mini PC: `offsite-NAME` also serves `NAME-2`."""
    return next((machine.name for machine in load_all() if serves(machine.name, name)), None)


def serves(offsite: str, name: str) -> bool:
    """Whether the machine `offsite` is the off-site one of the machine `name`."""
    served = offsite.removeprefix(OFFSITE)
    return is_offsite(offsite) and (name == served or name.startswith(f"{served}-"))


def _watched_by(offsite: str) -> str | None:
    """Public address of the mini PC that an off-site machine belongs to: no DNS knows the lab's names."""
    served = offsite.removeprefix(OFFSITE)
    names = {machine.name: machine.public_ipv4 for machine in load_all()}
    return names.get(served)


def stand_in_data(group: str) -> dict[str, Any]:
    """Another group's values with the overrides the lab needs; as host data they win over group_data/lab.py."""
    lab = group_data("lab")
    return group_data(group) | {key: lab[key] for key in NEEDED_IN_LAB}


def overrides(group: str, zone: Zone | None = None) -> list[Override]:
    """Each value of the group that the lab replaced, and why.

    Args:
        zone: the lab's own, which held the public name.
    """
    theirs, lab = group_data(group), group_data("lab")
    own = zone.data(theirs["edge_domain"]) if zone else {}
    why_own = "a zone of the lab's own: nobody's real records are changed"
    used = [(key, lab[key], why) for key, why in NEEDED_IN_LAB.items() if key not in own]
    used += [(key, value, why_own) for key, value in own.items()]
    return [
        Override(key=key, production_value=repr(theirs[key]), used_value=repr(value), why=why)
        for key, value, why in used
        if theirs[key] != value
    ]
