"""Checks of the K3s server: node, access, encryption of Secrets, pod privileges, and access to the data."""

from __future__ import annotations

import base64
import json
import secrets as random
import shlex

import pytest
import yaml

from minipc.core.addresses import bracketed
from minipc.remote.inventory import targets
from tests.verify.conftest import eventually, not_exercised

KUBECTL = "k3s kubectl --request-timeout=20s"
UNIT = "k3s.service"
API_PORT = 6443
STATE = "/var/lib/rancher/k3s/server/db/state.db"


@pytest.fixture(scope="session", autouse=True)
def _is_here(k3s_is_here):
    """Skip all checks of this file as NOT EXERCISED where K3s is not installed."""


@pytest.fixture(scope="session")
def kubectl(sh):
    """Return a function that runs kubectl as the cluster's administrator."""
    return lambda *words: sh(f"{KUBECTL} {shlex.join(words)}")


@pytest.fixture(scope="session")
def get(kubectl):
    """Return a function that reads an object of the cluster."""
    return lambda *words: json.loads(kubectl("get", *words, "--output", "json"))


@pytest.fixture(scope="session")
def configuration(sh):
    """Return the content of config.yaml."""
    return yaml.safe_load(sh("cat /etc/rancher/k3s/config.yaml"))


def test_the_node_takes_pods(get, settings):
    """The Kubernetes node is ready and has no pressure condition."""
    conditions = {each["type"]: each["status"] for each in get("node", settings.host.name)["status"]["conditions"]}
    assert conditions.pop("Ready") == "True"
    assert set(conditions.values()) == {"False"}, conditions


def test_there_is_no_node_that_is_not_in_the_inventory(get, settings, environment, target):
    """The cluster has no node that is not in the inventory."""
    names = {node["metadata"]["name"] for node in get("nodes")["items"]}
    agents = {each.settings.host.name for each in targets(environment) if each.settings.k3s.server == target.alias}
    assert settings.host.name in names <= agents | {settings.host.name}


def test_the_unit_starts_at_boot_and_comes_back(units):
    """K3s starts at boot and restarts after a crash."""
    found = units(UNIT)
    assert (found["UnitFileState"], found["Restart"], found["KillMode"]) == ("enabled", "always", "process")


def test_nothing_comes_along_that_was_not_asked_for(get):
    """K3s runs only CoreDNS and no other bundled component."""
    deployments = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in get("deploy", "-A")["items"]}
    assert {name for namespace, name in deployments if namespace == "kube-system"} == {"coredns"}


def test_names_are_resolved(get):
    """The cluster's DNS server is ready."""
    coredns = get("deploy", "coredns", "-n", "kube-system")["status"]
    assert coredns.get("readyReplicas") == 1


# --- access ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [API_PORT, 10250])
def test_the_public_reaches_neither_api_nor_kubelet(environment, public, port):
    """The Kubernetes port is not reachable from the public side."""
    if not environment.has_public_client:
        not_exercised("the controller stands on the operator side")
    for address in public.addresses:
        done = public.run("curl", "--silent", "--insecure", "--max-time", "2", "--noproxy", "*", _url(address, port))
        assert done.returncode in (7, 28), done


def test_the_operator_reaches_the_api_and_needs_a_certificate(operator):
    """The Kubernetes API refuses an operator without a certificate."""
    done = operator.run(
        *("curl", "--silent", "--insecure", "--max-time", "10", "--noproxy", "*"),
        *("--write-out", "\n%{http_code}", _url(operator.ipv4, API_PORT) + "/api"),
    )
    assert done.stdout.endswith("\n401"), done


def test_the_certificate_names_where_the_operator_connects(sh, settings):
    """The certificate of the Kubernetes API is valid for the VPN addresses."""
    for name in (settings.vpn.address, settings.vpn.address_ipv6, "127.0.0.1"):
        shown = sh(
            f"echo | openssl s_client -connect 127.0.0.1:{API_PORT} 2>/dev/null | openssl x509 -noout -checkip {name}"
        )
        assert "does match" in shown, shown


def test_the_administrators_credentials_are_roots_alone(sh):
    """Only root can read the cluster administrator's credentials."""
    for path in (
        "/etc/rancher/k3s/k3s.yaml",
        "/etc/rancher/k3s/token",
        "/etc/rancher/k3s/agent-token",
        "/etc/rancher/node/password",
    ):
        assert sh(f"stat -c '%U %a' {path}") == "root 600", path
    assert sh("stat -c '%U %a' /etc/rancher/k3s") == "root 700"


def test_a_strangers_token_opens_nothing(sh):
    """The Kubernetes API refuses an unknown token."""
    code = sh(
        "curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{http_code}' "
        f"--header 'Authorization: Bearer stranger' https://127.0.0.1:{API_PORT}/api"
    )
    assert code == "401"


def test_the_kubelet_answers_no_stranger(sh):
    """The kubelet refuses requests without credentials."""
    code = "curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{http_code}' "
    assert sh(f"{code} https://127.0.0.1:10250/pods") == "401"
    assert "000" in sh(f"{code} http://127.0.0.1:10255/pods || true")


def test_node_ports_answer_on_loopback_only(configuration):
    """Node ports are available on loopback only."""
    assert "nodeport-addresses=127.0.0.0/8" in configuration["kube-proxy-arg"]


# --- content --------------------------------------------------------------------------------------------------


def test_secrets_are_encrypted_where_they_are_kept(sh, kubectl):
    """Kubernetes Secrets are encrypted on disk."""
    value = random.token_hex(16)
    # No program uses it; it is deleted immediately.
    kubectl("create", "secret", "generic", "verify-encryption", "-n", "default", f"--from-literal=canary={value}")
    try:
        readable = base64.b64decode(
            kubectl("get", "secret", "verify-encryption", "-n", "default", "-o", "jsonpath={.data.canary}")
        ).decode()
        assert readable == value
        found = sh(f"cat {STATE} {STATE}-wal 2>/dev/null | grep -c -a -e {value} || true")
        encoded = base64.b64encode(value.encode()).decode().rstrip("=")[:-1]
        found_encoded = sh(f"cat {STATE} {STATE}-wal 2>/dev/null | grep -c -a -e {encoded} || true")
    finally:
        kubectl("delete", "secret", "verify-encryption", "-n", "default")
    assert (found, found_encoded) == ("0", "0")
    assert "Enabled" in sh("k3s secrets-encrypt status 2>/dev/null | head -n 1")


def test_a_pod_with_privileges_is_refused(sh, configuration):
    """The cluster refuses a privileged pod."""
    assert "admission-control-config-file=/etc/rancher/k3s/admission.yaml" in configuration["kube-apiserver-arg"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "verify-privileged", "namespace": "default"},
        "spec": {"containers": [{"name": "a", "image": "a", "securityContext": {"privileged": True}}]},
    }
    refused = sh(f"echo {shlex.quote(json.dumps(pod))} | {KUBECTL} create --dry-run=server -f - 2>&1 || true")
    assert 'violates PodSecurity "restricted' in refused


def test_who_did_what_is_logged_without_contents(sh, kubectl):
    """The audit log records access to a Secret, but not its content."""
    name = f"verify-{random.token_hex(4)}"
    kubectl("create", "secret", "generic", name, "-n", "default", "--from-literal=canary=notinthelog")
    kubectl("delete", "secret", name, "-n", "default")
    log = "/var/log/k3s/audit.log"
    assert eventually(lambda: sh(f"grep -c {name} {log} || true") != "0", within_s=10)
    assert sh(f"grep -c notinthelog {log} || true") == "0"
    assert sh(f"stat -c '%U %a' {log} /var/log/k3s").splitlines() == ["root 600", "root 700"]


def test_a_service_account_that_reads_secrets_is_logged(sh):
    """The audit log records a service account that tries to read a Secret.

    The account used here has no permission. Refusals and answers are logged by the same rule.
    """
    name = f"verify-{random.token_hex(4)}"
    url = f"https://127.0.0.1:6443/api/v1/namespaces/default/secrets/{name}"
    token = f"{KUBECTL} create token default -n default --duration 10m"
    ask = f"curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{{http_code}}' --header @- {url}"
    assert sh(f"printf 'Authorization: Bearer %s' $({token}) | {ask}") == "403"
    look = f"grep {name} /var/log/k3s/audit.log | grep -c system:serviceaccount:default:default || true"
    assert eventually(lambda: sh(look) != "0", within_s=10)


def test_the_databases_have_addresses_in_the_cluster(get, settings, service):
    """The database and the cache have service addresses in the cluster."""
    for name, port in (("postgres", settings.postgres.port), ("redis", settings.redis.port)):
        if getattr(service.file, name) is None:
            continue
        address = get("service", name, "-n", service.file.name)["spec"]
        assert "selector" not in address
        assert address["ports"][0]["port"] == port
        (part,) = get("endpointslices", "-n", service.file.name, "-l", f"kubernetes.io/service-name={name}")["items"]
        assert part["endpoints"][0]["addresses"] == [settings.host.service_address]
        assert part["ports"][0]["port"] == port


def test_pods_reach_the_databases_and_not_ssh(sh, settings):
    """Pods reach the database and the cache, but not SSH.

    The requests come from a network namespace in the pod network; no pod is started.
    """
    bridge = sh("ip -brief address show cni0 2>/dev/null | awk '{print $3}'")
    if not bridge:
        not_exercised("no pod runs here yet")
    address, prefix = bridge.split("/")
    guest = f"{address.rsplit('.', 1)[0]}.250"
    reach = f"ip netns exec verify-pod timeout 3 bash -c '</dev/tcp/{settings.host.service_address}/%d' 2>/dev/null"
    lines = [
        "ip netns add verify-pod",
        "ip link add verify0 type veth peer name eth0 netns verify-pod",
        "ip link set verify0 master cni0 up",
        f"ip -n verify-pod address add {guest}/{prefix} dev eth0",
        "ip -n verify-pod link set eth0 up",
        f"ip -n verify-pod route add default via {address}",
        *(
            f"{reach % port} && echo {port}"
            for port in (settings.postgres.port, settings.redis.port, API_PORT, 22, settings.backups.drill_port)
        ),
    ]
    try:
        reached = sh(f"({'; '.join(lines)}; true)").split()
    finally:
        sh("ip netns del verify-pod; ip link del verify0 2>/dev/null || true")
    assert reached == [str(settings.postgres.port), str(settings.redis.port), str(API_PORT)]


def test_it_comes_back_and_pods_stay(disturb, get, kubectl, settings):
    """K3s restarts after a crash while its pods keep running."""
    before = get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"][0]["status"]["containerStatuses"]
    disturb(f"systemctl kill --kill-whom=main -s KILL {UNIT}")

    def is_back():
        try:
            return disturb(f"systemctl is-active {UNIT} && {KUBECTL} get --raw /readyz").endswith("ok")
        except AssertionError:
            return False

    assert eventually(is_back, within_s=120, every_s=1)
    after = get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"][0]["status"]["containerStatuses"]
    assert [each["containerID"] for each in after] == [each["containerID"] for each in before]


def _url(address: str, port: int) -> str:
    return f"https://{bracketed(address)}:{port}"
