"""nftables: what gets in, and from which side. Seen from outside, with listeners that would answer if they could."""

from __future__ import annotations

import json
import re
import secrets as random
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_network

import pytest

from minipc.addresses import bracketed
from minipc.separation import doors
from minipc.separation.canaries import LISTENER
from tests.verify.conftest import Side, eventually, not_exercised

CANARY = "minipc-canary"
NODE_PORT, POD_PORT = 30999, 8080
# What people find open on machines like this one, beside everything below 1024 and everything that listens.
NOTABLE = doors.NOTABLE | {1433, 2049, 3128, 3306, 3389, 4317, 5000, 5601, 5900, 7946, 9000, 9200, 10248, 10256, 11211}
NOTABLE |= {27017}


@dataclass(frozen=True)
class Scan:
    """What nmap saw: the open ports, and the states of all others."""

    open: set[int]
    others: set[str]


def scan(side: Side, address: str, ports: set[int], *options: str) -> Scan:
    """A SYN scan from a side."""
    argv = ["nmap", "-n", "-Pn", "-sS", "-T4", "--max-retries", "2", "--min-rate", "1500", "-oX", "-", *options]
    argv += ["-6"] if ":" in address else []
    done = side.run(*argv, "-p", ",".join(map(str, sorted(ports))), address, timeout_s=60)
    assert done.returncode == 0, done.stderr
    tree = ElementTree.fromstring(done.stdout)
    states = {int(port.attrib["portid"]): port.find("state").attrib["state"] for port in tree.iter("port")}
    extra = {each.attrib["state"] for each in tree.iter("extraports")}
    opened = {port for port, state in states.items() if state == "open"}
    assert states or extra, f"nmap saw nothing: {done.stderr}"
    return Scan(opened, extra | {state for state in states.values() if state != "open"})


def answers_udp(side: Side, address: str, port: int) -> bool:
    """Whether a datagram is echoed within a second."""
    line = f"exec 3<>/dev/udp/{address}/{port}; echo canary >&3; head -c1 <&3"
    return side.run("timeout", "1", "bash", "-c", line).stdout == "c"


@pytest.fixture(scope="session")
def outside(public, environment):
    """The public side, where there is a client on it."""
    if environment != "lab":
        not_exercised(
            "the controller is on the operator side; scan from elsewhere: nmap -Pn -p- and the public address"
        )
    return public


@pytest.fixture(scope="session")
def door(settings):
    """A port that is open to everyone."""
    if not settings.firewall.public_tcp:
        not_exercised("nothing on this machine is open to the public")
    return settings.firewall.public_tcp[-1]


@pytest.fixture(scope="session")
def forged(public, operator):
    """Source addresses that have no business on a side: the side, the machine's address there, the borrowed one."""
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
    """A listener on a random port of all addresses, and another program's nftables table. Where a port that is open to
    everyone has nobody behind it yet, it gets a listener too.

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
        assert eventually(lambda each=each: disturb(f"ss -Hltn sport = {each}"), 30)
    yield port
    disturb(remove)


@pytest.fixture(scope="session")
def pod(disturb, settings):
    """A network namespace on the machine in the cluster's bridge, as a pod is, and a port forwarded to it as a NodePort
    is. Its address. Where there is no cluster the bridge is made for it.
    """
    address, address6 = "10.42.255.2", "fd42::2"
    bridge = settings.firewall.pod_interfaces[0]
    there = disturb(f"ip link show {bridge} >/dev/null 2>&1 && echo yes || true")
    undo = f"ip address delete 10.42.255.1/30 dev {bridge}; ip address delete fd42::1/64 dev {bridge}"
    if not there:  # a pod that came meanwhile keeps it
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
        assert eventually(lambda each=each: disturb(reach % each), 30), "the canary pod itself does not answer"
    yield address
    disturb(remove)


@pytest.fixture(scope="session")
def scans(public, operator, environment, target, listeners, request):
    """Every address from every side, at once."""
    ports = set(range(1, 1025)) | NOTABLE | {port for _, port, _ in listeners}
    sides = [operator]
    if environment == "lab":
        ports.add(request.getfixturevalue("canary"))
        sides += [public, *([request.getfixturevalue("tunnel")] if target.role == "mini" else [])]
    wanted = [(side, address) for side in sides for address in side.addresses]
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = list(pool.map(lambda each: scan(*each, ports), wanted))
    return {(side.name, ":" in address): seen for (side, address), seen in zip(wanted, found, strict=True)}


@pytest.fixture(scope="session")
def udp_listeners(sh):
    """Address, port and program of every UDP socket that hears others than the machine itself."""
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
    """What each counter of a table, or of a chain, has seen: the chain and the number of packets."""
    rules = [each["rule"] for each in json.loads(disturb(f"nft -j list {what}"))["nftables"] if "rule" in each]
    return [(rule["chain"], part["counter"]["packets"]) for rule in rules for part in rule["expr"] if "counter" in part]


def connect_from(side: Side, address: str, source: str) -> None:
    """Tries to connect to SSH from a source address that is the client's own for as long as the try takes."""
    lifetime = ["valid_lft", "5", "preferred_lft", "5"]
    side.run("ip", "address", "replace", source, "dev", "lab0", *(["nodad"] if ":" in source else []), *lifetime)
    side.run("curl", "--silent", "--max-time", "1", "--interface", source, f"http://{bracketed(address)}:22")


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_public_reaches_the_open_ports_and_no_other(outside, scans, settings, ipv6):
    seen = scans["public", ipv6]
    assert seen.open == set(settings.firewall.public_tcp)
    # "closed" would mean that only the listener is missing: a firewall's answer is silence.
    assert seen.others == {"filtered"}


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_operator_reaches_the_open_ports_and_ssh_and_no_other(scans, operator, settings, listeners, ipv6):
    if ipv6 and not operator.ipv6:
        not_exercised("the inventory knows no IPv6 address of the machine")
    seen = scans["operator", ipv6]
    beside_the_vpn = settings.firewall.operator_tcp if settings.firewall.operator_access == "networks" else []
    unheard = set(beside_the_vpn) - {port for _, port, _ in listeners}
    assert seen.open == {*settings.firewall.public_tcp, *beside_the_vpn} - unheard
    assert seen.others == {"filtered", *(["closed"] if unheard else [])}


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_a_peer_of_the_vpn_reaches_the_operators_ports_and_no_other(outside, scans, settings, listeners, ipv6):
    if ("vpn", ipv6) not in scans:
        not_exercised("the mini PC alone has a VPN")
    seen = scans["vpn", ipv6]
    heard = {port for _, port, _ in listeners}
    assert seen.open == {*settings.firewall.operator_tcp, *settings.vpn.services.values()} & heard
    assert seen.others <= {"filtered", "closed"}


def test_udp_is_heard_by_those_who_should_only(udp_listeners, settings):
    """Nobody can tell from outside: WireGuard is silent too. So: who listens at all."""
    allowed = {(settings.vpn.port, ""), (settings.vpn.port, "wireguard-go"), (443, "caddy")}
    allowed |= {(68, "systemd-network"), (546, "systemd-network"), (68, "dhclient"), (68, "dhcpcd"), (546, "dhcpcd")}
    found = {(port, program) for _, port, program in udp_listeners if program != "python3"}  # the canary
    # 8472: the cluster's own network between nodes; the rules close it to all sides.
    assert found - allowed - {(8472, "")} == set()


def test_no_datagram_gets_in(outside, operator, canary, disturb):
    itself = f"timeout 3 bash -c 'exec 3<>/dev/udp/127.0.0.1/{canary}; echo canary >&3; head -c1 <&3'"
    assert disturb(itself) == "c", "the canary itself does not answer"
    tries = [(side, address) for side in (outside, operator) for address in side.addresses]
    with ThreadPoolExecutor(len(tries)) as pool:
        answered = list(pool.map(lambda each: answers_udp(*each, canary), tries))
    assert not any(answered)


def test_a_port_forwarded_to_a_pod_does_not_answer_outside(outside, operator, pod, disturb):
    tries = [(side, address) for side in (outside, operator) for address in side.addresses]

    def dropped() -> int:
        return sum(count for _, count in packets(disturb, "chain inet minipc forward"))

    before = dropped()
    with ThreadPoolExecutor(len(tries)) as pool:
        seen = list(pool.map(lambda each: scan(*each, {NODE_PORT}), tries))
    assert [each.open for each in seen] == [set()] * len(tries)
    assert dropped() - before >= len(tries), "the packets did not come as far as the forward chain: nothing was proven"


def test_a_pod_reaches_the_database_and_the_cache_and_nothing_else_of_the_machine(pod, disturb, settings, canary):
    """By what answers: a listener on all of the machine's addresses doesn't."""

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
    """What a pod tries to reach: source, address, port, and whether it gets on its way."""
    found = [(pod, "198.51.100.77", 443, True), (pod, str(ip_network(settings.vpn.network)[-2]), 22, False)]
    found += [("fd42::2", str(ip_network(settings.vpn.network_ipv6)[77]), 22, False)]
    for network in map(ip_network, settings.firewall.operator_networks):
        source = pod if network.version == 4 else "fd42::2"
        # Of a large network, an address that nobody has.
        address = str(network[-2] if network.version == 4 and network.num_addresses > 2 else network[-1])
        found += [(source, address, port, port == 53) for port in (22, 80, 53)]
    return found


def test_a_pod_reaches_the_world_and_resolvers_and_nothing_else_that_is_the_operators(pod, disturb, settings):
    """By what leaves the machine: neither the operator's networks nor the devices in the VPN have to answer."""
    tries = near_and_far(settings, pod)
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
    """An operator's address that arrives on the public side, and the other way round; IPv4 and IPv6."""
    with ThreadPoolExecutor(len(forged)) as pool:
        list(pool.map(lambda each: connect_from(*each), forged))
    seen = packets(disturb, "table inet canary")
    arrived = [count for chain, count in seen if chain == "arrived"]
    assert all(arrived), f"the forged packets did not all arrive: nothing was proven: {arrived}"
    assert [count for chain, count in seen if chain == "passed"] == [0] * len(forged)


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_ping_and_neighbour_discovery_work(outside, operator, ipv6):
    for side in (outside, operator):
        address = side.addresses[ipv6]
        side.run("ip", "neighbour", "flush", "to", address)
        done = side.run("nmap", *(["-6"] if ipv6 else []), "-n", "-sn", "-PE", "--disable-arp-ping", address)
        assert "1 host up" in done.stdout, f"{side.name}: {done.stdout}"


def test_what_is_not_allowed_is_dropped(ruleset):
    chains = {
        each["chain"]["name"]: each["chain"] for each in ruleset if each.get("chain", {}).get("table") == "minipc"
    }
    assert chains["input"]["hook"] == "input"
    assert chains["input"]["policy"] == "drop"


def test_the_rules_in_force_are_those_of_the_file(sh):
    listing = "nft -s -t list table inet minipc"
    assert sh(listing) == sh(f"unshare -n sh -c 'nft -f /etc/minipc/firewall.nft && {listing}'")


def test_the_rules_are_loaded_before_the_network_at_each_boot(units):
    unit = units("minipc-firewall.service")
    assert unit["UnitFileState"] == "enabled"
    assert unit["ActiveState"] == "active"
    assert "network-pre.target" in unit["Before"].split()


def test_debians_own_unit_never_flushes_the_rules(units):
    assert units("nftables.service")["ActiveState"] == "inactive"
    assert units("nftables.service")["UnitFileState"] != "enabled"


def others_and_ours(disturb) -> tuple[str, str]:
    return disturb("nft -s list table inet canary"), disturb("nft -s -t list table inet minipc")


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_other_programs_tables_survive(canary, disturb, verb):
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
    outside, operator, canary, disturb, settings, door, ipv6
):
    burst = 2 * settings.firewall.client_new_per_s
    got = outside.run(sys.executable, "-c", FLOOD, outside.addresses[ipv6], str(door), str(burst + 100), "0")
    dropped = [count for _, count in packets(disturb, "chain inet minipc public")]
    assert burst / 2 <= int(got.stdout) < burst + 100, got.stderr
    assert dropped[1 if ipv6 else 0] > 0
    assert operator.reaches(door)
    disturb("systemctl reload minipc-firewall")  # forgets who did it: the checks to come are clients too


def test_a_client_holds_no_more_connections_than_it_may(outside, operator, canary, disturb, settings, door):
    most = settings.firewall.client_connections
    pause = 1.5 / settings.firewall.client_new_per_s
    got = outside.run(sys.executable, "-c", FLOOD, outside.ipv4, str(door), str(most + 40), str(pause), timeout_s=60)
    dropped = [count for _, count in packets(disturb, "chain inet minipc public")]
    assert int(got.stdout) == most, got.stderr
    assert dropped[2] > 0
    assert operator.reaches(door)
    disturb("systemctl reload minipc-firewall")


def test_a_stopped_firewall_stays_shut(outside, canary, disturb, settings):
    doors = set(settings.firewall.public_tcp)
    before = others_and_ours(disturb)
    disturb("systemctl stop minipc-firewall")
    try:
        assert others_and_ours(disturb) == before
        assert scan(outside, outside.ipv4, {22, canary, *doors}) == Scan(doors, {"filtered"})
    finally:
        disturb("systemctl start minipc-firewall")
