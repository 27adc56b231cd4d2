"""VPN clients of the operator, in the client namespace `operator`.

The encrypted packets leave from the namespace `public`, like those of a laptop anywhere, so the public side must admit
only the port of WireGuard. A tunnel is created in `public` and moved to `operator`; its socket stays in `public`
(https://www.wireguard.com/netns/). Each machine has a separate tunnel network, so several tunnels can be up.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from minipc.core.addresses import bracketed
from minipc.core.errors import MinipcError
from minipc.core.files import create_private, read_private
from minipc.core.polling import wait_until
from minipc.core.process import call, spawn_detached, succeeds
from minipc.secrets import Secret, load
from minipc.secrets.catalogue import VPN_KEY
from minipc.secrets.generate import wireguard_private_key
from minipc.vpn.keys import public_key
from rehearsal.lab.machine import Machine, find, lab_dir
from rehearsal.lab.network import OPERATOR, PUBLIC

PORT = 51820
PEER_NAME = "lab"
TRY = "try"
SOCKETS = Path("/run/wireguard")


def networks(index: int) -> tuple[str, str]:
    """Return the tunnel networks of a machine, IPv4 and IPv6."""
    return f"10.99.{index}.0/24", f"fd99:6d69:6e69:{index + 1:x}::/64"


def addresses(index: int, host: int) -> tuple[str, str]:
    """Return an address in each tunnel network: host 1 is the machine, host 2 the lab's client."""
    return f"10.99.{index}.{host}", f"fd99:6d69:6e69:{index + 1:x}::{host:x}"


def client_key() -> Secret:
    """Return the lab's private key, which every machine of the lab accepts. It is created on first use."""
    path = lab_dir() / "vpn.key"
    create_private(path, wireguard_private_key().encode())
    return Secret("vpn.lab", read_private(path, "the lab's VPN key").decode())


def hand_over(state: Path) -> None:
    """Copy the client's key to the lab of another state directory."""
    create_private(state / "lab/vpn.key", client_key().reveal().encode())


def settings_of(index: int, endpoint: str) -> dict[str, object]:
    """Return the `vpn_*` settings of a lab machine."""
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
    """Return the name of the tunnel's interface."""
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
    """Create the tunnel, without waiting for a handshake. Returns the name of the interface. Idempotent.

    Args:
        which: name of a tunnel in addition to the usual one.
        key: the client's private key; the lab's own when None.
        host: host number of the client in the tunnel networks.
        endpoint: the machine's address; its public IPv4 address when None.
        server_key: the machine's public key; None takes it from the lab's secrets.
    """
    name = interface(machine, which)
    if not succeeds("ip", "-n", OPERATOR.name, "link", "show", name):
        _make(machine, name)
    peer = server_key or public_key(load("lab", [VPN_KEY])[VPN_KEY])
    client, server = addresses(machine.index, host), addresses(machine.index, 1)
    # wg(8) reads the configuration from a file: a pipe keeps the key out of the command line and off the disk.
    config = f"[Interface]\nPrivateKey = {(key or client_key()).reveal()}\n[Peer]\nPublicKey = {peer}\n"
    config += f"Endpoint = {bracketed(endpoint or machine.public_ipv4)}:{PORT}\n"
    config += f"AllowedIPs = {server[0]}/32, {server[1]}/128\nPersistentKeepalive = 1\n"
    _wg(name, "setconf", name, "/dev/stdin", stdin=config)
    for address, length, flags in ((client[0], 24, ()), (client[1], 64, ("nodad",))):
        call("ip", "-n", OPERATOR.name, "address", "replace", f"{address}/{length}", "dev", name, *flags)
    call("ip", "-n", OPERATOR.name, "link", "set", name, "up")
    return name


def down(machine: Machine, which: str = "vpn") -> None:
    """Remove the tunnel and the process behind it. Idempotent."""
    name = interface(machine, which)
    if succeeds("ip", "-n", OPERATOR.name, "link", "show", name):
        call("ip", "-n", OPERATOR.name, "link", "delete", name)


def remove_all(machine: Machine) -> None:
    """Remove every tunnel to the machine, also incomplete ones."""
    _remove(rf"lab{machine.index}-.*")


def remove_leftovers() -> None:
    """Remove the tunnels that are left when there is no machine."""
    _remove(r"lab\d+-.*")


def handshake_at(name: str) -> int:
    """Return the time of the latest handshake, epoch seconds; 0 if there was none."""
    fields = _wg(name, "show", name, "latest-handshakes").split()
    return int(fields[1]) if len(fields) > 1 else 0


def wait_for_handshake(name: str, within_s: float) -> bool:
    """Return whether there is a handshake within a number of seconds."""
    return bool(wait_until(lambda: handshake_at(name), within_s=within_s))


def _make(machine: Machine, name: str) -> None:
    """Create a tunnel with the kernel's WireGuard, or with wireguard-go if the kernel has none."""
    _remove(re.escape(name))
    if not succeeds("ip", "-n", PUBLIC.name, "link", "add", name, "type", "wireguard"):
        spawn_detached(
            ["ip", "netns", "exec", PUBLIC.name, "wireguard-go", "--foreground", name],
            log=machine.directory / "vpn.log",
            pid_file=machine.directory / f"{name}.pid",
        )
        if not wait_until(_socket(name).exists, within_s=10, every_s=0.02):
            raise MinipcError(f"wireguard-go did not create {name} within 10 s", f"see {machine.directory / 'vpn.log'}")
    call("ip", "-n", PUBLIC.name, "link", "set", name, "netns", OPERATOR.name)


def _remove(pattern: str) -> None:
    """Remove the tunnels whose name matches, and the sockets of crashed ones."""
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
    """Remove a socket without a listener. A socket whose tunnel is ending is removed with the tunnel."""

    def gone() -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        return not path.exists()

    wait_until(gone, within_s=5, every_s=0.02)


def _wg(name: str, *arguments: str, stdin: str = "") -> str:
    """Run wg(8) where it finds the interface: in its namespace (kernel), or anywhere (socket of wireguard-go)."""
    where: Sequence[str] = () if _socket(name).exists() else ("ip", "netns", "exec", OPERATOR.name)
    return call(*where, "wg", *arguments, stdin=stdin)


def main(argv: Sequence[str]) -> None:
    """Run `MACHINE up` or `MACHINE try`: the checks of `tests/verify` use the VPN's client this way.

    `try` connects as another client, says whether there was a handshake, and removes the tunnel again. It reads from
    stdin the seconds to wait, the client's private key and the machine's public key, one a line; an empty line stands
    for the right one.
    """
    name, verb = argv
    machine = find(name)
    if machine is None:
        raise SystemExit(f"{name} is not a lab machine")
    if verb == "up":
        up(machine)
        return
    within_s, key, server_key = sys.stdin.read().split("\n")[:3]
    down(machine, TRY)
    try:
        tried = up(machine, which=TRY, key=Secret("vpn.try", key) if key else None, server_key=server_key or None)
        print("handshake" if wait_for_handshake(tried, float(within_s)) else "no answer")
    finally:
        down(machine, TRY)


if __name__ == "__main__":
    main(sys.argv[1:])
