"""Checks of a K3s agent: node, access, and the way of its pods to the data on the server."""

from __future__ import annotations

import json
import shlex

import pytest
import yaml

from minipc.pyinfra_ext.facts.k3s import AS_THE_NODE
from minipc.remote.inventory import the_target
from tests.verify.conftest import eventually, not_exercised

UNIT = "k3s-agent.service"
KUBELET, EXPORTER = 10250, 9100


@pytest.fixture(scope="session", autouse=True)
def _is_here(k3s_is_here):
    """Skip all checks of this file as NOT EXERCISED where K3s is not installed."""


@pytest.fixture(scope="session")
def server(environment, settings):
    """Return the address of the cluster's server."""
    return the_target(environment, settings.k3s.server).settings.k3s.node_ip


@pytest.fixture(scope="session")
def node(sh, settings):
    """Return a function that reads the machine's own node from the API."""
    get = f"{AS_THE_NODE} get node {settings.host.name} --output json --request-timeout=20s"
    return lambda: json.loads(sh(get))


def ready(node) -> bool:
    conditions = {each["type"]: each["status"] for each in node["status"]["conditions"]}
    return conditions.pop("Ready") == "True" and set(conditions.values()) == {"False"}


def test_the_node_takes_pods(node):
    """The Kubernetes agent node is ready and has no pressure condition."""
    assert ready(node()), node()["status"]["conditions"]


def test_it_has_the_address_that_the_others_know(node, settings):
    """The agent node has the address that the other nodes use."""
    addresses = {each["type"]: each["address"] for each in node()["status"]["addresses"]}
    assert addresses["InternalIP"] == settings.k3s.node_ip
    # Where the other nodes send pods' packets.
    assert node()["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] == settings.k3s.node_ip


def test_the_unit_starts_at_boot_and_comes_back(units):
    """The K3s agent starts at boot and restarts after a crash."""
    found = units(UNIT)
    assert (found["UnitFileState"], found["Restart"], found["KillMode"]) == ("enabled", "always", "process")


def test_the_data_is_reached_by_its_address_and_over_the_server(sh, settings, server):
    """The agent reaches the database and the cache through the server."""
    assert f"via {server} " in sh(f"ip route get {settings.host.service_address}")
    for port in (settings.postgres.port, settings.redis.port):
        sh(f"timeout 3 bash -c '</dev/tcp/{settings.host.service_address}/{port}'")


def test_the_way_to_the_data_comes_back(disturb, settings):
    """The route to the database is restored after it was removed.

    The network manager may drop it when it is restarted or a cable is disconnected.
    """
    address = f"{settings.host.service_address}/32"
    disturb(f"ip route delete {address}")
    assert eventually(lambda: " via " in disturb(f"ip route show {address}"), within_s=15, every_s=1)


def test_the_database_asks_this_machine_for_a_password(sh, settings):
    """The database asks connections from the agent for a password.

    Pods on the agent connect with the agent's address. The database would otherwise refuse the client.
    """
    names, address = settings.postgres.databases[0], (settings.host.service_address, settings.postgres.port)
    words = f"user\\0{names.runtime}\\0database\\0{names.name}\\0\\0"
    program = (
        f"import socket, struct; s = socket.create_connection({address}, 5); w = b'{words}'; "
        "s.sendall(struct.pack('!II', 8 + len(w), 196608) + w); print(s.recv(1).decode())"
    )
    assert sh(f"python3 -c {shlex.quote(program)}") == "R"


def test_nothing_else_of_the_server_answers(sh, settings, server):
    """The agent reaches no other port of the server."""
    closed = [(server, 22), (server, 8443), (settings.host.service_address, 22), (server, settings.postgres.port)]
    tries = [f"timeout 2 bash -c '</dev/tcp/{address}/{port}' && echo {port}" for address, port in closed]
    assert sh(f"({'; '.join(tries)}; true) 2>/dev/null") == ""


def test_a_pod_reaches_the_data_and_neither_machines_ssh(sh, settings, server):
    """A pod on the agent reaches the database and the cache, but no SSH server.

    The requests come from a network namespace in the pod network; no pod is started.
    """
    bridge = sh("ip -brief address show cni0 2>/dev/null | awk '{print $3}'")
    if not bridge:
        not_exercised("no pod runs here yet")
    address, prefix = bridge.split("/")
    guest, data = f"{address.rsplit('.', 1)[0]}.250", settings.host.service_address
    wanted = [(data, settings.postgres.port), (data, settings.redis.port), (server, 6443)]
    closed = [(data, 22), (server, 22), (address, 22), (settings.k3s.node_ip, 22), (address, KUBELET)]
    reach = "ip netns exec verify-pod timeout 3 bash -c '</dev/tcp/{0}/{1}' && echo {0} {1}"
    lines = [
        "ip netns add verify-pod",
        "ip link add verify0 type veth peer name eth0 netns verify-pod",
        "ip link set verify0 master cni0 up",
        f"ip -n verify-pod address add {guest}/{prefix} dev eth0",
        "ip -n verify-pod link set eth0 up",
        f"ip -n verify-pod route add default via {address}",
        *(reach.format(*each) for each in wanted + closed),
    ]
    try:
        reached = sh(f"({'; '.join(lines)}; true) 2>/dev/null").splitlines()
    finally:
        sh("ip netns del verify-pod; ip link del verify0 2>/dev/null || true")
    assert reached == [f"{address} {port}" for address, port in wanted]


# --- access ----------------------------------------------------------------------------------------------------


def test_nobody_outside_reaches_the_kubelet(environment, public, operator):
    """The agent's kubelet is not reachable from outside."""
    sides = [operator, *([public] if environment.has_public_client else [])]
    assert [side.name for side in sides if side.reaches(KUBELET, within_s=0)] == []


def test_the_server_alone_may_measure_the_machine(listeners, environment, public, operator, settings, sh):
    """Only the server can read the agent's metrics.

    The alerts `TargetDown` and `AgentDown` report if the server's Prometheus cannot read them.
    """
    assert {address for address, port, _ in listeners if port == EXPORTER} == {settings.k3s.node_ip}
    sides = [operator, *([public] if environment.has_public_client else [])]
    assert [side.name for side in sides if side.reaches(EXPORTER, within_s=0)] == []
    assert "node_filesystem_avail_bytes" in sh(
        f"curl --silent --noproxy '*' http://{settings.k3s.node_ip}:{EXPORTER}/metrics"
    )


def test_the_kubelet_answers_no_stranger(sh):
    """The agent's kubelet refuses requests without credentials."""
    code = "curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{http_code}' "
    assert sh(f"{code} https://127.0.0.1:{KUBELET}/pods") == "401"
    assert "000" in sh(f"{code} http://127.0.0.1:10255/pods || true")


def test_its_credentials_are_roots_alone(sh):
    """Only root can read the agent's credentials."""
    for path in ("/etc/rancher/k3s/token", "/etc/rancher/node/password"):
        assert sh(f"stat -c '%U %a' {path}") == "root 600", path
    assert sh("stat -c '%U %a' /etc/rancher/k3s") == "root 700"


def test_its_token_makes_no_server_of_it(sh, server):
    """The agent's token does not give access to the cluster's keys.

    A server would receive the cluster's own keys.
    """
    ask = "curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{http_code}' --config -"
    with_token = 'printf \'user = "node:%s"\\n\' "$(cat /etc/rancher/k3s/token)"'
    assert sh(f"{with_token} | {ask} https://{server}:6443/v1-k3s/config") == "200"
    assert sh(f"{with_token} | {ask} https://{server}:6443/v1-k3s/server-bootstrap") in ("401", "403")


def test_node_ports_answer_on_loopback_only(sh):
    """Node ports of the agent are available on loopback only."""
    configuration = yaml.safe_load(sh("cat /etc/rancher/k3s/config.yaml"))
    assert "nodeport-addresses=127.0.0.0/8" in configuration["kube-proxy-arg"]


def test_it_comes_back_and_pods_stay(disturb, node):
    """The K3s agent restarts after a crash while its pods keep running."""
    pods = "k3s crictl ps --quiet | sort"
    before = disturb(pods)
    disturb(f"systemctl kill --kill-whom=main -s KILL {UNIT}")

    def is_back():
        try:
            return disturb(f"systemctl is-active {UNIT}") == "active" and ready(node())
        except AssertionError:
            return False

    assert eventually(is_back, within_s=120, every_s=1)
    assert disturb(pods) == before


def test_packets_between_the_machines_are_encrypted(sh):
    """Pods of different machines talk through WireGuard."""
    if sh("[ -e /etc/rancher/k3s/flannel.json ] || echo no"):
        not_exercised("the kernel has no WireGuard")
    assert "wireguard" in sh("ip -d link show flannel-wg")
    assert "10.42." in sh("ip route show dev flannel-wg")
