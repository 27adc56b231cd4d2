"""The lab's two networks: a *public* and an *operator* side, each a bridge with a client network namespace.

The controller has the first address of each side and reaches machines over the operator side. Machines get out
through NAT on the public side, for DNS, HTTP and HTTPS only; they can't open connections to the controller.
The client namespaces `public` and `operator` have no route to anywhere else.
Everything made here goes again with the last machine; /run/minipc-lab remembers what was there before.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import re
import signal
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from minipc.core.errors import MissingPrerequisiteError, RefusedError
from minipc.core.files import write_atomic
from minipc.core.paths import state_dir
from minipc.core.process import call, succeeds

RUN_DIR = Path("/run/minipc-lab")
RECORD = RUN_DIR / "network.json"  # removed by a reboot of the controller, like everything it describes
TABLE = "minipc_lab"
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# The limit is shared by all machines. Each uses about ten, and systemd does not start without. The default of 128 is
# too small for a dozen machines.
INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
NEEDED_INOTIFY_INSTANCES = 1024
CLIENT_INTERFACE = "lab0"
CABLE_PATTERN = re.compile(r"lab\d+-(public|operator)")


@dataclass(frozen=True)
class Side:
    """One network. Its address ranges are documentation and private ranges, unlikely to be in use."""

    name: str
    bridge: str
    ipv4: ipaddress.IPv4Network
    ipv6: ipaddress.IPv6Network

    @property
    def interface(self) -> str:
        """Return the name of the interface inside a machine."""
        return f"{self.name}0"

    def ipv4_of(self, host: int) -> str:
        return str(self.ipv4[host])

    def ipv6_of(self, host: int) -> str:
        return str(self.ipv6[host])

    def mac_of(self, host: int) -> str:
        """Return a fixed address, so that ARP caches stay right when a machine is added or removed.

        Without it a bridge would use the lowest address of its ports, which changes with them, and a new machine with
        the IP address of an old one would be unreachable for half a minute.
        """
        return f"02:6c:61:62:{SIDES.index(self):02x}:{host:02x}"


PUBLIC = Side(
    "public",
    "minipc-public",
    ipaddress.IPv4Network("198.51.100.0/24"),
    ipaddress.IPv6Network("2001:db8:51::/64"),
)
OPERATOR = Side(
    "operator",
    "minipc-operator",
    ipaddress.IPv4Network("10.77.0.0/24"),
    ipaddress.IPv6Network("fd77:6c61:6200::/64"),
)
SIDES = (PUBLIC, OPERATOR)
CONTROLLER_HOST = 1
CLIENT_HOST = 2
_CLONE_NEWNET = 0x40000000  # setns(2)
_libc = ctypes.CDLL(None, use_errno=True)


def ensure(nameservers: Iterable[str], web_ports: Iterable[int]) -> None:
    """Create the networks, or complete them after a crash. Call it with the lab's lock held.

    Args:
        nameservers: addresses of DNS servers that machines may use.
        web_ports: TCP ports that machines may reach beyond the controller.

    Raises:
        RefusedError: something else on the controller uses the same names or addresses.
    """
    if not RECORD.exists():
        _refuse_collisions()
        record = {
            "ip_forward": IP_FORWARD.read_text().strip(),
            "inotify_instances": INOTIFY_INSTANCES.read_text().strip(),
            "state_dir": str(state_dir()),
        }
        write_atomic(RECORD, json.dumps(record).encode())
    call("nft", "-f", "-", stdin=render_nft(nameservers, web_ports, forwarded_before=_forwarded_before()))
    for side in SIDES:
        _ensure_bridge(side)
        _ensure_client(side)
    IP_FORWARD.write_text("1")
    if int(INOTIFY_INSTANCES.read_text()) < NEEDED_INOTIFY_INSTANCES:
        INOTIFY_INSTANCES.write_text(str(NEEDED_INOTIFY_INSTANCES))


def listen_as_client(side: Side) -> socket.socket:
    """Return a socket that listens at the address of a side's client, so that machines reach this process there.

    Raises:
        OSError: no machine is up, so there is no namespace.
    """

    def create() -> socket.socket:
        with _namespace(side).open() as namespace:
            if _libc.setns(namespace.fileno(), _CLONE_NEWNET):  # only for this thread, which then ends
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        return socket.create_server((side.ipv4_of(CLIENT_HOST), 0))

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(create).result()


def release() -> None:
    """Remove the networks and restore the controller's settings. Idempotent; also works after a crash."""
    for side in SIDES:
        # If there is a record, a namespace of that name is ours, even if it was never completed.
        if _client_is_ours(side) or (RECORD.exists() and _namespace(side).exists()):
            _kill_inside(side.name)
            call("ip", "netns", "delete", side.name)
        _remove_link(side.bridge)
    for _, interface in socket.if_nameindex():
        if CABLE_PATTERN.fullmatch(interface):
            _remove_link(interface)
    if succeeds("nft", "list", "table", "inet", TABLE):
        call("nft", "delete", "table", "inet", TABLE)
    if RECORD.exists() and not _forwarded_before():
        IP_FORWARD.write_text("0")
    if RECORD.exists() and (before := _record().get("inotify_instances")):
        INOTIFY_INSTANCES.write_text(before)
    RECORD.unlink(missing_ok=True)


def refuse_other_lab() -> None:
    """Raise RefusedError if machines of another state directory are up on this controller."""
    if RECORD.exists() and _record()["state_dir"] != str(state_dir()):
        directory = _record()["state_dir"]
        raise RefusedError(
            f"this controller already runs a lab whose state is in {directory}, not {state_dir()}",
            f"MINIPC_STATE_DIR={directory} minipc lab down --all",
        )


def attach(interface: str, side: Side) -> bool:
    """Attach the controller's end of a machine's cable to its bridge. Returns False if it does not exist (yet)."""
    return succeeds("ip", "link", "set", interface, "master", side.bridge, "up")


def cable(index: int, side: Side) -> str:
    """Return the name of the controller's end of a machine's interface (at most 15 characters)."""
    return f"lab{index}-{side.name}"


def remove_cables(index: int) -> None:
    for side in SIDES:
        _remove_link(cable(index, side))


def render_nft(nameservers: Iterable[str], web_ports: Iterable[int], *, forwarded_before: bool) -> str:
    """Render the lab's nftables table, which is replaced atomically.

    A controller that did not forward packets before forwards only those of machines.
    """
    servers = sorted(nameservers)
    bridges = ", ".join(f'"{side.bridge}"' for side in SIDES)
    dns = [f"meta l4proto {{ tcp, udp }} th dport 53 {_family(server)} daddr {server} accept" for server in servers]
    out = f'iifname "{PUBLIC.bridge}" oifname != {{ {bridges} }}'
    within = [f'iifname "{side.bridge}" oifname "{side.bridge}" accept' for side in SIDES]
    lines = [
        f"table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        "  chain refuse {",
        "    meta l4proto tcp reject with tcp reset",
        "    reject with icmpx admin-prohibited",
        "  }",
        "  chain input {",
        "    type filter hook input priority filter - 5; policy accept;",
        f"    iifname != {{ {bridges} }} accept",
        "    ct state established,related accept",
        "    meta l4proto { icmp, ipv6-icmp } accept",
        *(f"    {rule}" for rule in dns),
        "    jump refuse",
        "  }",
        "  chain forward {",
        "    type filter hook forward priority filter - 5; policy accept;",
        *(f"    {rule}" for rule in within),
        f"    oifname {{ {bridges} }} ct state established,related accept",
        f"    {out} tcp flags syn tcp option maxseg size set rt mtu",
        f"    {out} ct state established,related accept",
        *(f"    {out} {rule}" for rule in dns),
        f"    {out} tcp dport {{ {', '.join(str(port) for port in sorted(set(web_ports)))} }} accept",
        f"    iifname {{ {bridges} }} jump refuse",
        f"    oifname {{ {bridges} }} jump refuse",
        *([] if forwarded_before else ["    drop"]),
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
        f"    ip saddr {PUBLIC.ipv4} oifname != {{ {bridges} }} masquerade",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def nameservers(resolv_conf: Path = Path("/etc/resolv.conf")) -> list[str]:
    """Return the resolvers that machines can use: the controller's, or those behind its local stub.

    Raises MissingPrerequisiteError if the controller only has a resolver on its own loopback.
    """
    for path in (resolv_conf, Path("/run/systemd/resolve/resolv.conf")):
        found = parse_nameservers(path.read_text()) if path.exists() else []
        if found:
            return found
    raise MissingPrerequisiteError(
        f"{resolv_conf} names no resolver that a machine could reach (only loopback addresses or none)",
        "add a `nameserver` line with an address outside 127.0.0.0/8, or run systemd-resolved",
    )


def parse_nameservers(text: str) -> list[str]:
    """Return the addresses of the `nameserver` lines that also work from machines: no loopback, no link-local."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            address = ipaddress.ip_address(words[1])
            if not (address.is_loopback or address.is_link_local):
                found.append(str(address))
    return found


def _family(address: str) -> str:
    return "ip6" if ipaddress.ip_address(address).version == 6 else "ip"


def _forwarded_before() -> bool:
    return _record()["ip_forward"] != "0"


def _record() -> dict[str, str]:
    record: dict[str, str] = json.loads(RECORD.read_text())
    return record


def _ensure_bridge(side: Side) -> None:
    if not _exists(side.bridge):
        call("ip", "link", "add", side.bridge, "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
    call("ip", "link", "set", side.bridge, "address", side.mac_of(CONTROLLER_HOST))
    Path(f"/proc/sys/net/ipv6/conf/{side.bridge}/disable_ipv6").write_text("0")
    call("ip", "address", "replace", f"{side.ipv4_of(CONTROLLER_HOST)}/{side.ipv4.prefixlen}", "dev", side.bridge)
    call(
        *("ip", "address", "replace", f"{side.ipv6_of(CONTROLLER_HOST)}/{side.ipv6.prefixlen}"),
        *("dev", side.bridge, "nodad"),
    )
    call("ip", "link", "set", side.bridge, "up")


def _ensure_client(side: Side) -> None:
    """Create a client namespace with one interface on the bridge and only on-link routes."""
    if _client_is_ours(side):
        return
    if _namespace(side).exists():
        call("ip", "netns", "delete", side.name)  # incomplete, from an `ensure` that was killed
    outer = f"lab-{side.name}"
    _remove_link(outer)
    call("ip", "netns", "add", side.name)
    call("ip", "-n", side.name, "link", "set", "lo", "up")
    call("ip", "link", "add", outer, "type", "veth", "peer", "name", CLIENT_INTERFACE, "netns", side.name)
    call("ip", "link", "set", outer, "master", side.bridge, "up")
    for address, length, flags in (
        (side.ipv4_of(CLIENT_HOST), side.ipv4.prefixlen, ()),
        (side.ipv6_of(CLIENT_HOST), side.ipv6.prefixlen, ("nodad",)),
    ):
        call("ip", "-n", side.name, "address", "add", f"{address}/{length}", "dev", CLIENT_INTERFACE, *flags)
    call("ip", "-n", side.name, "link", "set", CLIENT_INTERFACE, "up")


def _client_is_ours(side: Side) -> bool:
    return _namespace(side).exists() and succeeds("ip", "-n", side.name, "link", "show", CLIENT_INTERFACE)


def _namespace(side: Side) -> Path:
    return Path("/run/netns", side.name)


def _kill_inside(namespace: str) -> None:
    """Kill the processes in a client namespace: a killed rehearsal may have left some there."""
    for pid in call("ip", "netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _remove_link(interface: str) -> None:
    """Remove an interface. Idempotent: the kernel may remove the interface of a dead machine at the same time."""
    if _exists(interface) and not succeeds("ip", "link", "delete", interface) and _exists(interface):
        call("ip", "link", "delete", interface)


def _exists(interface: str) -> bool:
    try:
        return bool(socket.if_nametoindex(interface))
    except OSError:
        return False


def _refuse_collisions() -> None:
    for side in SIDES:
        if _namespace(side).exists() and not _client_is_ours(side):
            raise RefusedError(
                f"the controller already has a network namespace named {side.name!r} that is not the lab's",
                f"rename or delete it: ip netns delete {side.name}",
            )
        for network in (side.ipv4, side.ipv6):
            taken = overlapping(network, _controller_networks())
            if taken:
                raise RefusedError(
                    f"the controller already uses {taken}, which overlaps the lab's {side.name} network {network}",
                    "run the lab on a controller without that network",
                )


def _controller_networks() -> list[str]:
    """Return the controller's addresses and route destinations, without the lab's and without default routes."""
    bridges = {side.bridge for side in SIDES}
    found = []
    for family in ("-4", "-6"):
        routes = json.loads(call("ip", family, "-j", "route", "show", "table", "main") or "[]")
        found += [route["dst"] for route in routes if route.get("dev") not in bridges and route["dst"] != "default"]
    for interface in json.loads(call("ip", "-j", "address", "show") or "[]"):
        if interface.get("ifname") not in bridges:
            found += [address["local"] for address in interface["addr_info"]]
    return found


def overlapping(network: ipaddress.IPv4Network | ipaddress.IPv6Network, others: Iterable[str]) -> str | None:
    """Return the first of `others` that shares an address with `network`."""
    for other in others:
        candidate = ipaddress.ip_network(other, strict=False)
        if candidate.version == network.version and candidate.overlaps(network):
            return other
    return None
