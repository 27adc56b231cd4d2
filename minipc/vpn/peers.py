"""The list of clients: `inventory/vpn_peers.json`, written by `minipc vpn`, read by `group_data/production.py`.

It contains only public keys and addresses, and belongs in git.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from minipc.core.errors import ConfigError
from minipc.core.files import write_atomic
from minipc.core.paths import ROOT

PEERS_FILE = ROOT / "inventory" / "vpn_peers.json"

Peer = dict[str, Any]


def read_peers(path: Path = PEERS_FILE) -> list[Peer]:
    """Return the clients, for `vpn_peers`; none if there is no file. The schema validates each of them.

    Raises:
        ConfigError: the file is not a JSON list.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ConfigError(f"{path} is not a list of VPN clients as `minipc vpn add` writes it", "restore it from git")
    return found


def write_peers(peers: Sequence[Peer], path: Path = PEERS_FILE) -> None:
    """Replace the list atomically."""
    write_atomic(path, (json.dumps(list(peers), indent=2) + "\n").encode(), mode=0o644)


def free_addresses(networks: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return the next free address of each network, as /32 or /128, at the same position in each network.

    Args:
        networks: networks of the tunnel; the first address of each is the machine's.
        taken: the allowed_ips of all clients.

    Raises:
        ConfigError: one of the networks is full.
    """
    spaces = [ip_network(network) for network in networks]
    used = [ip_network(each) for each in taken]
    # Without a network's last address, which is the broadcast address in IPv4.
    for place in range(2, min(space.num_addresses for space in spaces) - 1):
        found = [ip_network(space[place]) for space in spaces]
        if not any(one.version == other.version and one.overlaps(other) for one in found for other in used):
            return [str(each) for each in found]
    raise ConfigError(f"no free address is left in {networks[0]}", "revoke a client, or enlarge vpn_network")
