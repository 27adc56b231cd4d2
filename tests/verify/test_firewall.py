"""Checks of the nftables rules from each side, with listeners that would answer if the firewall let packets pass."""

from __future__ import annotations

import json
import re
import secrets as random
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network

import pytest

from minipc.core.addresses import bracketed
from minipc.core.ports import OPERATOR_INGRESS
from minipc.remote.sides import Side
from minipc.services.ports import loopback_ports
from minipc.verification import exposure
from minipc.verification.canaries import LISTENER
from tests.verify.conftest import eventually, not_exercised

CANARY = "minipc-canary"
NODE_PORT, POD_PORT = 30999, 8080
LOOPBACK = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
# Ports that are often open, in addition to all below 1024 and all listeners.
NOTABLE = exposure.NOTABLE | {
    1433,
    2049,
    3128,
    3306,
    3389,
    4317,
    5000,
    5601,
    5900,
    7946,
    9000,
    9200,
    10248,
    10256,
    11211,
}
NOTABLE |= {27017}


@dataclass(frozen=True)
class Scan:
    """The result of a scan: the open ports, and the states of all others."""

    open: set[int]
    others: set[str]


def scan(side: Side, address: str, ports: set[int], *options: str) -> Scan:
    """Scan TCP ports from a side (SYN scan)."""
    argv = ["nmap", "-n", "-Pn", "-sS", "-T4", "--max-retries", "2", "--min-rate", "1500", "-oX", "-", *options]
    argv += ["-6"] if ":" in address else []
    done = side.run(*argv, "-p", ",".join(map(str, sorted(ports))), address, timeout_s=60)
    assert done.returncode == 0, done.stderr
    tree = ElementTree.fromstring(done.stdout)
    states = {
        int(port.attrib["portid"]): state.attrib["state"] for port in tree.iter("port") for state in port.iter("state")
    }
    extra = {each.attrib["state"] for each in tree.iter("extraports")}
    opened = {port for port, state in states.items() if state == "open"}
    assert states or extra, f"nmap saw nothing: {done.stderr}"
    return Scan(opened, extra | {state for state in states.values() if state != "open"})


def answers_udp(side: Side, address: str, port: int) -> bool:
    """Return True if a UDP packet is echoed within a second."""
    line = f"exec 3<>/dev/udp/{address}/{port}; echo canary >&3; head -c1 <&3"
    return side.run("timeout", "1", "bash", "-c", line).stdout == "c"


@pytest.fixture(scope="session")
def outside(public, environment):
    """Return the public side. NOT EXERCISED where there is no client on it."""
    if not environment.has_public_client:
        not_exercised(
            "the controller is on the operator side; scan from elsewhere: nmap -Pn -p- and the public address"
        )
    return public


@pytest.fixture(scope="session")
def public_port(settings):
    """Return a port that is open to everyone."""
    if not settings.firewall.public_tcp:
        not_exercised("nothing on this machine is open to the public")
    return settings.firewall.public_tcp[-1]


@pytest.fixture(scope="session")
def forged(public, operator):
    """Return forged source addresses: the side, the machine's address there, the address of the other side."""
    sides = [(public, operator), (operator, public)]
    borrowed = {
        address: re.sub(r"[^.:]+$", "fe" if ":" in address else "254", address)
        for each in sides
        for address in each[0].addresses
    }
    return [
        (side, address, borrowed[other])
        for side, foreign in sides
        for address, other in zip(side.addresses, foreign.addresses, strict=True)
    ]


@pytest.fixture(scope="session")
def canary(disturb, forged, settings, listeners):
    """Start a listener on a random port of all addresses, add another nftables table, and return the port.

    Public ports without a listener get one, too.

    The table counts packets from forged addresses: in `arrived` before our rules see them, in `passed` after them.
    """
    port = random.randbelow(20_000) + 40_000
    remove = f"systemctl stop '{CANARY}@*'; nft delete table inet canary"
    disturb(f"({remove}) 2>/dev/null; true")
    ports = [port, *(set(settings.firewall.public_tcp) - {heard for _, heard, _ in listeners})]
    for each in ports:
        unit = f"--unit={CANARY}@{each} -p RuntimeMaxSec=300"
        disturb(f"systemd-run -q --collect {unit} python3 -c {shlex.quote(LISTENER)} {each}")
    count = "; ".join(f"ip{'6' if ':' in source else ''} saddr {source} tcp dport 22 counter" for *_, source in forged)
    table = f"""table inet canary {{
        chain arrived {{ type filter hook prerouting priority -290; {count}; }}
        chain passed {{ type filter hook input priority 10; {count}; }}
    }}"""
    disturb(f"printf %s {shlex.quote(table)} | nft -f -")
    for each in ports:
        assert eventually(partial(disturb, f"ss -Hltn sport = {each}"), 30)
    yield port
    disturb(remove)


@pytest.fixture(scope="session")
def pod(disturb, settings):
    """Create a network namespace in the cluster's bridge, like a pod, with a forwarded port, and return its address.

    Without a cluster the bridge is created as well.
    """
    address, address6 = "10.42.255.2", "fd42::2"
    bridge = settings.firewall.pod_interfaces[0]
    there = disturb(f"ip link show {bridge} >/dev/null 2>&1 && echo yes || true")
    undo = f"ip address delete 10.42.255.1/30 dev {bridge}; ip address delete fd42::1/64 dev {bridge}"
    if not there:  # a pod may have been started meanwhile
        undo += f'; [ -n "$(ls /sys/class/net/{bridge}/brif)" ] || ip link delete {bridge}'
    remove = f"systemctl stop {CANARY}-pod; ip link delete canary0; ip netns delete canary; nft delete table inet pod"
    remove += f"; {undo}"
    disturb(f"({remove}) 2>/dev/null; true")
    port = f"tcp dport {NODE_PORT}"
    forward = f"{port} dnat ip to {address}:{POD_PORT}; {port} dnat ip6 to [{address6}]:{POD_PORT}"
    table = f"table inet pod {{ chain in {{ type nat hook prerouting priority dstnat; {forward}; }}; }}"
    disturb(f"""set -e
        ip netns add canary
        ip link show {bridge} >/dev/null 2>&1 || ip link add {bridge} type bridge
        ip link add canary0 type veth peer name eth0 netns canary
        ip link set canary0 master {bridge} up
        ip address add 10.42.255.1/30 dev {bridge}
        ip address add fd42::1/64 dev {bridge} nodad
        ip link set {bridge} up
        ip -n canary address add {address}/30 dev eth0
        ip -n canary address add {address6}/64 dev eth0 nodad
        ip -n canary link set eth0 up
        ip -n canary route add default via 10.42.255.1
        ip -n canary -6 route add default via fd42::1
        systemd-run -q --collect --unit={CANARY}-pod -p RuntimeMaxSec=300 -p NetworkNamespacePath=/run/netns/canary \\
            python3 -c {shlex.quote(LISTENER)} {POD_PORT}
        printf %s {shlex.quote(table)} | nft -f -""")
    reach = f"timeout 3 bash -c 'exec 3<>/dev/tcp/%s/{POD_PORT}' && echo yes || true"
    for each in (address, address6):
        assert eventually(partial(disturb, reach % each), 30), "the canary pod itself does not answer"
    yield address
    disturb(remove)


@pytest.fixture(scope="session")
def scans(public, operator, environment, target, listeners, request):
    """Return the scans of every address from every side; they run in parallel."""
    ports = set(range(1, 1025)) | NOTABLE | {port for _, port, _ in listeners}
    sides = [operator]
    if environment.has_public_client:
        ports.add(request.getfixturevalue("canary"))
        sides += [public, *([request.getfixturevalue("tunnel")] if target.role == "mini" else [])]
    wanted = [(side, address) for side in sides for address in side.addresses]
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = list(pool.map(lambda each: scan(each[0], each[1], ports), wanted))
    return {(side.name, ":" in address): seen for (side, address), seen in zip(wanted, found, strict=True)}


@pytest.fixture(scope="session")
def udp_listeners(sh):
    """Return address, port and program of every UDP socket that is not bound to loopback."""
    found = []
    for line in sh("ss -Hlunp").splitlines():
        fields = line.split()
        address, _, port = fields[3].rpartition(":")
        program = fields[5].split('"')[1] if len(fields) > 5 else ""
        if not address.strip("[]").startswith(("127.", "::1")):
            found.append((address.strip("[]"), int(port), program))
    return found


@pytest.fixture(scope="session")
def ruleset(sh):
    return json.loads(sh("nft -j list ruleset"))["nftables"]


def packets(disturb, what: str) -> list[tuple[str, int]]:
    """Return the packet counters of a table or chain: name of the chain and number of packets."""
    rules = [each["rule"] for each in json.loads(disturb(f"nft -j list {what}"))["nftables"] if "rule" in each]
    return [(rule["chain"], part["counter"]["packets"]) for rule in rules for part in rule["expr"] if "counter" in part]


def connect_from(side: Side, address: str, source: str) -> None:
    """Try to connect to SSH from a source address that the client has for the duration of the attempt."""
    lifetime = ["valid_lft", "5", "preferred_lft", "5"]
    side.run("ip", "address", "replace", source, "dev", "lab0", *(["nodad"] if ":" in source else []), *lifetime)
    side.run("curl", "--silent", "--max-time", "1", "--interface", source, f"http://{bracketed(address)}:22")


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_public_reaches_the_open_ports_and_no_other(outside, scans, settings, ipv6):
    """The public side reaches the public ports and no other port."""
    seen = scans["public", ipv6]
    assert seen.open == set(settings.firewall.public_tcp)
    # "closed" would mean that only the listener is missing: a firewall's answer is silence.
    assert seen.others == {"filtered"}


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_operator_reaches_the_open_ports_and_ssh_and_no_other(scans, operator, settings, listeners, ipv6):
    """The operator side reaches the configured ports and no other port."""
    if ipv6 and not operator.ipv6:
        not_exercised("the inventory knows no IPv6 address of the machine")
    seen = scans["operator", ipv6]
    vpn_bypass = settings.firewall.operator_tcp if settings.firewall.operator_access == "networks" else []
    unheard = set(vpn_bypass) - {port for _, port, _ in listeners}
    assert seen.open == {*settings.firewall.public_tcp, *vpn_bypass} - unheard
    assert seen.others == {"filtered", *(["closed"] if unheard else [])}


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_a_peer_of_the_vpn_reaches_the_operators_ports_and_no_other(outside, scans, settings, listeners, ipv6):
    """A VPN client reaches the operator's ports and no other port."""
    if ("vpn", ipv6) not in scans:
        not_exercised("only the mini PC has a VPN")
    seen = scans["vpn", ipv6]
    heard = {port for _, port, _ in listeners}
    ingress = {443, OPERATOR_INGRESS} if settings.services.for_operator else set()
    assert seen.open == {*settings.firewall.operator_tcp, *settings.vpn.services.values(), *ingress} & heard
    assert seen.others <= {"filtered", "closed"}


def test_udp_is_heard_by_those_who_should_only(udp_listeners, settings):
    """Only expected programs listen on UDP ports.

    This cannot be seen from outside, because WireGuard is silent too. So the listeners are listed on the machine.
    """
    allowed = {(settings.vpn.port, ""), (settings.vpn.port, "wireguard-go"), (443, "caddy")}
    allowed |= {(68, "systemd-network"), (546, "systemd-network"), (68, "dhclient"), (68, "dhcpcd"), (546, "dhcpcd")}
    if settings.services.runtime == "podman":
        # Names inside the networks of services; the rules close it to all sides.
        allowed |= {(53, "aardvark-dns")}
    found = {(port, program) for _, port, program in udp_listeners if program != "python3"}  # the canary
    # 8472: the cluster's own network between nodes; the rules close it to all sides.
    assert found - allowed - {(8472, "")} == set()


def test_no_datagram_gets_in(outside, operator, canary, disturb):
    """UDP packets to a port that is not open are not answered."""
    itself = f"timeout 3 bash -c 'exec 3<>/dev/udp/127.0.0.1/{canary}; echo canary >&3; head -c1 <&3'"
    assert disturb(itself) == "c", "the canary itself does not answer"
    tries = [(side, address) for side in (outside, operator) for address in side.addresses]
    with ThreadPoolExecutor(len(tries)) as pool:
        answered = list(pool.map(lambda each: answers_udp(each[0], each[1], canary), tries))
    assert not any(answered)


def test_a_port_forwarded_to_a_pod_does_not_answer_outside(outside, operator, pod, disturb):
    """A port that is forwarded to a pod is not reachable from outside."""
    tries = [(side, address) for side in (outside, operator) for address in side.addresses]

    def dropped() -> int:
        return sum(count for _, count in packets(disturb, "chain inet minipc forward"))

    before = dropped()
    with ThreadPoolExecutor(len(tries)) as pool:
        seen = list(pool.map(lambda each: scan(each[0], each[1], {NODE_PORT}), tries))
    assert [each.open for each in seen] == [set()] * len(tries)
    assert dropped() - before >= len(tries), "the packets did not come as far as the forward chain: nothing was proven"


def test_a_pod_reaches_the_database_and_the_cache_and_nothing_else_of_the_machine(pod, disturb, settings, canary):
    """A pod reaches the database and the cache, but no other port of the machine.

    A listener on all addresses of the machine must not answer the pod.
    """

    def answers(address: str, port: int) -> bool:
        line = f"timeout 2 bash -c '</dev/tcp/{address}/{port}'"
        return disturb(f"ip netns exec canary {line} 2>/dev/null && echo yes || true") == "yes"

    at = settings.host.service_address
    heard = disturb("ss -Hltn")
    data = [port for port in (settings.postgres.port, settings.redis.port) if f"{at}:{port} " in heard]
    if not data:
        not_exercised("neither PostgreSQL nor Redis is on this machine")
    assert all(answers(at, port) for port in data)
    assert not any(answers(address, port) for address in (at, "10.42.255.1") for port in (22, canary))


def near_and_far(settings, pod):
    """Return what a pod tries to reach: source, address, port, and whether the packet may leave the machine."""
    found = [(pod, "198.51.100.77", 443, True), (pod, str(ip_network(settings.vpn.network)[-2]), 22, False)]
    found += [("fd42::2", str(ip_network(settings.vpn.network_ipv6)[77]), 22, False)]
    for network in map(ip_network, settings.firewall.operator_networks):
        source = pod if network.version == 4 else "fd42::2"
        # In a large network, an address that is not used.
        address = str(network[-2] if network.version == 4 and network.num_addresses > 2 else network[-1])
        found += [(source, address, port, port == 53) for port in (22, 80, 53)]
    return found


def test_a_pod_reaches_the_world_and_resolvers_and_nothing_else_that_is_the_operators(
    request, target, disturb, settings
):
    """A pod reaches the internet and DNS resolvers, but not the operator's networks.

    What leaves the machine is counted, because devices in the operator's networks and in the VPN need not answer.
    """
    if target.role == "offsite":
        not_exercised("no pod runs on the off-site host, which forwards nothing")
    tries = near_and_far(settings, request.getfixturevalue("pod"))
    rules = [
        f"ip{'6' if ':' in source else ''} saddr {source} ip{'6' if ':' in source else ''} daddr {address} "
        f"tcp dport {port} counter"
        for source, address, port, _ in tries
    ]
    body = "; ".join(rules)
    table = f"""table inet leaves {{
        chain arrived {{ type filter hook prerouting priority -290; {body}; }}
        chain passed {{ type filter hook postrouting priority -290; {body}; }}
    }}"""
    knocks = "\n".join(
        f"ip netns exec canary timeout 2 bash -c '</dev/tcp/{address}/{port}' 2>/dev/null &"
        for _, address, port, _ in tries
    )
    disturb("nft delete table inet leaves 2>/dev/null; true")
    try:
        disturb(f"printf %s {shlex.quote(table)} | nft -f -; {knocks}\nwait; true")
        seen = packets(disturb, "table inet leaves")
    finally:
        disturb("nft delete table inet leaves")
    counted = {name: [count > 0 for chain, count in seen if chain == name] for name in ("arrived", "passed")}
    assert all(counted["arrived"]), f"not all of them came as far as the rules: nothing was proven: {seen}"
    assert dict(zip(tries, counted["passed"], strict=True)) == {each: each[-1] for each in tries}


def test_a_borrowed_source_address_does_not_open_ssh(outside, forged, canary, disturb):
    """A forged source address does not give access to SSH.

    An operator's address that arrives on the public side, and the other way round; IPv4 and IPv6.
    """
    with ThreadPoolExecutor(len(forged)) as pool:
        list(pool.map(lambda each: connect_from(*each), forged))
    seen = packets(disturb, "table inet canary")
    arrived = [count for chain, count in seen if chain == "arrived"]
    assert all(arrived), f"the forged packets did not all arrive: nothing was proven: {arrived}"
    assert [count for chain, count in seen if chain == "passed"] == [0] * len(forged)


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_ping_and_neighbour_discovery_work(outside, operator, ipv6):
    """The machine answers ping and neighbour discovery."""
    for side in (outside, operator):
        address = side.addresses[ipv6]
        side.run("ip", "neighbour", "flush", "to", address)
        done = side.run("nmap", *(["-6"] if ipv6 else []), "-n", "-sn", "-PE", "--disable-arp-ping", address)
        assert "1 host up" in done.stdout, f"{side.name}: {done.stdout}"


def test_what_is_not_allowed_is_dropped(ruleset):
    """The firewall drops every packet that no rule allows."""
    chains = {
        each["chain"]["name"]: each["chain"] for each in ruleset if each.get("chain", {}).get("table") == "minipc"
    }
    assert chains["input"]["hook"] == "input"
    assert chains["input"]["policy"] == "drop"


def test_the_rules_in_force_are_those_of_the_file(sh):
    """The active firewall rules are those of the configuration file."""
    listing = "nft -s -t list table inet minipc"
    assert sh(listing) == sh(f"unshare -n sh -c 'nft -f /etc/minipc/firewall.nft && {listing}'")


# Programs that any account may connect to: each asks for a login, or has nothing to protect.
ASK_FOR_A_LOGIN = {
    "aardvark-dns": "podman's names of containers; asks for none, and tells addresses only",
    "caddy": "the public ingress",
    "containerd": "a stream needs its token, which the kubelet gives once",
    "grafana": "password",
    "k3s-server": "client certificates; health and metrics of the proxy contain no secret",
    "postgres": "password",
    "redis-server": "password",
    "sshd": "key",
    "systemd": "ArgoCD's user interface: password",
}


def test_an_account_reaches_no_program_that_asks_for_no_login(script, listeners, settings, target):
    """Local accounts cannot connect to programs on this machine that ask for no login."""
    if target.role != "mini":
        not_exercised("only the mini PC has such programs")
    here = {(address, port, program) for address, port, program in listeners if "%" not in address}
    assert {port for _, port, _ in here} >= {9090, 9121}
    lines = [
        f"timeout 3 bash -c '</dev/tcp/{LOOPBACK.get(address, address)}/{port}' && echo {port} {program}"
        for address, port, program in sorted(here)
    ]
    shell = "setpriv --reuid=65534 --regid=65534 --clear-groups bash 2>/dev/null"
    text = "\n".join(lines)
    reached = {tuple(line.split()) for line in script(f"{shell} <<'END'\n{text}\nEND").splitlines()}
    assert {program for _, program in reached} <= ASK_FOR_A_LOGIN.keys(), reached
    assert not {int(port) for port, _ in reached} & {port for _, port in loopback_ports(settings)}


def test_the_rules_of_loopback_in_force_are_those_of_the_file(sh, target):
    """The active rules for programs on loopback are those of the configuration file."""
    if target.role != "mini":
        not_exercised("only the mini PC has such rules")
    listing = "nft -s list table inet minipc_loopback"
    found = [sh(listing), sh(f"unshare -n sh -c 'nft -f /etc/minipc/loopback.nft && {listing}'")]
    # The kernel lists the elements of a set in no order.
    assert len({_rules_and_elements(each) for each in found}) == 1


def _rules_and_elements(listing: str) -> tuple[str, frozenset[str]]:
    rules = re.sub(r"elements = \{[^}]*\}", "", listing)
    return rules, frozenset(re.findall(r"[^\s,{]+ \. \d+", listing))


def test_the_rules_are_loaded_before_the_network_at_each_boot(units):
    """The firewall rules are loaded before the network starts at boot."""
    unit = units("minipc-firewall.service")
    assert unit["UnitFileState"] == "enabled"
    assert unit["ActiveState"] == "active"
    assert "network-pre.target" in unit["Before"].split()


def test_debians_own_unit_never_flushes_the_rules(units):
    """Debian's nftables unit is disabled, so it cannot flush the rules."""
    assert units("nftables.service")["ActiveState"] == "inactive"
    assert units("nftables.service")["UnitFileState"] != "enabled"


def others_and_ours(disturb) -> tuple[str, str]:
    return disturb("nft -s list table inet canary"), disturb("nft -s -t list table inet minipc")


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_other_programs_tables_survive(canary, disturb, verb):
    """Firewall tables of other programs survive the command."""
    before = others_and_ours(disturb)
    disturb(f"systemctl {verb} minipc-firewall")
    assert others_and_ours(disturb) == before


FLOOD = """
import socket, sys, time
address, port, number, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
held = []
for _ in range(number):
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    one.setblocking(False)
    one.connect_ex((address, port))
    held.append(one)
    time.sleep(pause)
time.sleep(0.5)
def connected(one):
    try:
        return bool(one.getpeername())
    except OSError:
        return False
print(sum(map(connected, held)))
"""


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_a_client_that_connects_too_often_is_slowed_down_and_nobody_else(
    outside, operator, canary, disturb, settings, public_port, ipv6
):
    """A client that connects too often is limited; other clients are not."""
    burst = 2 * settings.firewall.client_new_per_s
    got = outside.run(sys.executable, "-c", FLOOD, outside.addresses[ipv6], str(public_port), str(burst + 100), "0")
    dropped = [count for _, count in packets(disturb, "chain inet minipc public")]
    assert burst / 2 <= int(got.stdout) < burst + 100, got.stderr
    assert dropped[1 if ipv6 else 0] > 0
    assert operator.reaches(public_port)
    disturb("systemctl reload minipc-firewall")  # resets the limits: the next checks are clients too


def test_a_client_holds_no_more_connections_than_it_may(outside, operator, canary, disturb, settings, public_port):
    """A client cannot hold more connections than allowed."""
    most = settings.firewall.client_connections
    pause = 1.5 / settings.firewall.client_new_per_s
    got = outside.run(
        sys.executable, "-c", FLOOD, outside.ipv4, str(public_port), str(most + 40), str(pause), timeout_s=60
    )
    dropped = [count for _, count in packets(disturb, "chain inet minipc public")]
    assert int(got.stdout) == most, got.stderr
    assert dropped[2] > 0
    assert operator.reaches(public_port)
    disturb("systemctl reload minipc-firewall")


def test_a_stopped_firewall_stays_shut(outside, canary, disturb, settings):
    """Stopping the firewall unit does not open any port."""
    public_ports = set(settings.firewall.public_tcp)
    before = others_and_ours(disturb)
    disturb("systemctl stop minipc-firewall")
    try:
        assert others_and_ours(disturb) == before
        assert scan(outside, outside.ipv4, {22, canary, *public_ports}) == Scan(public_ports, {"filtered"})
    finally:
        disturb("systemctl start minipc-firewall")
