"""Identity of a machine: name, keys and addresses, written once, before or at its first boot."""

from __future__ import annotations

from rehearsal.lab import network, ssh
from rehearsal.lab.machine import FIRST_HOST, Machine

Files = dict[str, tuple[str, int]]


def files(subject: Machine) -> Files:
    """Return the files of the identity: path without leading slash -> text and mode."""
    private_key = (subject.directory / "ssh_host_ed25519_key").read_text()
    servers = network.nameservers()
    identity = {
        "etc/hostname": (f"{subject.name}\n", 0o644),
        "etc/hosts": (f"127.0.0.1 localhost\n127.0.1.1 {subject.name}\n::1 localhost ip6-localhost\n", 0o644),
        "etc/resolv.conf": ("".join(f"nameserver {server}\n" for server in servers), 0o644),
        "etc/ssh/ssh_host_ed25519_key": (private_key, 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": (f"{subject.host_key}\n", 0o644),
        "root/.ssh/authorized_keys": (ssh.client_public_key() + "\n", 0o600),
    }
    for side in network.SIDES:
        identity[f"etc/systemd/network/10-{side.interface}.network"] = (render_network(subject, side), 0o644)
    return identity


def render_network(subject: Machine, side: network.Side) -> str:
    """Render static addresses. Only the public side has a default route, for IPv4; there is no IPv6 internet."""
    host = FIRST_HOST + subject.index
    gateway = f"Gateway={side.ipv4_of(network.CONTROLLER_HOST)}\n" if side == network.PUBLIC else ""
    return f"""\
[Match]
Name={side.interface}

[Link]
MACAddress={side.mac_of(host)}

[Network]
Address={side.ipv4_of(host)}/{side.ipv4.prefixlen}
Address={side.ipv6_of(host)}/{side.ipv6.prefixlen}
{gateway}IPv6AcceptRA=no
IPv6DuplicateAddressDetection=0
"""


def render_link(subject: Machine, side: network.Side) -> str:
    """Render the name of an interface, matched by its hardware address."""
    return f"""\
[Match]
PermanentMACAddress={side.mac_of(FIRST_HOST + subject.index)}

[Link]
Name={side.interface}
"""
