"""What makes a machine itself: name, keys and addresses, written once, before or at its first boot."""

from __future__ import annotations

from minipc.lab import network, ssh
from minipc.lab.machine import FIRST_HOST, Machine

Files = dict[str, tuple[str, int]]


def files(subject: Machine) -> Files:
    """Path without leading slash -> text and mode."""
    private_key = (subject.directory / "ssh_host_ed25519_key").read_text()
    servers = network.nameservers()
    found = {
        "etc/hostname": (f"{subject.name}\n", 0o644),
        "etc/hosts": (f"127.0.0.1 localhost\n127.0.1.1 {subject.name}\n::1 localhost ip6-localhost\n", 0o644),
        "etc/resolv.conf": ("".join(f"nameserver {server}\n" for server in servers), 0o644),
        "etc/ssh/ssh_host_ed25519_key": (private_key, 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": (f"{subject.host_key}\n", 0o644),
        "root/.ssh/authorized_keys": (ssh.client_public_key() + "\n", 0o600),
    }
    for side in network.SIDES:
        found[f"etc/systemd/network/10-{side.interface}.network"] = (render_network(subject, side), 0o644)
    return found


def render_network(subject: Machine, side: network.Side) -> str:
    """Static addresses. Only the public side has a default route, and only for IPv4: there is no IPv6 way out."""
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
    """The name of an interface, by the address that its hardware has."""
    return f"""\
[Match]
PermanentMACAddress={side.mac_of(FIRST_HOST + subject.index)}

[Link]
Name={side.interface}
"""
