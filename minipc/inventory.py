"""What the inventory files are written with, and how the CLI reads them."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minipc.config import Settings, load
from minipc.errors import ConfigError
from minipc.paths import ROOT
from minipc.pins import Pin, known_hosts_file, read_pins
from minipc.transport import without_delay

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
    **data: Any,
) -> HostEntry:
    """One machine, as pyinfra's inventory wants it: name and data.

    Args:
        address: where SSH answers.
        key: private key file; None leaves it to the SSH agent and the usual files.
        pin: host key and identity; None takes them from `inventory/pins.json`, where `minipc adopt` puts them.
        data: anything else the machine needs, such as overrides of group_data.
    """
    pin = pin or read_pins().get(alias)
    entry: dict[str, Any] = {
        "ssh_hostname": address,
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


@dataclass(frozen=True)
class Target:
    """A machine of the inventory with its settings."""

    alias: str
    data: dict[str, Any]
    settings: Settings


def inventory_file(environment: Environment) -> Path:
    """`inventory/<environment>.py`."""
    return ROOT / "inventory" / f"{environment}.py"


def targets(environment: Environment) -> list[Target]:
    """The machines of an inventory file, each with its checked settings.

    Raises:
        ConfigError: the file can't be read, or a setting is wrong.
    """
    path = inventory_file(environment)
    try:
        hosts: list[HostEntry] = runpy.run_path(str(path))[environment]
    except KeyError:
        raise ConfigError(f"{path} defines no list `{environment}`", "restore the list") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", "restore it from git") from None
    found = []
    for alias, data in hosts:
        overrides = {key: value for key, value in data.items() if not key.startswith(("ssh_", "_"))}
        found.append(Target(alias, data, load(environment, **overrides)))
    return found


def the_target(environment: Environment, alias: str | None = None) -> Target:
    """The named machine, or the only one there is.

    Raises:
        ConfigError: no machine, no such machine, or several and none named.
    """
    found = targets(environment)
    names = ", ".join(each.alias for each in found) or "none"
    if alias:
        found = [each for each in found if each.alias == alias]
    if len(found) == 1:
        return found[0]
    where = f"inventory/{environment}.py"
    if not found:
        step = "`minipc lab up` makes one" if environment == "lab" else f"correct the name or add it to {where}"
        raise ConfigError(f"{where} has no machine{f' {alias!r}' if alias else ''}; there are: {names}", step)
    raise ConfigError(f"{where} has several machines: {names}", "name one with --host")
