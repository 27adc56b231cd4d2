"""Canaries: listeners that would answer if the firewall let packets pass. They prove that silence is its effect.

One listens on a random port of all addresses. The other one is in a network namespace in place of a pod. It is reached
by the same kind of rules as Kubernetes creates for a NodePort, a hostPort and a LoadBalancer, with a chain that accepts
all forwarded packets, as the cluster's own chains do.
"""

from __future__ import annotations

import secrets
import shlex
from dataclasses import dataclass

from minipc.core.errors import CouldNotVerifyError
from minipc.remote.inventory import Target
from minipc.remote.queries import on

UNIT = "minipc-proof"
NAMESPACE = "minipc-proof"
TABLE = "minipc_proof"
POD, POD6, POD_PORT = "10.42.254.2", "fd42:fe::2", 8080
NODE_PORT, HOST_PORT, LOAD_BALANCER_PORT = 30998, 18080, 8081
LIFETIME_S = 900
BRIDGE_WITHIN_S = 120
ANSWER_S = 20
# Below the ports that Linux gives to outgoing connections (from 32768) and to NodePorts (from 30000).
LISTENER_PORTS = range(20_000, 30_000)

# Answers on TCP and UDP, on every address there is.
LISTENER = """
import socket, sys, threading
port = int(sys.argv[1])
tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
udp.bind(("::", port))
def echo():
    while True:
        udp.sendto(*udp.recvfrom(64))
threading.Thread(target=echo, daemon=True).start()
while True:
    tcp.accept()[0].close()
"""


@dataclass(frozen=True)
class Canaries:
    """The ports of the canaries."""

    listener: int

    @property
    def ports(self) -> dict[int, str]:
        """Return each port and its description."""
        return {
            self.listener: "canary on all addresses",
            NODE_PORT: "canary behind a NodePort",
            HOST_PORT: "canary behind a hostPort",
            LOAD_BALANCER_PORT: "canary behind a LoadBalancer",
        }


def place(target: Target, public_ipv4: str, public_ipv6: str) -> Canaries:
    """Start the canaries, and check that each answers on the machine itself.

    Raises:
        CouldNotVerifyError: one of them does not answer, so its silence outside would prove nothing.
    """
    canaries = Canaries(secrets.choice(LISTENER_PORTS))
    remove(target)
    bridge = target.settings.firewall.pod_interfaces[0]
    node = f"tcp dport {{ {NODE_PORT}, {HOST_PORT} }} fib daddr type local"
    balancer = f"tcp dport {LOAD_BALANCER_PORT}"
    lines = [
        f"{node} dnat ip to {POD}:{POD_PORT}",
        f"{node} dnat ip6 to [{POD6}]:{POD_PORT}",
        f"ip daddr {public_ipv4} {balancer} dnat to {POD}:{POD_PORT}",
        f"ip6 daddr {public_ipv6} {balancer} dnat to [{POD6}]:{POD_PORT}",
    ]
    table = f"""table inet {TABLE} {{
        chain prerouting {{ type nat hook prerouting priority dstnat; {"; ".join(lines)}; }}
        chain output {{ type nat hook output priority dstnat; {"; ".join(lines)}; }}
        chain before {{ type filter hook forward priority filter - 10; accept; }}
        chain after {{ type filter hook forward priority filter + 10; accept; }}
    }}"""
    listen = f"systemd-run -q --collect -p RuntimeMaxSec={LIFETIME_S} --unit={UNIT}"
    program = f"python3 -c {shlex.quote(LISTENER)}"
    on(
        target,
        f"""set -e
        ip netns add {NAMESPACE}
        if systemctl -q is-enabled k3s 2>/dev/null; then
            # After a boot the cluster creates its bridge with its first pod. Do not create another one in its place.
            for i in $(seq {BRIDGE_WITHIN_S}); do ip link show {bridge} >/dev/null 2>&1 && break; sleep 1; done
        fi
        if ! ip link show {bridge} >/dev/null 2>&1; then
            ip link add {bridge} type bridge
            touch /run/{UNIT}-bridge
        fi
        ip link add {UNIT[:12]}0 type veth peer name eth0 netns {NAMESPACE}
        ip link set {UNIT[:12]}0 master {bridge} up
        ip address add 10.42.254.1/30 dev {bridge}
        ip address add fd42:fe::1/64 dev {bridge} nodad
        ip link set {bridge} up
        ip -n {NAMESPACE} address add {POD}/30 dev eth0
        ip -n {NAMESPACE} address add {POD6}/64 dev eth0 nodad
        ip -n {NAMESPACE} link set eth0 up
        ip -n {NAMESPACE} route add default via 10.42.254.1
        ip -n {NAMESPACE} -6 route add default via fd42:fe::1
        {listen} {program} {canaries.listener}
        {listen}-pod -p NetworkNamespacePath=/run/netns/{NAMESPACE} {program} {POD_PORT}
        printf %s {shlex.quote(table)} | nft -f -
        """,
        timeout_s=BRIDGE_WITHIN_S + 60,
    )
    tries = [("127.0.0.1", canaries.listener), (POD, POD_PORT), (POD6, POD_PORT), (public_ipv4, NODE_PORT)]
    tries += [(public_ipv4, HOST_PORT), (public_ipv4, LOAD_BALANCER_PORT), (public_ipv6, LOAD_BALANCER_PORT)]
    silent = on(
        target,
        "exec bash -s",
        stdin="".join(_report_if_silent(*each) for each in tries),
        timeout_s=len(tries) * (ANSWER_S + 10),
    )
    if silent:
        raise CouldNotVerifyError(
            "a canary does not answer on the machine itself, so its silence from outside proves nothing: "
            f"{', '.join(silent.split())}",
            f"on the machine, `journalctl -u '{UNIT}*' -n 20` says why; then run the same command again",
        )
    return canaries


def _report_if_silent(address: str, port: int) -> str:
    """Return shell lines that print the address and the port unless a connection succeeds within ANSWER_S."""
    connect = shlex.quote(f"</dev/tcp/{address}/{port}")
    return (
        f"answered=; end=$((SECONDS + {ANSWER_S}))\n"
        f'while [ -z "$answered" ] && [ $SECONDS -lt $end ]; do\n'
        f"    if timeout 3 bash -c {connect} </dev/null 2>/dev/null; then answered=yes; else sleep 0.2; fi\n"
        f"done\n"
        f'[ -n "$answered" ] || echo {address}:{port}\n'
    )


def disturb_the_cluster(target: Target) -> None:
    """Delete the cluster's table and load it again, so that its rules come after ours."""
    on(
        target,
        f"nft list table inet {TABLE} > /run/{TABLE}.nft; nft delete table inet {TABLE}; nft -f /run/{TABLE}.nft",
    )


def remove(target: Target) -> None:
    """Remove the canaries. Idempotent."""
    bridge = target.settings.firewall.pod_interfaces[0]
    on(
        target,
        f"""(systemctl stop {UNIT} {UNIT}-pod; nft delete table inet {TABLE}; ip link delete {UNIT[:12]}0
        ip netns delete {NAMESPACE}; ip address delete 10.42.254.1/30 dev {bridge}
        ip address delete fd42:fe::1/64 dev {bridge}
        # A pod that was started meanwhile still needs it.
        [ ! -e /run/{UNIT}-bridge ] || [ -n "$(ls /sys/class/net/{bridge}/brif)" ] || ip link delete {bridge}
        rm -f /run/{UNIT}-bridge /run/{TABLE}.nft
        ) >/dev/null 2>&1; true""",
    )
