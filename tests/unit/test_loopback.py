"""Loopback is no trust boundary: an account reaches a guarded port only if it is listed for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from minipc.config import load
from minipc.pyinfra_ext.operations.files import File, render
from minipc.services.ports import loopback_ports

STRANGER = 65534
ACCOUNTS = {"prometheus": 9001, "caddy": 9002, "grafana": 9003, "loki": 9004, "syslog-ng": 9005, "ops": 9006}
CONNECT = """
import os, socket, sys
socket.setdefaulttimeout(3)
tried = [("127.0.0.1", port) for port in (9121, 9090, 30080, 3000)]
for account in map(int, sys.argv[1].split()):
    os.seteuid(account)
    for address, port in (*tried, ("10.99.0.1", 9090), ("10.42.0.2", 3000)):
        try:
            socket.create_connection((address, port)).close()
            print(account, address, port)
        except ConnectionRefusedError:
            pass
    os.seteuid(0)
"""
SERVE = """
import select, socket
servers = [socket.create_server(("", port)) for port in (9121, 9090, 30080, 3000)]
print("up", flush=True)
while True:
    for each in select.select(servers, [], [])[0]:
        each.accept()[0].close()
"""
SCRIPT = """
set -e
unshare --net sleep 60 & pod=$!
trap 'kill $pod $servers' EXIT
ip link set lo up; ip address add 10.99.0.1/32 dev lo
ip link add cni0 type veth peer name pod0; ip address add 10.42.0.1/24 dev cni0; ip link set cni0 up
while [ "$(readlink /proc/$pod/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
ip link set pod0 netns $pod
nsenter -t $pod -n sh -c 'ip address add 10.42.0.2/24 dev pod0; ip link set pod0 up'
nft -f "$1"
nsenter -t $pod -n python3 -c "$SERVE" >"$2.pod" & servers=$!
python3 -c "$SERVE" >"$2" & servers="$servers $!"
while ! [ -s "$2" -a -s "$2.pod" ]; do sleep 0.05; done
python3 -c "$CONNECT" "$3"
"""


def rules() -> str:
    settings = load("lab", host_operator_keys=[])
    values = {
        "allowed": [*loopback_ports(settings), ("caddy", 30080)],
        "operator": settings.host.operator_user,
        "vpn_ports": list(settings.vpn.services.values()),
        "pod_interfaces": ["cni0"],
    }
    entry = render("firewall", File("loopback.nft.j2", "/x"), values)
    assert isinstance(entry, File)
    assert entry.content is not None
    # The accounts of the machine do not exist here.
    return re.sub(r'"([a-z-]+)"', lambda found: str(ACCOUNTS.get(found[1], found[0])), entry.content.decode())


@pytest.fixture(scope="module")
def reached(tmp_path_factory) -> dict[int, set[str]]:
    if not shutil.which("nft") or os.geteuid():
        pytest.skip("NOT EXERCISED: no nft here, or not root")
    folder = tmp_path_factory.mktemp("loopback")
    (folder / "rules").write_text(rules())
    accounts = [0, STRANGER, 61184, *ACCOUNTS.values()]
    argv = [
        "unshare",
        "--net",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        str(folder / "rules"),
        str(folder / "up"),
        " ".join(map(str, accounts)),
    ]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env={**os.environ, "SERVE": SERVE, "CONNECT": CONNECT}
    )
    assert done.returncode == 0, done.stderr
    found = {account: set() for account in accounts}
    for line in done.stdout.splitlines():
        account, _, where = line.partition(" ")
        found[int(account)].add(where)
    return found


EXPORTER, PROMETHEUS, SERVICE, GRAFANA = (f"127.0.0.1 {port}" for port in (9121, 9090, 30080, 3000))
THROUGH_THE_VPN, POD = "10.99.0.1 9090", "10.42.0.2 3000"
EVERYTHING = {EXPORTER, PROMETHEUS, THROUGH_THE_VPN, SERVICE, GRAFANA, POD}


@pytest.mark.parametrize(
    ("account", "wanted"),
    [
        (0, EVERYTHING),
        (ACCOUNTS["ops"], EVERYTHING),
        # Grafana asks for a login itself.
        (STRANGER, {GRAFANA}),
        (ACCOUNTS["prometheus"], EVERYTHING),
        (ACCOUNTS["grafana"], {PROMETHEUS, THROUGH_THE_VPN, GRAFANA}),
        (ACCOUNTS["caddy"], {SERVICE, GRAFANA}),
        (ACCOUNTS["syslog-ng"], {GRAFANA}),
        # A proxy of the VPN.
        (61184, {PROMETHEUS, THROUGH_THE_VPN, GRAFANA}),
    ],
)
def test_an_account_reaches_what_it_needs(reached, account, wanted):
    assert reached[account] == wanted


def test_each_program_without_a_login_is_guarded():
    settings = load("lab", host_operator_keys=[])
    guarded = {port for _, port in loopback_ports(settings)}
    assert guarded >= {9090, 9093, 9100, 9115, 9121, 9180, 9187, settings.loki.port, settings.loki.grpc_port}
    assert guarded >= {each.ingress.node_port for each in settings.services.declared if each.ingress}
