"""The list of peers: `inventory/vpn_peers.json`, kept by `minipc vpn`, read by `group_data/production.py`.

Public keys and addresses only; it belongs in git.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from minipc.errors import ConfigError
from minipc.paths import ROOT

PEERS_FILE = ROOT / "inventory" / "vpn_peers.json"

Peer = dict[str, Any]


def read_peers(path: Path = PEERS_FILE) -> list[Peer]:
    """The peers, for `vpn_peers`; none when there is no file. The schema judges each of them.

    Raises:
        ConfigError: the file is no JSON list.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ConfigError(f"{path} is not what `minipc vpn add` writes", "restore it from git")
    return found


def write_peers(peers: Sequence[Peer], path: Path = PEERS_FILE) -> None:
    """Replaces the list atomically."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(list(peers), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def free_addresses(networks: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The next free address of each network, as /32 or /128: at the same place in each.

    Args:
        networks: of the tunnel; their first address is the machine's.
        taken: the allowed_ips of all peers.

    Raises:
        ConfigError: one of the networks is full.
    """
    spaces = [ip_network(network) for network in networks]
    used = [ip_network(each) for each in taken]
    # Without a network's last address: IPv4's is the broadcast address.
    for place in range(2, min(space.num_addresses for space in spaces) - 1):
        found = [ip_network(space[place]) for space in spaces]
        if not any(one.version == other.version and one.overlaps(other) for one in found for other in used):
            return [str(each) for each in found]
    raise ConfigError(f"no free address is left in {networks[0]}", "revoke a peer, or enlarge vpn_network")
