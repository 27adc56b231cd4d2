"""Desired state is built on a real machine: what is in the repository sees no network and nothing of the machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from minipc import config
from minipc.core.errors import CouldNotVerifyError
from minipc.gitops import deploy_files
from minipc.gitops.render import SANDBOX, render
from minipc.gitops.tree import Tree
from rehearsal import lab
from tests.lab.conftest import on

NAME = f"test-build-{os.getpid()}"
COMMIT = "c" * 40
INSTALL = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: argocd}\n"
# Stands for K3s's own kubectl, which is the same program: this machine has no cluster.
K3S = '#!/bin/sh\nexec "$@"\n'
PROBES = {
    "id": "id -u",
    "addresses": "ip -brief address",
    "loopback": "timeout 3 bash -c 'exec 3<>/dev/tcp/127.0.0.1/22' 2>&1 || echo refused",
    "outside": "timeout 3 bash -c 'exec 3<>/dev/tcp/{gateway}/22' 2>&1 || echo refused",
    "settings": "cat /etc/minipc/readable 2>&1 || echo refused",
    "shadow": "cat /etc/shadow 2>&1 || echo refused",
    "write": "touch /etc/x /usr/x /var/x 2>&1 || echo refused",
    "namespaces": "unshare --net --map-root-user true 2>&1 || echo refused",
    "processes": "ls -d /proc/1 2>&1 || echo refused",
}


class Cluster:
    """The machine, asked as `SshCluster` asks."""

    def __init__(self, machine: lab.Machine) -> None:
        self._machine = machine

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
        argv = lab.ssh_command(self._machine, "bash", "-c", command)
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout_s)
        if done.returncode:
            raise CouldNotVerifyError(done.stderr.decode(errors="replace"))
        return done.stdout.decode()


SERVICE = config.load("lab").services.declared[0]


@pytest.fixture(scope="module")
def machine(lab_ready: None) -> Iterator[lab.Machine]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("NOT EXERCISED: no kubectl on this controller (tests/lab/test_release.py uses K3s's own)")
    lab.down([NAME])
    try:
        made = lab.up(NAME, disk_gb=4)
        for path, content in (("kubectl", Path(kubectl).read_bytes()), ("k3s", K3S.encode())):
            argv = lab.ssh_command(made, "bash", "-c", f"cat > /usr/local/bin/{path}; chmod 755 /usr/local/bin/{path}")
            subprocess.run(argv, input=content, check=True, timeout=120)
        on(made, "install -d -m 755 /etc/minipc; echo secret > /etc/minipc/readable; chmod 644 /etc/minipc/readable")
        yield made
    finally:
        lab.down([NAME])


@pytest.fixture(scope="module")
def tree() -> Tree:
    services, address = config.load("lab").services.declared, "ssh://git@offsite.example/deploy.git"
    files = dict(deploy_files.whole(services, "production", address, "main", {}, {"argocd/install.yaml": INSTALL}))
    return Tree(dict.fromkeys(files, "100644"), files)


@pytest.mark.parametrize(
    ("path", "name"),
    [(f"{SERVICE.name}/production", next(iter(SERVICE.processes))), ("root/production", SERVICE.name), ("argocd", "x")],
)
def test_what_is_right_is_built(machine: lab.Machine, tree: Tree, path: str, name: str) -> None:
    built = render(Cluster(machine), tree, path, COMMIT)
    assert name in {each["metadata"]["name"] for each in built}
    assert on(machine, "ls -A /tmp /run/systemd/transient 2>/dev/null | grep -c tree || true").strip() == "0"


def test_what_is_wrong_is_told_by_kustomize(machine: lab.Machine, tree: Tree) -> None:
    files = {**tree.files, "argocd/install.yaml": b"kind: x\n"}
    with pytest.raises(CouldNotVerifyError, match=r"missing metadata|kind"):
        render(Cluster(machine), Tree(tree.modes, files), "argocd", COMMIT)


@pytest.fixture(scope="module")
def seen(machine: lab.Machine) -> dict[str, str]:
    """What a program sees that runs as a build does."""
    gateway = on(machine, "ip -4 route show | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p' | head -1").strip()
    lines = [f"echo '== {name}'; {probe}" for name, probe in PROBES.items()]
    script = "\n".join(lines).replace("{gateway}", gateway or "198.51.100.1")
    options = [word for name, value in SANDBOX.items() for word in ("-p", f"{name}={value}")]
    unit = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", *options, "bash", "-c", script]
    said = on(machine, shlex.join(unit), check=False)
    return {part.split("\n")[0]: "\n".join(part.split("\n")[1:]).strip() for part in said.split("== ")[1:]}


def test_it_is_not_root(seen: dict[str, str]) -> None:
    assert int(seen["id"]) >= 61184  # systemd's range for DynamicUser


def test_it_has_no_network(seen: dict[str, str]) -> None:
    assert re.findall(r"^(\S+)", seen["addresses"], re.M) in ([], ["lo"])
    assert seen["loopback"].endswith("refused")
    assert seen["outside"].endswith("refused")


@pytest.mark.parametrize("name", ["settings", "shadow", "write", "namespaces", "processes"])
def test_it_sees_and_changes_nothing_of_the_machine(seen: dict[str, str], name: str) -> None:
    assert seen[name].endswith("refused"), seen[name]
    assert "secret" not in seen[name]
