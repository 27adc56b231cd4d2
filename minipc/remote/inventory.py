"""Inventory: functions that inventory files call to describe machines, and functions that read these files."""

from __future__ import annotations

import os
import runpy
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from minipc.config import Settings, load
from minipc.config.components import Role, role_of
from minipc.config.load import group_data
from minipc.core.environment import PRODUCTION, Environment
from minipc.core.errors import ConfigError
from minipc.core.variables import BREAK_GLASS_VARIABLE
from minipc.remote.pins import Pin, known_hosts_file, read_pins
from minipc.remote.sides import Side
from minipc.remote.transport import without_delay

HostEntry = tuple[str, dict[str, Any]]


def target(
    alias: str,
    address: str,
    *,
    port: int = 22,
    user: str = "root",
    key: str | Path | None = None,
    pin: Pin | None = None,
    lan_address: str | None = None,
    **data: Any,
) -> HostEntry:
    """Return one machine as pyinfra's inventory needs it: name and data.

    Args:
        address: where SSH answers.
        lan_address: where it answers outside the VPN: to `minipc adopt` and `minipc rebuild`, and with `--break-glass`.
        key: private key file; None leaves it to the SSH agent and the usual files.
        pin: host key and identity; None takes them from `inventory/pins.json`, where `minipc adopt` puts them.
        data: anything else the machine needs, such as overrides of group_data.
    """
    pin = pin or read_pins(PRODUCTION.pins_file).get(alias)
    if os.environ.get(BREAK_GLASS_VARIABLE):
        # A run that bypasses the VPN keeps its way in open; the next converge through the VPN closes it.
        address = lan_address or address
        data |= {"firewall_operator_access": "networks"}
    elif _in_the_vpn(address):
        data = {"firewall_operator_access": "vpn"} | data
    entry: dict[str, Any] = {
        "ssh_hostname": address,
        "lan_address": lan_address,
        "ssh_port": port,
        "ssh_user": user,
        "ssh_known_hosts_file": str(known_hosts_file(alias, address, port, pin)),
        "ssh_strict_host_key_checking": "yes",
        "ssh_paramiko_connect_kwargs": {"transport_factory": without_delay},
        "machine_identity": pin.identity if pin else None,
    }
    if key:
        entry |= {
            "ssh_key": str(Path(key).expanduser()),
            "ssh_allow_agent": False,
            "ssh_look_for_keys": False,
        }
    return alias, entry | data


def _in_the_vpn(address: str) -> bool:
    """Return whether this controller uses the tunnel, and group_data does not say who reaches the operator's ports."""
    values = group_data(PRODUCTION.name)
    if values["firewall_operator_access"] is not None:
        return False
    try:
        found = ip_address(address)
    except ValueError:
        return False
    networks = [ip_network(values["vpn_network"]), ip_network(values["vpn_network_ipv6"])]
    return any(found in network for network in networks if network.version == found.version)


def offsite_machine(alias: str, address: str, *, group: Environment = PRODUCTION, **data: Any) -> HostEntry:
    """Return the off-site host, an entry as `target` makes it, with its own host name and open ports."""
    values = group_data(group.name)
    # A user's file may still have the old name of the last one.
    receiver = values.get("watcher_ping_port", values["watcher_port"])
    ports = [values["offsite_sftp_port"], values["offsite_rest_port"], receiver]
    own: dict[str, Any] = {
        "host_name": alias,
        "host_disk_encryption": "none",  # the image is for the mini PC
        "firewall_public_tcp": ports,
        "firewall_public_udp": [],
        "edge_http3": False,
        "firewall_operator_access": "networks",  # it has no VPN of its own
        "firewall_operator_tcp": [22],  # nor a cluster
    }
    return target(alias, address, **(own | data))


def agent_machine(alias: str, address: str, *, server: str, **data: Any) -> HostEntry:
    """Return a further node of a cluster, an entry as `target` makes it: its own host name, no public ports.

    Args:
        address: where SSH answers, and the cluster's other machines reach it, unless `k3s_node_ip` says another.
        server: alias of the mini PC whose cluster it joins.
    """
    own: dict[str, Any] = {
        "host_name": alias,
        "host_disk_encryption": "none",  # the image is for the mini PC
        "k3s_server": server,
        "k3s_node_ip": address,
        "firewall_public_tcp": [],
        "firewall_public_udp": [],
        "edge_http3": False,
        "firewall_operator_access": "networks",  # it has no VPN of its own
        "firewall_operator_tcp": [22],  # nor the cluster's API
    }
    return target(alias, address, **(own | data))


@dataclass(frozen=True)
class Target:
    """A machine of the inventory with its settings.

    Attributes:
        role: "mini" for the mini PC, "offsite" for the machine that keeps its backups, "agent" for a further one of its
            cluster.
    """

    alias: str
    data: dict[str, Any]
    settings: Settings
    role: Role = "mini"

    def side(self, name: str) -> Side:
        """Return a place from which clients reach the machine: "public", "operator" or "vpn".

        The inventory entry describes it (`sides`). Without a description, it is where this computer is.
        """
        if described := self.data.get("sides", {}).get(name):
            side: Side = described
            return side
        if name == "vpn":
            return Side(name, self.settings.vpn.address, self.settings.vpn.address_ipv6)
        return Side(name, self.data["ssh_hostname"])


def targets(environment: Environment) -> list[Target]:
    """Return the machines of an inventory file with their checked settings; its other lists give roles (`LISTS`).

    Raises:
        ConfigError: the file can't be read, or a setting is wrong.
    """
    path = environment.inventory_file
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{path} is missing or cannot be read", "restore it from git")
    try:
        lists = runpy.run_path(str(path))
        hosts: list[HostEntry] = lists[environment.name]
    except KeyError:
        raise ConfigError(f"{path} defines no list `{environment}`", "restore the list") from None
    found = []
    for alias, data in hosts:
        overrides = {key: value for key, value in data.items() if not key.startswith(("ssh_", "_"))}
        of = [name for name, members in lists.items() if isinstance(members, list) and alias in members]
        found.append(Target(alias, data, load(environment.name, **overrides), role_of(of)))
    return found


def the_target(environment: Environment, alias: str | None = None) -> Target:
    """Return the named machine, or the only mini PC of the inventory.

    Raises:
        ConfigError: no machine, no such machine, or several and none named.
    """
    found = targets(environment)
    names = ", ".join(each.alias for each in found) or "none"
    found = [each for each in found if (each.alias == alias if alias else each.role == "mini")]
    if len(found) == 1:
        return found[0]
    where = f"inventory/{environment}.py"
    if not found:
        step = environment.add_machine.format(file=where)
        raise ConfigError(f"{where} has no machine{f' {alias!r}' if alias else ''}; there are: {names}", step)
    raise ConfigError(f"{where} has several machines: {names}", "name one with --host")


def offsite_target(environment: Environment, mini: Target) -> Target | None:
    """Return the off-site host that keeps a mini PC's backups; None if its inventory names none.

    Raises:
        ConfigError: `backups_offsite` names a machine that the inventory hasn't.
    """
    alias = mini.settings.backups.offsite
    if alias is None:
        return None
    found = [each for each in targets(environment) if each.alias == alias and each.role == "offsite"]
    if not found:
        raise ConfigError(
            f"backups_offsite of {mini.alias} is {alias!r}, which is not in the list `offsite` of "
            f"inventory/{environment}.py",
            "add the machine there, or set backups_offsite to None",
        )
    return found[0]
