"""Test K3s with a second machine, with another version and back, and in a rehearsal."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from minipc import artifacts, config
from minipc.config.service import Service
from minipc.core import yaml_text
from minipc.core.environment import LAB
from minipc.core.paths import ROOT
from minipc.gitops import admitted_images
from minipc.gitops.cluster import COMPONENT, PART_OF, SshCluster
from minipc.remote.inventory import the_target
from minipc.secrets import open_store
from minipc.secrets.generate import generate
from minipc.services import image_policy
from minipc.services import namespace as service_namespace
from playbooks import deploy_repository, rebuild
from playbooks.adopt import adopt
from rehearsal import lab, publishers, second_controller
from rehearsal.doubles.container_registry import write_image
from rehearsal.doubles.internet import Answer
from rehearsal.lab.inventory import entry
from rehearsal.lab.network import CLIENT_HOST, OPERATOR, PUBLIC, listen_as_client
from rehearsal.publishers import Publishers
from tests.lab.conftest import Done, converge, on, run
from tests.unit.cosign import Signer
from tests.unit.service_files import TINY, service
from tests.verify import test_services
from tests.verify.conftest import eventually
from tests.verify.service import InK3s

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400, func_only=True)]
NAME = f"test-k3s-{os.getpid()}"
SERVICE = next(each.name for each in config.load("lab").services.declared if each.redis)
UNTIL_THE_NODE = ("host", "firewall", "repositories", "postgres", "redis", "images", "k3s")
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "visitor", "namespace": "default"},
    "spec": {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "visitor",
                "image": "docker.io/rancher/mirrored-library-busybox:1.37.0",
                "imagePullPolicy": "Never",
                "command": ["sleep", "600"],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}
SEND = """
import socket, sys
sender = socket.socket(type=socket.SOCK_DGRAM)
sender.bind((sys.argv[1], 0))
sender.sendto(b"x", (sys.argv[2], 8472))
"""
# What arrives, and what is left of it after our rules.
COUNT = """table inet stranger {{
    chain arrived {{ type filter hook prerouting priority -290; {0}; }}
    chain passed {{ type filter hook input priority 10; {0}; }}
}}"""


def skip_without(lacking: list[str]) -> None:
    if lacking:
        pytest.skip(f"NOT EXERCISED: not in the cache: {', '.join(lacking)}")


@pytest.fixture(scope="module")
def cluster(lab_ready: None) -> Iterator[lab.Machine]:
    """Provide a machine with an empty node."""
    needed = [artifacts.resolve(name, artifacts.own_arch()) for name in ("k3s", "k3s-images")]
    skip_without([found.name for found in needed if found.origin == "missing"])
    generate("lab")
    with lab.machine(NAME, k3s=True, disk_gb=10) as machine:
        begin(machine, *UNTIL_THE_NODE)
        yield machine


def begin(machine: lab.Machine, *deploys: str) -> None:
    adopt(LAB, entry(machine), machine.host_key_fingerprint)
    done = converge(machine, *deploys)
    assert done.code == 0, done.output[-4000:]


def kubectl(machine: lab.Machine, *words: str, stdin: str = "") -> str:
    return lab.run(machine, ["k3s", "kubectl", *words], stdin=stdin, timeout=200).stdout


@pytest.fixture(scope="module")
def agent(cluster: lab.Machine) -> Iterator[lab.Machine]:
    """Provide a second machine that joined the cluster as an agent."""
    with lab.machine(f"agent-{NAME}", k3s=True, disk_gb=8) as machine:
        # The server first: it lets the new machine in.
        done = converge(cluster, "firewall", "postgres", "k3s", "prometheus", "release")
        assert done.code == 0, done.output[-4000:]
        begin(machine)
        yield machine
        kubectl(cluster, "delete", "node", machine.name, "--ignore-not-found")


@pytest.fixture(scope="module")
def visitor(cluster: lab.Machine, agent: lab.Machine) -> Iterator[str]:
    """Run a pod on the second machine."""
    pod: dict[str, Any] = json.loads(json.dumps(POD))
    pod["spec"]["nodeSelector"] = {"kubernetes.io/hostname": agent.name}
    kubectl(cluster, "create", "-f", "-", stdin=json.dumps(pod))
    kubectl(cluster, "wait", "--for=condition=Ready", "pod/visitor", "--timeout=120s")
    yield "visitor"
    kubectl(cluster, "delete", "pod", "visitor", "--grace-period=1", "--ignore-not-found")


def test_a_second_machine_joins_and_runs_a_pod_that_reaches_the_data(cluster, agent, visitor):
    """It uses the same names as pods on the server: DNS is answered through the pod network."""
    where = kubectl(cluster, "get", "pod", visitor, "-o", "jsonpath={.spec.nodeName}")
    assert where == agent.name
    for name, port, said in (("redis", 6379, "NOAUTH"), ("postgres", 5432, "")):
        ask = f"echo PING | nc -w 5 {name}.{SERVICE}.svc.cluster.local {port}"
        assert said in kubectl(cluster, "exec", visitor, "--", "sh", "-c", ask)


@pytest.mark.usefixtures("visitor")
def test_the_server_measures_the_agent(cluster, agent):
    def measured(query: str) -> list[dict[str, Any]]:
        ask = "curl --silent --get --noproxy '*' http://127.0.0.1:9090/api/v1/query --data-urlencode"
        return json.loads(on(cluster, f"{ask} {shlex.quote(f'query={query}')}"))["data"]["result"]

    def jobs() -> set[str]:
        return {each["metric"]["job"] for each in measured(f'up{{node="{agent.name}"}} == 1')}

    assert eventually(lambda: jobs() == {"agent-kubelet", "agent-node"}, within_s=60, every_s=1), jobs()
    pods = f'kubelet_running_pods{{node="{agent.name}"}}'
    assert eventually(lambda: [each["value"][1] for each in measured(f"{pods} >= 1")], within_s=60, every_s=1)
    (disk,) = measured(f'node_filesystem_avail_bytes{{node="{agent.name}",mountpoint="/"}}')
    assert float(disk["value"][1]) > 0


@pytest.mark.usefixtures("visitor")
def test_the_agent_is_verified_and_nothing_is_left_to_do(cluster, agent):
    # A rehearsal verifies the firewall of the server, because only there its ingress has a service.
    for name, components in ((agent.name, ()), (cluster.name, ("k3s",))):
        seen = run("minipc", "verify", "--inventory", "lab", "--host", name, *components, timeout_s=900)
        assert seen.code == 0, seen.output[-4000:]
    for name, components in ((agent.name, ()), (cluster.name, UNTIL_THE_NODE)):
        planned = run("minipc", "plan", "--inventory", "lab", "--host", name, *components, timeout_s=600)
        assert planned.code == 0, planned.output[-4000:]


def test_an_outsider_reaches_neither_the_pod_network_nor_a_kubelet(cluster, agent):
    """The outsider is a client of each side, and one that uses the address of the other node on the public side."""
    for machine, other in ((cluster, agent), (agent, cluster)):
        clients = (
            ("public", PUBLIC.ipv4_of(CLIENT_HOST), machine.public_ipv4),
            ("public", other.operator_ipv4, machine.public_ipv4),
            ("operator", OPERATOR.ipv4_of(CLIENT_HOST), machine.operator_ipv4),
        )
        packets = [f"ip saddr {source} ip daddr {address} udp dport 8472 counter" for _, source, address in clients]
        on(machine, f"nft '{COUNT.format('; '.join(packets))}'")
        for namespace, source, address in clients:
            knock(namespace, source, address)
        seen = json.loads(on(machine, "nft -j list table inet stranger && nft delete table inet stranger"))["nftables"]
        rules = [each["rule"] for each in seen if "rule" in each]
        counted = [(rule["chain"], rule["expr"][-1]["counter"]["packets"]) for rule in rules]
        assert counted == [*[("arrived", 1)] * len(clients), *[("passed", 0)] * len(clients)]


def knock(namespace: str, source: str, address: str) -> None:
    """Send a datagram to the pod network from an address that the client has meanwhile, and try the kubelet."""
    inside = ["ip", "netns", "exec", namespace]
    borrowed = [*inside, "ip", "address", "{}", f"{source}/32", "dev", "lab0"]
    has = subprocess.run([*inside, "ip", "-4", "-o", "address", "show", "to", source], capture_output=True).stdout
    if not has:
        subprocess.run([word.format("add") for word in borrowed], check=True)
    try:
        subprocess.run([*inside, sys.executable, "-c", SEND, source, address], check=True, timeout=20)
        argv = [*inside, "curl", "--silent", "--insecure", "--max-time", "2", "--interface", source]
        done = subprocess.run([*argv, f"https://{address}:10250/healthz"], capture_output=True)
        assert done.returncode in (7, 28), (namespace, source, address)
    finally:
        if not has:
            subprocess.run([word.format("delete") for word in borrowed], check=True)


def test_an_agent_with_a_wrong_token_does_not_join(cluster):
    said = on(
        cluster,
        "curl --silent --insecure --noproxy '*' --user node:stranger --output /dev/null --write-out '%{http_code}' "
        "https://127.0.0.1:6443/v1-k3s/readyz",
    )
    assert said in ("401", "403")


def test_after_the_loss_of_the_server_the_agent_joins_the_new_cluster(cluster, agent):
    """The steps are those in docs/reference/k3s_agent.md."""
    old = kubectl(cluster, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
    lab.down([cluster.name])
    begin(lab.up(cluster.name, k3s=True, disk_gb=10), *UNTIL_THE_NODE, "prometheus")
    assert kubectl(cluster, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}") != old
    kept = " ".join(f"/var/lib/rancher/k3s/agent/*.{kind}" for kind in ("kubeconfig", "crt", "key"))
    on(agent, f"systemctl stop k3s-agent && rm -r {kept}", timeout_s=120)
    done = converge(agent)
    assert done.code == 0, done.output[-4000:]
    kubectl(cluster, "wait", "--for=condition=Ready", "node", agent.name, "--timeout=120s")


def test_an_agent_is_drained_and_removed(cluster, agent):
    """The steps are those in docs/reference/k3s_agent.md: pods move, its password and its address are removed."""

    def node_of_the_guest() -> str:
        where = "jsonpath={.items[?(@.status.phase=='Running')].spec.nodeName}"
        return kubectl(cluster, "get", "pods", "--selector", "app=guest", "-o", where).strip()

    kubectl(cluster, "create", "-f", "-", stdin=json.dumps(guest(agent.name)))
    kubectl(cluster, "rollout", "status", "deployment/guest", "--timeout=120s")
    assert node_of_the_guest() == agent.name

    kubectl(cluster, "drain", agent.name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
    kubectl(cluster, "rollout", "status", "deployment/guest", "--timeout=120s")
    server = kubectl(cluster, "get", *SERVER, "-o", "jsonpath={.items[0].metadata.name}")
    moved = eventually(lambda: node_of_the_guest() == server, within_s=60, every_s=1)
    assert moved, kubectl(cluster, "describe", "pods", "--selector", "app=guest")
    lab.down([agent.name])
    kubectl(cluster, "delete", "node", agent.name)
    secrets = kubectl(cluster, "-n", "kube-system", "get", "secrets", "-o", "name")
    assert f"{agent.name}.node-password" not in secrets

    done = converge(cluster, "firewall", "postgres", "prometheus")
    assert done.code == 0, done.output[-4000:]
    left = ("/etc/minipc/firewall.nft", "/etc/postgresql/17/main/pg_hba.conf", "/etc/prometheus/minipc/scrape.d/*")
    assert on(cluster, f"grep -lF {agent.operator_ipv4} {' '.join(left)} || true").strip() == ""
    verified = run("minipc", "verify", "--inventory", "lab", "--host", cluster.name, "k3s", timeout_s=900)
    assert verified.code == 0, verified.output[-4000:]
    kubectl(cluster, "delete", "deployment", "guest")


def guest(node: str) -> dict[str, Any]:
    """Create a deployment that prefers that node."""
    pod: dict[str, Any] = json.loads(json.dumps(POD["spec"]))
    wish = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    preferred = [{"weight": 100, "preference": wish}]
    pod |= {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}
    pod |= {"terminationGracePeriodSeconds": 1}
    template = {"metadata": {"labels": {"app": "guest"}}, "spec": pod}
    spec = {"selector": {"matchLabels": {"app": "guest"}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "guest"}, "spec": spec}


# --- a registry that asks for a password ----------------------------------------------------------------------------

REGISTRY, READER = "localhost:5000", "reader"
PRIVATE = f"{REGISTRY}/private/visitor:1"


@pytest.fixture
def registry(cluster: lab.Machine) -> str:
    """Run Debian's registry on the node's loopback, with one image. Returns its password.

    Not the image of the other pods: the kubelet asks for a password wherever one was needed for the same content.
    """
    password = secrets.token_hex(12)
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(6)).decode()
    lab.run(cluster, ["sh", "-c", "umask 077; cat > /run/htpasswd"], stdin=f"{READER}:{hashed}\n")
    settings = "REGISTRY_AUTH=htpasswd REGISTRY_AUTH_HTPASSWD_REALM=lab REGISTRY_AUTH_HTPASSWD_PATH=/run/htpasswd "
    settings += f"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/run/registry REGISTRY_HTTP_ADDR={REGISTRY}"
    images = "k3s ctr --namespace k8s.io images"
    on(
        cluster,
        "apt-get install -y -q docker-registry </dev/null >/dev/null; systemctl disable -q --now docker-registry; "
        f"systemd-run -q --unit test-registry --collect env {settings} "
        "docker-registry serve /etc/docker/registry/config.yml; "
        f"for i in $(seq 100); do curl -s -o /dev/null http://{REGISTRY}/v2/ && break; sleep 0.1; done; "
        f"{images} tag $({images} ls -q | grep mirrored-pause: | head -n 1) {PRIVATE} && "
        f"{images} push --plain-http --platform linux/$(dpkg --print-architecture) "
        f"--user {READER}:{password} {PRIVATE} && {images} rm {PRIVATE}",
        timeout_s=300,
    )
    return password


def test_an_image_behind_a_password_is_pulled_with_the_secret(cluster, registry, inventory):
    pod: dict[str, Any] = json.loads(json.dumps(POD))
    pod["metadata"]["name"] = "member"
    pod["spec"]["containers"][0] |= {"image": PRIVATE, "imagePullPolicy": "Always", "command": ["/pause"]}
    kubectl(cluster, "create", "-f", "-", stdin=json.dumps(pod))
    reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}"
    look = ("get", "pod", "member", "-o", reason)
    assert eventually(lambda: "ImagePull" in kubectl(cluster, *look), within_s=60, every_s=1), "it asks for no password"

    open_store("lab").set_many({"k3s.registry.private": registry})
    known = {"name": "private", "host": REGISTRY, "username": READER}
    try:
        with_password = str(inventory(cluster, k3s_registries=[known]))
        done = run("pyinfra", "-y", with_password, "deploys/k3s.py", timeout_s=600)
        assert done.code == 0, done.output[-4000:]
        assert registry not in done.output
        assert on(cluster, "stat -c %a /etc/rancher/k3s/registries.yaml").strip() == "600"
        kubectl(cluster, "wait", "--for=condition=Ready", "pod/member", "--timeout=150s")
    finally:
        kubectl(cluster, "delete", "pod", "member", "--grace-period=1")
        done = converge(cluster, "images", "k3s")
    assert done.code == 0, done.output[-4000:]


# --- only verified images ---------------------------------------------------------------------------------------------

SIGNED = "signed"
VERIFIED = f"registry.example/shop@sha256:{'1' * 64}"
OTHER = f"registry.example/shop@sha256:{'2' * 64}"


@pytest.fixture
def guarded(cluster: lab.Machine, tmp_path: Path) -> Iterator[Service]:
    """Provide a service with a signer, its namespace and its policy, as a converge makes them."""
    Signer().write(tmp_path / "shop.pub")
    shop = service(TINY, name=SIGNED, image="registry.example/shop", image_signer="shop.pub", folder=str(tmp_path))
    kinds = ("Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    made = [each for each in service_namespace.objects(shop, config.load("lab")) if each["kind"] in kinds]
    assert [each["kind"] for each in made] == list(kinds)
    apply = ("apply", "--server-side", "--field-manager=minipc", "-f", "-")
    kubectl(cluster, *apply, stdin="---\n".join(map(yaml_text.dump, made)))
    try:
        yield shop
    finally:
        name = image_policy.name_of(SIGNED)
        kubectl(cluster, "delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", name)
        kubectl(cluster, "delete", "configmap", name, "-n", image_policy.NAMESPACE, "--ignore-not-found")
        kubectl(cluster, "delete", "namespace", SIGNED, "--timeout=120s")


def attempt(machine: lab.Machine, words: str, content: object = None) -> str:
    """Return why the API refuses a command; empty if it does not."""
    line = f"k3s kubectl {words} >/tmp/said 2>&1 || cat /tmp/said"
    return lab.run(machine, ["sh", "-c", line], stdin=json.dumps(content) if content else "").stdout


def start(machine: lab.Machine, image: str, space: str = SIGNED, **more: Any) -> str:
    """Return why the API would refuse a pod; empty if it would accept it."""
    pod = image_policy.probe(space, [image])
    pod["spec"] |= more
    return attempt(machine, "create --dry-run=server -f -", pod)


def test_only_verified_images_start_where_a_signer_is_named(cluster, guarded):
    api = SshCluster(the_target(LAB, cluster.name))
    denied, name = "was not verified by minipc", image_policy.name_of(SIGNED)
    # Without a list nothing starts. The API learns of a policy some moments after it was made.
    assert eventually(lambda: start(cluster, VERIFIED), within_s=60, every_s=1), "a pod starts without a list"
    warnings = "jsonpath={.status.typeChecking.expressionWarnings}"
    assert kubectl(cluster, "get", "validatingadmissionpolicy", name, "-o", warnings).strip() == ""

    admitted_images.admit(api, guarded, [VERIFIED])
    assert not start(cluster, VERIFIED), "the list has no effect yet, although this was waited for"
    assert admitted_images.known(api, guarded) == {VERIFIED}
    by_tag = ("registry.example/shop:v1", "registry.example/shop", VERIFIED.replace("@", ":v1@"))
    for image in (OTHER, *by_tag, f"evil.example/{VERIFIED}"):
        assert denied in start(cluster, image), image
    container = image_policy.probe(SIGNED, [OTHER])["spec"]["containers"][0] | {"name": "hidden"}
    assert denied in start(cluster, VERIFIED, initContainers=[container])
    mounted = [{"name": "tools", "image": {"reference": OTHER}}]
    assert start(cluster, VERIFIED, volumes=mounted), "an image is a volume"
    assert not start(cluster, OTHER, space="default"), "other namespaces are as they were"

    # What makes pods does not matter.
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "planted", "namespace": SIGNED}}
    template = {"spec": image_policy.probe(SIGNED, [OTHER])["spec"] | {"restartPolicy": "Never"}}
    kubectl(cluster, "create", "-f", "-", stdin=json.dumps(job | {"spec": {"template": template}}))
    events = f"k3s kubectl get events -n {SIGNED} --field-selector involvedObject.name=planted -o json"
    assert eventually(lambda: denied in on(cluster, events), within_s=60, every_s=1), on(cluster, events)
    assert on(cluster, f"k3s kubectl get pods -n {SIGNED} -o name").strip() == ""
    kubectl(cluster, "delete", "job", "planted", "-n", SIGNED)

    # A pod that exists: its image cannot be changed and no other program added; all else can.
    pod = image_policy.probe(SIGNED, [VERIFIED])
    labels = {COMPONENT: "main", PART_OF: SIGNED}
    pod["metadata"] = {"name": "there", "namespace": SIGNED, "finalizers": ["minipc.local/test"], "labels": labels}
    kubectl(cluster, "create", "-f", "-", stdin=json.dumps(pod))
    assert denied in attempt(cluster, f"set image -n {SIGNED} pod/there image-0={OTHER}")
    assert denied in attempt(cluster, f"debug -n {SIGNED} there --image={OTHER} --profile=restricted --attach=false")

    # The check of `minipc verify` passes, and fails when the list loses what runs.
    as_verified = InK3s(partial(on, cluster), guarded)
    test_services.test_only_verified_images_start(as_verified, partial(on, cluster))
    admitted_images.settle(api, guarded, [OTHER])
    admitted_images.settle(api, guarded, [f"registry.example/shop@sha256:{'3' * 64}"])
    assert eventually(lambda: start(cluster, VERIFIED), within_s=60, every_s=1), "it is not in the list any more"
    with pytest.raises(AssertionError, match=f"minipc release sync {SIGNED}"):
        test_services.test_only_verified_images_start(as_verified, partial(on, cluster))

    kubectl(cluster, "label", "pod", "there", "-n", SIGNED, "seen=yes")
    kubectl(cluster, "delete", "pod", "there", "-n", SIGNED, "--wait=false", "--grace-period=0", "--force")
    kubectl(cluster, "patch", "pod", "there", "-n", SIGNED, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')

    # The accounts of the service's namespace may not touch the list.
    account = f"--as=system:serviceaccount:{SIGNED}:default"
    asked = f"auth can-i update configmaps/{name} -n {image_policy.NAMESPACE} {account} 2>/dev/null || true"
    assert on(cluster, f"k3s kubectl {asked}").strip() == "no"


# --- the internet behind a proxy ------------------------------------------------------------------------------------

# K3s's own variable for its containerd, and the authority that the lab's internet has.
PROXY = """[Service]
Environment=CONTAINERD_HTTPS_PROXY={proxy} SSL_CERT_FILE=/etc/lab-authority.pem
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone whose pins may be changed."""
    path = tmp_path_factory.mktemp("internet") / "clone"
    second_controller.clone(ROOT, path)
    return path


@pytest.fixture(scope="module")
def published(cluster: lab.Machine, checkout: Path) -> Iterator[Publishers]:
    """Play the publishers of the files in the cache."""
    with publishers.serve(checkout.parent, checkout) as served:
        yield served


def test_a_converge_downloads_through_a_proxy_what_its_cache_lacks(cluster, checkout, published):
    """The same K3s: the node keeps it, so nothing but the download happens."""
    env = published.internet.environment() | {"PYTHONPATH": str(checkout)}
    env |= {"MINIPC_CACHE_DIR": str(checkout.parent / "cache")}
    published.internet.seen.clear()
    words = ("-y", "--limit", cluster.name, "inventory/lab.py", "deploys/k3s.py")
    done = run("pyinfra", *words, env=env, timeout_s=600, cwd=checkout)
    assert done.code == 0, done.output[-4000:]
    pin = published.catalogue.find("k3s", artifacts.own_arch())
    assert f"{pin}: first download, verified" in done.output
    assert {pin.url, pin.checksums} <= {each.url for each in published.internet.seen}


@pytest.fixture
def proxied(cluster: lab.Machine, published: Publishers) -> Iterator[lab.Machine]:
    """Have the node's containerd pull through the proxy."""
    proxy = published.internet.listen(listen_as_client(PUBLIC))
    authority = published.internet.authority.bundle.read_text()
    lab.run(cluster, ["sh", "-c", "cat > /etc/lab-authority.pem"], stdin=authority)
    folder, restart = "/run/systemd/system/k3s.service.d", "systemctl daemon-reload; systemctl restart k3s"
    write = f"mkdir -p {folder}; cat > {folder}/proxy.conf; {restart}"
    lab.run(cluster, ["sh", "-c", write], stdin=PROXY.format(proxy=proxy), timeout=300)
    yield cluster
    on(cluster, f"rm -r {folder} /etc/lab-authority.pem; {restart}", timeout_s=300)


def test_an_image_is_pulled_from_its_registry_through_a_proxy(proxied, published, tmp_path):
    """By tag and by digest, with a token that anyone gets. Each fault has a reason that names it."""
    image = f"{published.images[0].split('/', 1)[0]}/lab/small"
    digest = write_image(tmp_path / "layout", artifacts.own_arch(), str(tmp_path))
    published.push(tmp_path / "layout", f"{image}:v1")

    def pull(reference: str) -> str:
        return on(proxied, f"k3s crictl pull {reference} 2>&1", check=False, timeout_s=200)

    def held() -> str:
        return on(proxied, "k3s crictl images --digests --no-trunc")

    assert image not in held()
    assert "not found" in pull(f"{image}:v9")
    published.tokens.life_s = -300
    assert re.search("401|unauthorized|authorization failed", pull(f"{image}:v1"), re.IGNORECASE)
    published.tokens.life_s = 300
    host = image.split("/", 1)[0]
    published.internet.faults[host] = [Answer(429)] * 50
    assert "429 Too Many Requests" in pull(f"{image}:v1")
    published.internet.faults.clear()
    assert image not in held()
    for reference in (f"{image}:v1", f"{image}@{digest}"):
        assert "Image is up to date" in pull(reference)
    assert digest in held()
    on(proxied, f"k3s crictl rmi {image}:v1 {image}@{digest}", check=False)


# --- another version, and the way back ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """Return a version of K3s, as arguments of a converge.

    Attributes:
        name: as the artifact says it.
        env: leads a converge to it.
    """

    name: str
    env: dict[str, str]

    @property
    def program(self) -> str:
        return f"/usr/local/lib/minipc/k3s-{self.name}"


@pytest.fixture(scope="module")
def pinned(cluster: lab.Machine) -> Version:
    found = artifacts.resolve("k3s", artifacts.own_arch())
    return Version(found.version or "", {})


@pytest.fixture(scope="module")
def following(pinned: Version, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Return the next version, from a file that the caller provides (`MINIPC_NEXT_K3S`, VERSION=FILE).

    Else the same program under another name, with which everything but K3s's own change is tried.
    """
    given, _, file = os.environ.get("MINIPC_NEXT_K3S", "").partition("=")
    name = given or re.sub(r"\.(\d+)\+", lambda patch: f".{int(patch[1]) + 1}+", pinned.name)
    path = Path(file) if file else artifacts.resolve("k3s", artifacts.own_arch()).path
    version = Version(name, {"MINIPC_CACHE_DIR": str(tmp_path_factory.mktemp("next"))})
    added = run("minipc", "artifacts", "add", "k3s", str(path), "--version", name, env=version.env)
    assert added.code == 0, added.output
    return version


@pytest.fixture
def resident(cluster: lab.Machine) -> Iterator[Callable[[], tuple[str, int]]]:
    """Run a pod. Returns a function that returns its container id and restart count."""
    pod: dict[str, Any] = json.loads(json.dumps(POD))
    pod["metadata"]["name"] = "resident"
    kubectl(cluster, "create", "-f", "-", stdin=json.dumps(pod))
    kubectl(cluster, "wait", "--for=condition=Ready", "pod/resident", "--timeout=120s")

    def seen() -> tuple[str, int]:
        status = json.loads(kubectl(cluster, "get", "pod", "resident", "-o", "json"))["status"]["containerStatuses"][0]
        return status["containerID"], status["restartCount"]

    yield seen
    kubectl(cluster, "delete", "pod", "resident", "--grace-period=1", "--ignore-not-found")


SERVER = ("nodes", "--selector", "node-role.kubernetes.io/control-plane")


def marks(machine: lab.Machine) -> list[str]:
    names = kubectl(machine, "get", "configmaps", "-o", "jsonpath={.items[*].metadata.name}").split()
    return [name for name in names if name.startswith("mark-")]


def test_an_upgrade_keeps_pods_running_and_can_be_rolled_back(cluster, pinned, following, resident):
    """The steps are those in docs/reference/k3s.md: upgrade, downgrade, restore the datastore."""

    def use(version: Version) -> None:
        done = converge(cluster, "k3s", "release", env=version.env)
        assert done.code == 0, done.output[-4000:]
        assert on(cluster, "readlink -f /usr/local/bin/k3s").strip() == version.program
        if os.environ.get("MINIPC_NEXT_K3S"):
            node = kubectl(cluster, "get", *SERVER, "-o", "jsonpath={.items[0].status.nodeInfo.kubeletVersion}")
            assert node == version.name

    pod = resident()
    kubectl(cluster, "create", "configmap", "mark-before")
    use(following)
    kubectl(cluster, "create", "configmap", "mark-after")
    assert on(cluster, f"test -x {pinned.program} && echo there").strip() == "there"
    kept = f"/var/lib/minipc/k3s/state-{pinned.name}.db"
    assert on(cluster, f"stat -c '%a %U' {kept}").strip() == "600 root"
    planned = run("minipc", "plan", "--inventory", "lab", "--host", cluster.name, "k3s", env=following.env)
    assert planned.code == 0, planned.output

    use(pinned)
    assert marks(cluster) == ["mark-after", "mark-before"]
    assert resident() == pod

    state = "/var/lib/rancher/k3s/server/db/state.db"
    on(
        cluster,
        f"systemctl stop k3s && install -m 600 {kept} {state} && rm -f {state}-wal {state}-shm && systemctl start k3s",
        timeout_s=300,
    )
    kubectl(cluster, "wait", "--for=condition=Ready", *SERVER, "--timeout=200s")
    assert marks(cluster) == ["mark-before"]


# --- a rehearsal ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsal(lab_ready: None) -> Iterator[Done]:
    """Run a rehearsal in the cluster. The rebuilt machine stays up for the tests here."""
    skip_without(deploy_repository.missing())
    name = f"{NAME}-r"
    try:
        yield run("minipc", "rehearse", "--runtime", "k3s", "--name", name, "--keep", timeout_s=2300)
    finally:
        lab.down([name, f"{name}-2", f"offsite-{name}"])


def test_the_rehearsal_passes_with_the_service_in_the_cluster(rehearsal):
    assert rehearsal.code == 0, rehearsal.output[-4000:]
    record = rehearsal.record
    assert record["runtime"] == "k3s"
    phases = {phase["name"] for phase in record["phases"]}
    assert {"deploy repository", "first release", "images", "runtime", "gitops"} <= phases
    assert {item["name"] for item in record["artifacts"]} >= {"k3s", "k3s-images", "argocd-manifest", "argocd-images"}


def test_a_drill_runs_the_migrations_of_the_release(rehearsal):
    """It runs as a job of the cluster, in the restored database, and leaves nothing behind."""
    machine = lab.find(f"{NAME}-r-2")
    assert machine, rehearsal.output[-4000:]
    assert run("minipc", "drill", "--inventory", "lab", "--host", machine.name, timeout_s=600).code == 0
    result = json.loads(on(machine, "cat /var/lib/minipc/drills/last.json"))
    (migrated,) = [phase for phase in result["phases"] if phase["name"] == "migrate"]
    assert migrated["verdict"] == "pass"
    assert not [gap for gap in result["not_exercised"] if "migrations" in gap["what"]]
    assert [check["outcome"] for check in result["checks"] if "live database" in check["name"]] == ["passed"]
    events = kubectl(machine, "-n", SERVICE, "get", "events", "-o", "jsonpath={.items[*].involvedObject.name}")
    assert "drill-migrate" in events.split()
    assert "drill-migrate" not in kubectl(machine, "-n", SERVICE, "get", "jobs,pods", "-o", "name")


def test_a_database_is_replaced_and_the_service_comes_back(rehearsal):
    """The ingress is closed and the service's pods are removed meanwhile. In the end everything runs again."""
    machine = lab.find(f"{NAME}-r-2")
    assert machine, rehearsal.output[-4000:]
    found = on(machine, rebuild.SYSTEM_IDENTIFIER).strip()
    words = ["--target", machine.name, "--fingerprint", machine.host_key_fingerprint, "--replace-database", found]
    done = run("minipc", "rebuild", "--inventory", "lab", *words, timeout_s=1500)
    assert done.code == 0, done.output[-4000:]
    assert on(machine, f"ls -d {rebuild.DATA}.aside-*/PG_VERSION").count("PG_VERSION") == 1
