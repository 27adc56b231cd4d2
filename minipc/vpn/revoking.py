"""Take a client off the list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minipc.config import load
from minipc.core.errors import ConfigError
from minipc.vpn.peers import Peer


def without(environment: str, data: Mapping[str, Any], name: str, peers: Sequence[Peer]) -> list[Peer]:
    """Return the list of clients without one of them.

    Args:
        environment: of the machine.
        data: of its entry in the inventory.

    Raises:
        ConfigError: there is no such client, or it is the last one and SSH is possible only through the VPN.
    """
    changed = [peer for peer in peers if peer.get("name") != name]
    if len(changed) == len(peers):
        names = ", ".join(str(peer.get("name")) for peer in peers) or "none"
        raise ConfigError(
            f"inventory/vpn_peers.json has no client {name!r}; it has: {names}", "`minipc vpn list` shows all of them"
        )
    check(environment, data, changed)
    return changed


def check(environment: str, data: Mapping[str, Any], peers: Sequence[Peer]) -> None:
    """Accept a list of clients. Raise ConfigError if it is not valid, or would lock everybody out."""
    overrides = {key: value for key, value in data.items() if not key.startswith(("ssh_", "_"))}
    load(environment, **overrides | {"vpn_peers": list(peers)})
