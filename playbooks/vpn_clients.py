"""Add and revoke VPN clients. They are kept in `inventory/vpn_peers.json`; the next converge installs them.

minipc vpn add NAME      minipc vpn revoke NAME
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minipc.core.errors import RefusedError
from minipc.core.files import create_private
from minipc.remote.inventory import Target
from minipc.secrets import Secret, load
from minipc.secrets.catalogue import VPN_KEY
from minipc.secrets.generate import wireguard_private_key
from minipc.vpn.client import client_config, qr_code
from minipc.vpn.keys import public_key
from minipc.vpn.peers import Peer, free_addresses, read_peers, write_peers
from minipc.vpn.revoking import check, without


@dataclass(frozen=True, repr=False)
class Added:
    """A new client. It has no repr, because its configuration contains the private key."""

    text: str
    path: Path
    addresses: list[str]


def add(target: Target, name: str, path: Path) -> Added:
    """Add a client, and write its configuration to a private file (0600).

    Raises:
        RefusedError: the file exists.
        ConfigError: the name is taken or not valid, or no address is free.
        SecretError: the machine's own key is missing.
    """
    text, peers = new_peer(target, name, read_peers())
    if not create_private(path, text.encode()):
        raise RefusedError(f"{path} exists", "move it away, or give another --output")
    write_peers(peers)
    return Added(text, path, peers[-1]["allowed_ips"])


def revoke(target: Target, name: str) -> None:
    """Remove a client. Raises as `without`."""
    write_peers(without(target.settings.environment, target.data, name, read_peers()))


def new_peer(target: Target, name: str, peers: Sequence[Peer]) -> tuple[str, list[Peer]]:
    """Return the configuration of a new client, and the list of clients with it.

    Raises:
        ConfigError: the name is taken or not valid, or no address is free.
        SecretError: the machine's own key is missing.
    """
    vpn = target.settings.vpn
    private = Secret("vpn.device", wireguard_private_key())
    allowed_ips = free_addresses(vpn.networks, [ip for peer in vpn.peers for ip in peer.allowed_ips])
    changed = [*peers, {"name": name, "public_key": public_key(private), "allowed_ips": allowed_ips}]
    check(target.settings.environment, target.data, changed)
    server = load(target.settings.environment, [VPN_KEY])[VPN_KEY]
    return client_config(target.settings, private, public_key(server), allowed_ips), changed


def shown(added: Added) -> list[str]:
    """Return the QR code for the WireGuard app if a person sees it: it is the private key, so no log may have it."""
    return [qr_code(added.text)] if sys.stdout.isatty() else []
