"""The operator's end of a machine's VPN, in the client namespace `operator`.

Its packets leave from the `public` namespace, as a laptop's would from anywhere: all that the public side has to let
through is WireGuard's one port. A tunnel is made in one namespace and moved to the other; its socket stays where it
was made (https://www.wireguard.com/netns/). Each machine has a tunnel network of its own, so that several can be up.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from minipc.addresses import bracketed
from minipc.errors import MinipcError
from minipc.lab.machine import Machine, lab_dir
from minipc.lab.network import OPERATOR, PUBLIC
from minipc.lab.shell import call, spawn_detached, succeeds
from minipc.secrets import Secret, load
from minipc.secrets.catalogue import VPN_KEY
from minipc.secrets.files import create_private, read_private
from minipc.secrets.generate import wireguard_private_key
from minipc.vpn.keys import public_key

PORT = 51820
PEER_NAME = "lab"
SOCKETS = Path("/run/wireguard")


def networks(index: int) -> tuple[str, str]:
    """The tunnel's networks of a machine, IPv4 and IPv6."""
    return f"10.99.{index}.0/24", f"fd99:6d69:6e69:{index + 1:x}::/64"


def addresses(index: int, host: int) -> tuple[str, str]:
    """An address in each: 1 is the machine's, 2 the lab's client."""
    return f"10.99.{index}.{host}", f"fd99:6d69:6e69:{index + 1:x}::{host:x}"


def client_key() -> Secret:
    """The lab's own key, made on first use; every machine of the lab has it among its peers."""
    path = lab_dir() / "vpn.key"
    create_private(path, wireguard_private_key().encode())
    return Secret("vpn.lab", read_private(path, "the lab's VPN key").decode())


def hand_over(state: Path) -> None:
    """Has the lab of another state directory use the same client."""
    create_private(state / "lab/vpn.key", client_key().reveal().encode())


def settings_of(index: int, endpoint: str) -> dict[str, object]:
    """What a machine's VPN is told in the lab: `vpn_*` keys."""
    ipv4, ipv6 = addresses(index, 2)
    peer = {
        "name": PEER_NAME,
        "public_key": public_key(client_key()),
        "allowed_ips": [f"{ipv4}/32", f"{ipv6}/128"],
    }
    network, network_ipv6 = networks(index)
    return {
        "vpn_network": network,
        "vpn_network_ipv6": network_ipv6,
        "vpn_endpoint": endpoint,
        "vpn_port": PORT,
        "vpn_peers": [peer],
    }


def interface(machine: Machine, which: str = "vpn") -> str:
    """Its name in the namespace."""
    return f"lab{machine.index}-{which}"


def up(
    machine: Machine,
    *,
    which: str = "vpn",
    key: Secret | None = None,
    host: int = 2,
    endpoint: str | None = None,
    server_key: str | None = None,
) -> str:
    """Has the tunnel; whether the machine answers is another question. Returns the interface's name. Idempotent.

    Args:
        which: another word for a tunnel beside the usual one.
        key: the client's private key; the lab's own when None.
        host: the client's place in the tunnel's networks.
        endpoint: the machine's address; its public IPv4 address when None.
        server_key: the machine's public key; None takes it from the lab's secrets.
    """
    name = interface(machine, which)
    if not succeeds("ip", "-n", OPERATOR.name, "link", "show", name):
        _make(machine, name)
    peer = server_key or public_key(load("lab", [VPN_KEY])[VPN_KEY])
    own, there = addresses(machine.index, host), addresses(machine.index, 1)
    # wg(8) reads the configuration from a file: a pipe keeps the key out of the command line and off the disk.
    config = f"[Interface]\nPrivateKey = {(key or client_key()).reveal()}\n[Peer]\nPublicKey = {peer}\n"
    config += f"Endpoint = {bracketed(endpoint or machine.public_ipv4)}:{PORT}\n"
    config += f"AllowedIPs = {there[0]}/32, {there[1]}/128\nPersistentKeepalive = 1\n"
    _wg(name, "setconf", name, "/dev/stdin", stdin=config)
    for address, length, flags in ((own[0], 24, ()), (own[1], 64, ("nodad",))):
        call("ip", "-n", OPERATOR.name, "address", "replace", f"{address}/{length}", "dev", name, *flags)
    call("ip", "-n", OPERATOR.name, "link", "set", name, "up")
    return name


def down(machine: Machine, which: str = "vpn") -> None:
    """Removes the tunnel, and with it the process that is its other end. Idempotent."""
    name = interface(machine, which)
    if succeeds("ip", "-n", OPERATOR.name, "link", "show", name):
        call("ip", "-n", OPERATOR.name, "link", "delete", name)


def remove_all(machine: Machine) -> None:
    """Every tunnel to the machine, also one that a crash left half-made."""
    _remove(rf"lab{machine.index}-.*")


def mend() -> None:
    """Removes what tunnels are left when no machine is."""
    _remove(r"lab\d+-.*")


def handshake_at(name: str) -> int:
    """When the other end last proved itself, epoch seconds; 0: never."""
    fields = _wg(name, "show", name, "latest-handshakes").split()
    return int(fields[1]) if len(fields) > 1 else 0


def wait_for_handshake(name: str, within_s: float) -> bool:
    """Whether the two ends agree on a key within that time."""
    give_up_at = time.monotonic() + within_s
    while not (found := handshake_at(name)) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    return bool(found)


def _make(machine: Machine, name: str) -> None:
    """The kernel's WireGuard, or the one for kernels without."""
    _remove(re.escape(name))
    if not succeeds("ip", "-n", PUBLIC.name, "link", "add", name, "type", "wireguard"):
        spawn_detached(
            ["ip", "netns", "exec", PUBLIC.name, "wireguard-go", "--foreground", name],
            log=machine.directory / "vpn.log",
            pid_file=machine.directory / f"{name}.pid",
        )
        give_up_at = time.monotonic() + 10
        while not _socket(name).exists():
            if time.monotonic() > give_up_at:
                raise MinipcError(f"wireguard-go made no {name} within 10 s", f"see {machine.directory / 'vpn.log'}")
            time.sleep(0.02)
    call("ip", "-n", PUBLIC.name, "link", "set", name, "netns", OPERATOR.name)


def _remove(pattern: str) -> None:
    """Tunnels by their whole name. One that ended by a crash leaves its socket, as if it were there."""
    for namespace in (OPERATOR.name, PUBLIC.name):
        listing = call("ip", "-n", namespace, "-o", "link") if Path("/run/netns", namespace).exists() else ""
        names = [re.split("[@:]", line.split(": ")[1])[0] for line in listing.splitlines()]
        for name in filter(re.compile(pattern).fullmatch, names):
            call("ip", "-n", namespace, "link", "delete", name)
    for path in SOCKETS.glob("*.sock"):
        if re.fullmatch(pattern, path.stem):
            _remove_stale(path)


def _socket(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


def _remove_stale(path: Path) -> None:
    """A socket that nobody listens on any more; one whose tunnel is about to end goes with it."""
    give_up_at = time.monotonic() + 5
    while path.exists() and time.monotonic() < give_up_at:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            time.sleep(0.02)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return


def _wg(name: str, *arguments: str, stdin: str = "") -> str:
    """wg(8), where it finds the interface: the kernel's in its namespace, wireguard-go's by its socket anywhere."""
    where: Sequence[str] = () if _socket(name).exists() else ("ip", "netns", "exec", OPERATOR.name)
    return call(*where, "wg", *arguments, stdin=stdin)
