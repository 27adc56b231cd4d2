"""K3s and ArgoCD without a machine: every template renders and parses, units are valid, the manifest is cut down."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import bcrypt
import pytest
import yaml

from minipc.config import load
from minipc.core.errors import ConfigError, MinipcError
from minipc.core.paths import ROOT
from minipc.gitops import argocd_manifest
from minipc.pyinfra_ext.facts import images as facts
from minipc.pyinfra_ext.facts.k3s import ClusterNode, InterfaceOf, Node, ObjectsDiffer, PartsReady, hash_of
from minipc.pyinfra_ext.operations.files import File, render
from minipc.secrets import Secret
from minipc.secrets.hashing import hashed
from rehearsal.lab import inventory
from rehearsal.lab.machine import Machine
from rehearsal.lab.nspawn import capability_options

GHCR = {"name": "ghcr", "host": "ghcr.io", "username": "you"}
SETTINGS = load("lab", host_operator_keys=[], k3s_registries=[GHCR])
VALUES = {
    "services": load("lab", host_operator_keys=[], services_runtime="k3s").services,
    "k3s": SETTINGS.k3s,
    "argocd": SETTINGS.argocd,
    "node_name": "minipc",
    "node_interface": None,
    "server": "10.77.0.10",
    "encrypted": True,
    "pod_port": 51871,
    "node_port": argocd_manifest.NODE_PORT,
    "names": ["10.77.0.10", "fd77::10"],
    "registries": SETTINGS.k3s.registries,
    "passwords": {"ghcr": Secret("k3s.registry.ghcr", "opensesame")},
    "address": "10.88.0.1",
    "address_type": "IPv4",
    "data_ports": {"postgres": 5432, "redis": 6379},
    "repository": "ssh://git@10.0.0.1:2222/deploy.git",
    "repository_port": 2222,
    "repository_addresses": [(4, "198.51.100.1", 2222), (6, "fd00::1", 2222)],
    "known_hosts": ["[10.0.0.1]:2222 ssh-ed25519 AAAA"],
}
YAML = [
    *(("k3s", path.name) for path in sorted((ROOT / "templates/k3s").glob("*.y*ml*"))),
    ("k3s_agent", "config.yaml.j2"),
    *(("argocd", path.name) for path in sorted((ROOT / "templates/argocd").glob("*.y*ml*"))),
    ("k3s", "kubelet.conf"),
    ("k3s", "lab-kubelet.conf"),
]


def rendered(component: str, name: str) -> str:
    entry = render(component, File(name, "/x"), VALUES)
    assert isinstance(entry, File)
    assert entry.content is not None
    return entry.content.decode()


@pytest.mark.parametrize(("component", "name"), YAML)
def test_every_file_parses_and_says_where_it_is_from(component, name):
    text = rendered(component, name)
    assert f"templates/{component}/{name}" in text.splitlines()[0]
    for document in yaml.safe_load_all(text):
        assert isinstance(document, dict)
        assert "apiVersion" not in document or "kind" in document


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("k3s", "k3s.service"),
        ("k3s_agent", "k3s-agent.service"),
        ("argocd", "minipc-argocd.service.j2"),
        ("argocd", "minipc-argocd.socket.j2"),
    ],
)
def test_units_are_valid(component, name, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("NOT EXERCISED: no systemd-analyze here")
    for each in {name, "minipc-argocd.service.j2", "minipc-argocd.socket.j2"}:
        folder = "argocd" if "argocd" in each else component
        # The programs are on the machine, not here.
        text = rendered(folder, each).replace("/usr/local/bin/k3s", "/bin/true")
        text = text.replace("/usr/lib/systemd/systemd-socket-proxyd", "/bin/true")
        (tmp_path / each.removesuffix(".j2")).write_text(text)
    unit = tmp_path / name.removesuffix(".j2")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or unit.name in line]
    assert complaints == []


def test_the_certificate_has_the_names_and_the_arguments_are_lists():
    configuration = yaml.safe_load(rendered("k3s", "config.yaml.j2"))
    assert configuration["tls-san"] == ["10.77.0.10", "fd77::10"]
    assert configuration["secrets-encryption"] is True
    assert configuration["protect-kernel-defaults"] is True
    assert configuration["write-kubeconfig-mode"] == "0600"
    assert {"traefik", "servicelb"} <= set(configuration["disable"])
    assert all(isinstance(value, list) for key, value in configuration.items() if key.endswith("-arg"))


def test_the_first_rule_of_the_audit_log_keeps_who_read_a_secret_and_never_what():
    """The first rule that fits decides: what silences service accounts comes after it."""
    policy = yaml.safe_load(rendered("k3s", "audit.yaml"))
    first = policy["rules"][0]
    assert first == {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets"]}]}
    assert {rule["level"] for rule in policy["rules"]} == {"None", "Metadata"}


def test_argocd_syncs_nothing_by_itself_and_its_root_defines_applications_only():
    """Who can write to the deploy repository must not own the cluster a minute later."""
    documents = list(yaml.safe_load_all(rendered("argocd", "applications.yaml.j2")))
    found = {(each["kind"], each["metadata"]["name"]): each["spec"] for each in documents}
    applications = {name: spec for (kind, name), spec in found.items() if kind == "Application"}
    assert {name: spec["project"] for name, spec in applications.items()} == {"root": "root", "argocd": "system"}
    assert [name for name, spec in applications.items() if "automated" in spec["syncPolicy"]] == []
    root = found["AppProject", "root"]
    assert root["clusterResourceWhitelist"] == []
    assert {each["kind"] for each in root["namespaceResourceWhitelist"]} == {"Application", "AppProject"}


def test_what_the_lab_needs_is_nowhere_in_the_production_files():
    for name in ("config.yaml.j2", "kubelet.conf", "k3s.service"):
        text = (ROOT / "templates/k3s" / name).read_text()
        for word in ("KubeletInUserNamespace", "failCgroupV1", "conntrack-max", "oom_score"):
            assert word not in text


def test_a_registrys_password_is_in_its_file_only():
    assert yaml.safe_load(rendered("k3s", "registries.yaml.j2"))["configs"]["ghcr.io"]["auth"] == {
        "username": "you",
        "password": "opensesame",
    }


def test_a_machine_for_k3s_runs_k3s_and_its_off_site_machine_hosts_the_repository(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b lab"
    monkeypatch.setattr(inventory, "client_public_key", lambda: key)
    monkeypatch.setattr(inventory, "client_key", lambda: tmp_path / "key")
    made = [
        Machine(name, index, 6, "image", host_key=key, k3s=name.startswith("a"))
        for index, name in enumerate(["a", "a-2", "offsite-a", "b", "offsite-b"])
    ]
    monkeypatch.setattr(inventory, "load_all", lambda: made)
    hosts = dict(inventory.lab_hosts())
    assert {name for name, data in hosts.items() if data.get("services_runtime") == "k3s"} == {"a", "a-2"}
    assert (hosts["offsite-a"]["offsite_deploy_repository"], hosts["offsite-b"]["offsite_deploy_repository"]) == (
        True,
        False,
    )


def test_only_a_machine_for_k3s_keeps_the_capability_that_pods_have_by_default():
    plain, for_k3s = (" ".join(capability_options(Machine("m", 0, 6, "i", k3s=k3s))) for k3s in (False, True))
    assert "drop-capability=CAP_AUDIT_CONTROL,CAP_AUDIT_WRITE,CAP_SYS_TIME" in plain
    assert "drop-capability=CAP_AUDIT_CONTROL,CAP_SYS_TIME" in for_k3s


def test_the_pods_network_goes_where_the_nodes_address_is():
    """Without it K3s takes the interface of the default route."""
    node = VALUES | {"k3s": load("lab", host_operator_keys=[], k3s_node_ip="10.0.0.1").k3s, "node_interface": "lan"}
    entry = render("k3s", File("config.yaml.j2", "/x"), node)
    assert isinstance(entry, File)
    configuration = yaml.safe_load(entry.content or b"")
    assert (configuration["node-ip"], configuration["flannel-iface"]) == ("10.0.0.1", "lan")
    assert not {"node-ip", "flannel-iface"} & set(yaml.safe_load(rendered("k3s", "config.yaml.j2")))


def test_a_nodes_address_is_ipv4():
    with pytest.raises(ConfigError, match="not an IPv4 address"):
        load("lab", host_operator_keys=[], k3s_node_ip="fd77::1")


# --- facts ----------------------------------------------------------------------------------------------------------


def test_a_node_is_ready_when_it_says_so():
    status = '{"status": {"conditions": [{"type": "Ready", "status": "%s"}], "nodeInfo": {"kubeletVersion": "v1"}}}'
    assert ClusterNode().process(["/p/k3s-v1 v1", status % "True"]) == Node(True, "v1", "/p/k3s-v1", "v1")
    assert not ClusterNode().process(["/p/k3s-v1 v1", status % "Unknown"]).ready
    assert ClusterNode().process([" ", "{}"]) == Node(False, "")


@pytest.mark.parametrize(
    ("node", "waits"),
    [
        (Node(True, "v1", "/p/k3s-v1", "v1"), False),
        (Node(False, "v1", "/p/k3s-v1", "v1"), True),
        # Before an upgrade, and after it for as long as the node has not told who it is now.
        (Node(True, "v1", "/p/k3s-v0", "v0"), True),
        (Node(True, "v0", "/p/k3s-v1", "v1"), True),
    ],
)
def test_a_node_is_waited_for_until_it_runs_the_program_in_use(monkeypatch, node, waits):
    from minipc.pyinfra_ext.operations import k3s

    monkeypatch.setattr(k3s.context, "host", SimpleNamespace(get_fact=lambda fact, **_: node))
    assert bool(list(k3s.node_ready._inner(node="mini", program="/p/k3s-v1"))) == waits


def test_the_interface_of_an_address():
    line = "3: lan    inet 10.0.0.1/24 brd 10.0.0.255 scope global lan\\       valid_lft forever preferred_lft forever"
    assert InterfaceOf().process([line]) == "lan"
    assert InterfaceOf().process([]) == ""


def archive(path: Path, names: list[str], *, oci: bool) -> None:
    if oci:
        entries = [{"annotations": {"org.opencontainers.image.ref.name": name}} for name in names]
        content = ("index.json", {"manifests": entries})
    else:
        content = ("manifest.json", [{"RepoTags": [name]} for name in names])
    text = json.dumps(content[1]).encode()
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(content[0])
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))


def test_an_archive_with_an_image_that_containerd_has_lost_is_named(tmp_path):
    images, program = tmp_path / "images", tmp_path / "k3s"
    images.mkdir()
    archive(images / "argocd.tar", ["quay.io/argocd:v3", "redis:8"], oci=False)
    archive(images / "service-shop.tar", ["minipc.local/shop:1"], oci=True)
    command = facts.ArchivesNotImported().command()
    command = command.replace(facts.K3S_IMAGES, str(images)).replace(facts.PROGRAM, str(program))

    def lost(*there: str, answers: bool = True) -> list[str]:
        lines = "".join(f"echo {name}\n" for name in there)
        program.write_text(f"#!/bin/sh\n{lines}exit {0 if answers else 1}\n")
        program.chmod(0o755)
        printed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
        return [Path(line).name for line in printed.splitlines()]

    assert lost("quay.io/argocd:v3", "redis:8", "minipc.local/shop:1") == []
    assert lost("quay.io/argocd:v3", "redis:8", "minipc.local/shop:12") == ["service-shop.tar"]
    assert lost("quay.io/argocd:v3") == ["argocd.tar", "service-shop.tar"]
    assert lost(answers=False) == [], "nothing is known then"
    assert facts.ArchivesNotImported().process([f"{facts.K3S_IMAGES}/argocd.tar", "noise"]) == [
        f"{facts.K3S_IMAGES}/argocd.tar"
    ]


def test_objects_are_the_same_only_when_the_cluster_says_so():
    assert not ObjectsDiffer().process(["0"])
    assert all(ObjectsDiffer().process([code]) for code in ("1", "127"))


def test_parts_are_ready_when_all_pods_of_the_newest_generation_are():
    item = (
        '{"metadata": {"generation": 2}, "spec": {"replicas": 1},'
        ' "status": {"readyReplicas": %d, "observedGeneration": %d}}'
    )
    assert PartsReady().process([f'{{"items": [{item % (1, 2)}]}}'])
    assert not PartsReady().process([f'{{"items": [{item % (0, 2)}]}}'])
    assert not PartsReady().process([f'{{"items": [{item % (1, 1)}]}}'])
    assert not PartsReady().process(["{}"])


def test_the_hash_of_a_secret_is_that_of_what_kubectl_prints():
    printed = "Yg==\nMQ==\n"  # values of the keys in order, base64
    done = subprocess.run(["sha256sum"], input=printed.encode(), capture_output=True)
    assert hash_of({"z": "1", "a": "b"}) == done.stdout.decode().split()[0]


# --- ArgoCD's manifest ----------------------------------------------------------------------------------------------


def workload(kind: str, name: str) -> dict:
    container = {"name": "c", "image": f"registry.test/{name}:v1", "imagePullPolicy": "Always"}
    pod = {"containers": [container], "initContainers": [dict(container)]}
    return {"kind": kind, "metadata": {"name": name}, "spec": {"template": {"spec": pod}}}


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    documents = [
        {"kind": "CustomResourceDefinition", "metadata": {"name": "applications.argoproj.io"}},
        {"kind": "ClusterRole", "metadata": {"name": "argocd-server"}},
        {"kind": "Secret", "metadata": {"name": "argocd-secret"}},
        {"kind": "ConfigMap", "metadata": {"name": "argocd-ssh-known-hosts-cm"}},
        {"kind": "ConfigMap", "metadata": {"name": "argocd-cm"}, "data": {"kept": "1"}},
        {"kind": "ConfigMap", "metadata": {"name": "argocd-cmd-params-cm"}},
        {
            "kind": "Service",
            "metadata": {"name": "argocd-server"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 443, "targetPort": 8080}]},
        },
        *(workload("Deployment", name) for name in ("argocd-dex-server", "argocd-notifications-controller")),
        *(workload("Deployment", name) for name in ("argocd-repo-server", "argocd-server", "argocd-redis")),
        workload("StatefulSet", "argocd-application-controller"),
    ]
    path = tmp_path / "install.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def test_what_one_person_does_not_need_and_what_is_not_for_git_is_left_out(upstream):
    text = argocd_manifest.render(upstream).decode()
    for name in ("dex", "notifications", "argocd-secret", "known-hosts"):
        assert name not in text
    assert "applications.argoproj.io" in text


def test_images_are_never_pulled_when_they_are_there_and_memory_is_bounded(upstream):
    documents = {
        (each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(argocd_manifest.render(upstream))
    }
    for name in argocd_manifest.RESOURCES:
        kind = "StatefulSet" if "controller" in name else "Deployment"
        pod = documents[kind, name]["spec"]["template"]["spec"]
        assert {each["imagePullPolicy"] for each in pod["containers"] + pod["initContainers"]} == {"IfNotPresent"}
        assert "memory" in pod["containers"][0]["resources"]["limits"]
    ports = documents["Service", "argocd-server"]["spec"]["ports"]
    assert ports == [{"port": 443, "targetPort": 8080, "nodePort": argocd_manifest.NODE_PORT}]
    settings = documents["ConfigMap", "argocd-cm"]
    assert settings["metadata"]["namespace"] == "argocd"
    assert settings["data"] == {"kept": "1", **argocd_manifest.SETTINGS}
    assert "namespace" not in documents["ClusterRole", "argocd-server"]["metadata"]


def test_rendering_is_repeatable(upstream):
    assert argocd_manifest.render(upstream) == argocd_manifest.render(upstream)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "install.yaml"
    path.write_text("kind: ConfigMap\nmetadata: {name: a}\n")
    with pytest.raises(MinipcError, match="does not contain argocd-application-controller"):
        argocd_manifest.render(path)
    path.write_text("{")
    with pytest.raises(MinipcError, match="not ArgoCD's manifest"):
        argocd_manifest.render(path)


def test_the_password_is_a_bcrypt_hash_and_the_same_each_time():
    password = Secret("argocd.admin_password", "opensesame")
    kept = hashed(password)
    assert kept == hashed(password)
    assert bcrypt.checkpw(b"opensesame", kept.encode())
    assert kept != hashed(Secret("argocd.admin_password", "opensesamf"))
