"""`minipc vpn`: add, list, revoke. They change `inventory/vpn_peers.json`; the next converge installs it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from minipc.core.environment import PRODUCTION
from minipc.core.formatting import count
from minipc.core.paths import config_dir
from minipc.remote.inventory import Target, the_target
from minipc.vpn.client import qr_code
from playbooks import vpn_clients

NEXT = "commit inventory/vpn_peers.json, then: minipc apply vpn"


@click.group()
def vpn() -> None:
    """Add, list and revoke VPN clients."""


@vpn.command()
@click.argument("name")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the client's configuration to this file."
)
@click.option("--qr/--no-qr", default=None, help="Show the QR code for the WireGuard app; default: only on a terminal.")
def add(name: str, output: Path | None, qr: bool | None) -> None:
    """Add a VPN client: create its key and configuration (mode 0600)."""
    added = vpn_clients.add(the_target(PRODUCTION), name, output or config_dir("vpn") / f"{name}.conf")
    # It contains the private key, which must not get into a log.
    if sys.stdout.isatty() if qr is None else qr:
        click.echo(qr_code(added.text))
    click.echo(f"{name} has the addresses {', '.join(added.addresses)}; it can connect after the next converge")
    click.echo(f"its configuration, with the private key: {added.path}  (wg-quick up {added.path})")
    click.echo(NEXT)


@vpn.command("list")
@click.option("--seen", is_flag=True, help="Show when each client was last connected; asks the machine.")
def list_command(seen: bool) -> None:
    """List the VPN clients: name, addresses, public key."""
    target = the_target(PRODUCTION)
    last = _last_handshakes(target) if seen else {}
    for peer in target.settings.vpn.peers:
        when = f"  {last.get(peer.public_key, 'not on the machine yet')}" if seen else ""
        click.echo(f"{peer.name:20} {', '.join(peer.allowed_ips):40} {peer.public_key}{when}")
    click.echo(count(len(target.settings.vpn.peers), "VPN client"))


@vpn.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Revoke a VPN client. It is locked out by the next converge."""
    target = the_target(PRODUCTION)
    vpn_clients.revoke(target, name)
    click.echo(f"{name} is revoked; it can still connect until the next converge. {NEXT}")


def _last_handshakes(target: Target) -> dict[str, str]:
    from minipc.remote.queries import on

    lines = on(target, "date +%s; wg show wg0 latest-handshakes").splitlines()
    now = int(lines[0])
    found = dict(line.split() for line in lines[1:])
    return {key: f"{(now - int(at)) // 60} min ago" if int(at) else "never" for key, at in found.items()}
