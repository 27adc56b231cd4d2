"""`minipc vpn`: add, list, revoke. They change `inventory/vpn_peers.json`; a converge brings that to the machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from minipc.errors import ConfigError, RefusedError
from minipc.inventory import Target, the_target
from minipc.paths import config_dir
from minipc.secrets import Secret, load
from minipc.secrets.catalogue import VPN_KEY
from minipc.secrets.files import create_private
from minipc.secrets.generate import wireguard_private_key
from minipc.vpn.client import client_config, qr_code
from minipc.vpn.keys import public_key
from minipc.vpn.peers import Peer, free_addresses, read_peers, write_peers

NEXT = "commit inventory/vpn_peers.json, then: minipc apply vpn"


@click.group()
def vpn() -> None:
    """The devices that may connect to the operator's VPN."""


@vpn.command()
@click.argument("name")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the device's file goes.")
@click.option("--qr/--no-qr", default=None, help="Show the QR code, for a phone's app; by default on a terminal only.")
def add(name: str, output: Path | None, qr: bool | None) -> None:
    """Make a device's key and configuration (0600), and put the device on the list."""
    target = the_target("production")
    path = output or config_dir("vpn") / f"{name}.conf"
    text, peers = new_peer(target, name, read_peers())
    if not create_private(path, text.encode()):
        raise RefusedError(f"{path} is there already", "move it away, or give another --output")
    write_peers(peers)
    # It holds the private key: not for a log that somebody's output goes to.
    if sys.stdout.isatty() if qr is None else qr:
        click.echo(qr_code(text))
    click.echo(f"{name} may connect as {', '.join(peers[-1]['allowed_ips'])}, once the machine knows it")
    click.echo(f"its configuration, private key included: {path}  (wg-quick up {path})")
    click.echo(NEXT)


@vpn.command("list")
@click.option("--seen", is_flag=True, help="Ask the machine when each was last there.")
def list_command(seen: bool) -> None:
    """List the devices: name, addresses, public key."""
    target = the_target("production")
    last = _last_handshakes(target) if seen else {}
    for peer in target.settings.vpn.peers:
        when = f"  {last.get(peer.public_key, 'not known to the machine')}" if seen else ""
        click.echo(f"{peer.name:20} {', '.join(peer.allowed_ips):40} {peer.public_key}{when}")
    click.echo(f"{len(target.settings.vpn.peers)} devices")


@vpn.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Take a device off the list: after the next converge its key opens nothing."""
    target = the_target("production")
    peers = without(target, name, read_peers())
    write_peers(peers)
    click.echo(f"{name} is off the list; until the next converge it still gets in. {NEXT}")


def new_peer(target: Target, name: str, peers: Sequence[Peer]) -> tuple[str, list[Peer]]:
    """A new device's configuration, and the list with it.

    Raises:
        ConfigError: the name is taken or not valid, or no address is free.
        SecretError: the machine's own key is missing.
    """
    vpn = target.settings.vpn
    private = Secret("vpn.device", wireguard_private_key())
    allowed_ips = free_addresses(vpn.networks, [ip for peer in vpn.peers for ip in peer.allowed_ips])
    changed = [*peers, {"name": name, "public_key": public_key(private), "allowed_ips": allowed_ips}]
    _check(target, changed)
    server = load(target.settings.environment, [VPN_KEY])[VPN_KEY]
    return client_config(target.settings, private, public_key(server), allowed_ips), changed


def without(target: Target, name: str, peers: Sequence[Peer]) -> list[Peer]:
    """The list without a device.

    Raises:
        ConfigError: there is no such device, or it is the last one where the VPN is the only way in.
    """
    changed = [peer for peer in peers if peer.get("name") != name]
    if len(changed) == len(peers):
        names = ", ".join(str(peer.get("name")) for peer in peers) or "none"
        raise ConfigError(f"no device {name!r} in inventory/vpn_peers.json; there are: {names}", "minipc vpn list")
    _check(target, changed)
    return changed


def _check(target: Target, peers: Sequence[Peer]) -> None:
    from minipc.config import load as load_settings

    overrides = {key: value for key, value in target.data.items() if not key.startswith(("ssh_", "_"))}
    load_settings(target.settings.environment, **overrides | {"vpn_peers": list(peers)})


def _last_handshakes(target: Target) -> dict[str, str]:
    from minipc.remote import on

    lines = on(target, "date +%s; wg show wg0 latest-handshakes").splitlines()
    now = int(lines[0])
    found = dict(line.split() for line in lines[1:])
    return {key: f"{(now - int(at)) // 60} min ago" if int(at) else "never" for key, at in found.items()}
