"""K3s beyond one converge: the rehearsal with the service in the cluster, and a second machine that joins."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minipc import artifacts, lab
from minipc.lab.inventory import entry, pin_lab_machine
from minipc.paths import ROOT
from minipc.secrets.generate import generate
from playbooks import gitops
from playbooks.adopt import adopt
from tests.lab.conftest import converge, on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400, func_only=True)]
NAME = f"test-k3s-{os.getpid()}"
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
AGENT = """\
set -eu
apt-get update -qq
apt-get install -y -qq --no-install-recommends iptables ipset >/dev/null
install -m 755 /root/k3s /usr/local/bin/k3s
install -D -m 644 /root/images /var/lib/rancher/k3s/agent/images/k3s.tar.zst
umask 077
mkdir -p /etc/rancher/k3s/config.yaml.d /var/lib/rancher/k3s/agent/etc/kubelet.conf.d
mkdir -p /var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d
cat > /etc/rancher/k3s/token
cat > /etc/rancher/k3s/config.yaml <<END
server: https://{server}:6443
token-file: /etc/rancher/k3s/token
node-name: {name}
node-ip: {address}
END
cp /root/lab-config.yaml /etc/rancher/k3s/config.yaml.d/90-lab.yaml
cp /root/lab-kubelet.conf /var/lib/rancher/k3s/agent/etc/kubelet.conf.d/90-lab.conf
cp /root/lab-containerd.toml /var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/90-lab.toml
sed 's/k3s server/k3s agent/' /root/k3s.service > /etc/systemd/system/k3s-agent.service
systemctl daemon-reload
systemctl enable --quiet --now k3s-agent.service
"""


@pytest.fixture(scope="module")
def _artifacts(lab_ready: None) -> None:
    if lacking := gitops.missing():
        pytest.skip(f"NOT EXERCISED: not in the cache: {', '.join(lacking)}")


@pytest.fixture(scope="module")
def cluster(_artifacts: None) -> Iterator[lab.Machine]:
    """A machine with a node, and nothing in it."""
    with lab.machine(NAME, k3s=True, disk_gb=10) as machine:
        adopt(entry(machine), machine.host_key_fingerprint, pin_lab_machine)
        generate("lab")
        done = converge(machine, *UNTIL_THE_NODE, options=("--data", f"k3s_node_ip={machine.operator_ipv4}"))
        assert done.code == 0, done.output[-4000:]
        yield machine


def kubectl(machine: lab.Machine, *words: str, stdin: str = "") -> str:
    return lab.run(machine, ["k3s", "kubectl", *words], stdin=stdin, timeout=200).stdout


def test_a_second_machine_joins_and_runs_a_pod(cluster):
    """As docs/reference/k3s.md tells it, with what lab machines need besides."""
    name = f"{NAME}-agent"
    with lab.machine(name, k3s=True, disk_gb=8) as agent:
        upstream = {each: artifacts.resolve(each, artifacts.own_arch()).path for each in ("k3s", "k3s-images")}
        templates = [
            ROOT / "templates/k3s" / each for each in ("k3s.service", "lab-kubelet.conf", "lab-containerd.toml")
        ]
        copy(agent, {"k3s": upstream["k3s"], "images": upstream["k3s-images"]})
        copy(agent, {path.name: path for path in [*templates, ROOT / "templates/k3s/lab-config.yaml"]})
        token = on(cluster, "cat /etc/rancher/k3s/token")
        script = AGENT.format(server=cluster.operator_ipv4, name=name, address=agent.operator_ipv4)
        lab.run(agent, ["bash", "-c", script], stdin=token, timeout=400)
        kubectl(cluster, "wait", "--for=create", f"node/{name}", "--timeout=120s")
        kubectl(cluster, "wait", "--for=condition=Ready", f"node/{name}", "--timeout=120s")
        pod: dict[str, Any] = json.loads(json.dumps(POD))
        pod["spec"]["nodeName"] = name
        kubectl(cluster, "create", "-f", "-", stdin=json.dumps(pod))
        kubectl(cluster, "wait", "--for=condition=Ready", "pod/visitor", "--timeout=120s")
        kubectl(cluster, "delete", "pod", "visitor", "--grace-period=1")
        kubectl(cluster, "delete", "node", name)


def test_a_token_that_is_not_ours_joins_nothing(cluster):
    said = on(
        cluster,
        "curl --silent --insecure --noproxy '*' --user node:stranger --output /dev/null --write-out '%{http_code}' "
        "https://127.0.0.1:6443/v1-k3s/readyz",
    )
    assert said in ("401", "403")


def copy(machine: lab.Machine, files: dict[str, Path | None]) -> None:
    for name, path in files.items():
        assert path
        argv = ["scp", "-q", "-F", str(lab.ssh_config_path()), str(path), f"{machine.name}:/root/{name}"]
        subprocess.run(argv, check=True, timeout=120)


@pytest.mark.usefixtures("_artifacts")
def test_the_rehearsal_passes_with_the_service_in_the_cluster():
    name = f"{NAME}-r"
    try:
        done = run("minipc", "rehearse", "--runtime", "k3s", "--name", name, timeout_s=2300)
    finally:
        lab.down([name, f"{name}-2", f"offsite-{name}"])
    assert done.code == 0, done.output[-4000:]
    found = re.search(r"Record\s+(\S+)", done.output)
    assert found, done.output
    record = json.loads(Path(found[1]).read_text())
    assert record["runtime"] == "k3s"
    phases = {phase["name"] for phase in record["phases"]}
    assert {"deploy repository", "first release", "images", "runtime", "gitops"} <= phases
    assert {item["name"] for item in record["artifacts"]} >= {"k3s", "k3s-images", "argocd-manifest", "argocd-images"}
