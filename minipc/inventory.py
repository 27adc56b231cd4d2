"""What the inventory files are written with, and how the CLI reads them."""

from __future__ import annotations

import os
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minipc.components import Role, role_of
from minipc.config import Settings, load
from minipc.config.load import group_data
from minipc.errors import ConfigError
from minipc.paths import ROOT
from minipc.pins import Pin, known_hosts_file, read_pins
from minipc.transport import without_delay
from minipc.variables import BREAK_GLASS_VARIABLE

Environment = Literal["lab", "production"]
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
    """One machine, as pyinfra's inventory wants it: name and data.

    Args:
        address: where SSH answers.
        lan_address: where it answers beside the VPN: to `minipc adopt` and `minipc rebuild`, and with `--break-glass`.
        key: private key file; None leaves it to the SSH agent and the usual files.
        pin: host key and identity; None takes them from `inventory/pins.json`, where `minipc adopt` puts them.
        data: anything else the machine needs, such as overrides of group_data.
    """
    pin = pin or read_pins().get(alias)
    if os.environ.get(BREAK_GLASS_VARIABLE):
        # Whoever comes in beside the VPN keeps that way open; the next converge through the VPN closes it.
        address = lan_address or address
        data |= {"firewall_operator_access": "networks"}
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


def offsite_machine(alias: str, address: str, *, group: Environment = "production", **data: Any) -> HostEntry:
    """The off-site machine, an entry as `target` makes it: its own host name, and open ports of its own."""
    values = group_data(group)
    ports = [values["offsite_sftp_port"], values["offsite_rest_port"], values["watcher_ping_port"]]
    own: dict[str, Any] = {
        "host_name": alias,
        "firewall_public_tcp": ports,
        "firewall_public_udp": [],
        "edge_http3": False,
        "firewall_operator_access": "networks",  # it has no VPN of its own
        "firewall_operator_tcp": [22],  # nor a cluster
    }
    return target(alias, address, **(own | data))


def agent_machine(alias: str, address: str, *, server: str, **data: Any) -> HostEntry:
    """A further machine of a cluster, an entry as `target` makes it: its own host name, and nothing for the public.

    Args:
        address: where SSH answers, and the cluster's other machines reach it, unless `k3s_node_ip` says another.
        server: alias of the mini PC whose cluster it joins.
    """
    own: dict[str, Any] = {
        "host_name": alias,
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


def inventory_file(environment: Environment) -> Path:
    """`inventory/<environment>.py`."""
    return ROOT / "inventory" / f"{environment}.py"


def targets(environment: Environment) -> list[Target]:
    """The machines of an inventory file, each with its checked settings; other lists there give roles (`LISTS`).

    Raises:
        ConfigError: the file can't be read, or a setting is wrong.
    """
    path = inventory_file(environment)
    try:
        lists = runpy.run_path(str(path))
        hosts: list[HostEntry] = lists[environment]
    except KeyError:
        raise ConfigError(f"{path} defines no list `{environment}`", "restore the list") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", "restore it from git") from None
    found = []
    for alias, data in hosts:
        overrides = {key: value for key, value in data.items() if not key.startswith(("ssh_", "_"))}
        of = [name for name, members in lists.items() if isinstance(members, list) and alias in members]
        found.append(Target(alias, data, load(environment, **overrides), role_of(of)))
    return found


def the_target(environment: Environment, alias: str | None = None) -> Target:
    """The named machine, or the only mini PC there is.

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
        step = "`minipc lab up` makes one" if environment == "lab" else f"correct the name or add it to {where}"
        raise ConfigError(f"{where} has no machine{f' {alias!r}' if alias else ''}; there are: {names}", step)
    raise ConfigError(f"{where} has several machines: {names}", "name one with --host")


def offsite_target(environment: Environment, mini: Target) -> Target | None:
    """The off-site machine that keeps a mini PC's backups; None when its inventory names none.

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
