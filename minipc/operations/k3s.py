"""What of K3s is neither a file nor a unit."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from pyinfra import context
from pyinfra.api import StringCommand, deploy, operation

from minipc.artifacts import Artifact
from minipc.deploying import artifact, cluster_nodes, cluster_server, config
from minipc.facts.k3s import (
    KUBECTL,
    MANAGER,
    PROGRAM_VERSION,
    ApiAnswers,
    ClusterNode,
    NamespaceMark,
    ObjectsDiffer,
    PartsReady,
    SecretHash,
    TokenIsPlaced,
    hash_of,
)
from minipc.operations.files import Placed

# What every node needs of Debian.
PACKAGES = ["iptables", "ipset", "kmod", "python3"]
STATE = "/var/lib/rancher/k3s/server/db/state.db"
SAVED = "/var/lib/minipc/k3s"
# A second-hand mini PC with a slow disk imports half a gigabyte of images first.
READY_TIMEOUT_S = 600
ROLLOUT_TIMEOUT_S = 300
API_TIMEOUT_S = 60
# Annotation of the namespace: the hash of what it was bootstrapped with.
BOOTSTRAPPED = "minipc.local/bootstrapped"


def program_path(found: Artifact) -> str:
    """Where a node's program is, by version: the one before is still there to go back to."""
    return f"/usr/local/lib/minipc/k3s-{found.version}"


@operation()
def saved_before(program: str, node: str) -> Generator[StringCommand, None, None]:
    """Keeps a copy of the datastore before another program takes it over: the way back of a bad upgrade.

    Args:
        program: path of the one that is to be used.
    """
    found = context.host.get_fact(ClusterNode, node=node)
    if not found.version or found.program == program:
        return
    # By the name of the program, which is what a converge goes by.
    copy = f"{SAVED}/state-{Path(found.program).name.removeprefix('k3s-') or found.version}.db"
    backup = (
        "import sqlite3, sys; source = sqlite3.connect(sys.argv[1]); target = sqlite3.connect(sys.argv[2]); "
        "source.backup(target)"
    )
    lines = [
        "set -eu",
        "umask 077",
        f"install -d -m 700 {SAVED}",
        # sqlite3's own way: a plain copy of a living database may be torn.
        f"[ ! -f {STATE} ] || python3 -c {shlex.quote(backup)} {STATE} {shlex.quote(copy)}",
    ]
    yield StringCommand("sh", "-c", shlex.quote("\n".join(lines)))


@operation()
def node_ready(
    node: str, program: str, unit: str = "k3s.service", kubectl: str = KUBECTL
) -> Generator[StringCommand, None, None]:
    """Waits until the node takes pods, with the program that is in use from now on.

    For a while after an upgrade the cluster still knows the node as it was: ready, with the version before.

    Args:
        program: path of it.
        unit: that runs it here.
        kubectl: who asks the cluster.
    """
    found = context.host.get_fact(ClusterNode, node=node, kubectl=kubectl)
    if found.ready and found.program == program and found.version == found.program_version:
        return
    name = shlex.quote(node)
    version = f"{kubectl} get node {name} -o 'jsonpath={{.status.nodeInfo.kubeletVersion}}' --request-timeout 5s"
    wait = (
        f"{kubectl} wait --for=condition=Ready node/{name} --timeout=5s >/dev/null 2>&1"
        f' && [ "$({version} 2>/dev/null)" = "$({PROGRAM_VERSION})" ]'
    )
    yield StringCommand(
        f"for i in $(seq {READY_TIMEOUT_S}); do {wait} && exit 0; systemctl is-failed -q {unit} && break; sleep 1;"
        f" done; journalctl -u {unit} -n 20 --no-pager -o cat >&2; exit 1"
    )


@deploy("k3s_agent")
def server_first() -> None:
    """Has the agents of a cluster begin when their server is up, where both are converged at once.

    pyinfra does the operations of two machines side by side, each as early as it can; one that both have is done by
    both before either goes on.
    """
    if config().workload.runtime == "k3s" and cluster_nodes() and artifact("k3s", component="k3s_agent"):
        api_answers(name="wait until the server is up", server=cluster_server())


@operation()
def api_answers(server: str | None) -> Generator[StringCommand, None, None]:
    """Waits until the API answers on a cluster's server; the server itself has nothing to wait for."""
    if server is None or context.host.get_fact(ApiAnswers, server=server):
        return
    ask = ApiAnswers().command(server)
    yield StringCommand(
        f'for i in $(seq {API_TIMEOUT_S}); do [ "$({ask})" = yes ] && exit 0; sleep 1; done; '
        f"echo 'no API at {server}:6443: is the server converged?' >&2; exit 1"
    )


@operation()
def objects_present(path: str, placed: Placed) -> Generator[StringCommand, None, None]:
    """Has the objects of a file on the machine in the cluster, as the file says.

    Args:
        path: of the file.
        placed: the step that placed it; when that changes it, the cluster is asked again.
    """
    if placed.operation.will_change or context.host.get_fact(ObjectsDiffer, path=path):
        yield StringCommand(_apply(shlex.quote(path), MANAGER))


@operation()
def once(namespace: str, path: str, manager: str, placed: Placed) -> Generator[StringCommand, None, None]:
    """Applies a file once in the life of the cluster; from then on what is there is somebody else's to change.

    Args:
        manager: whose fields they are.
    """
    if context.host.get_fact(NamespaceMark, namespace=namespace, key=BOOTSTRAPPED):
        return
    file = shlex.quote(path)
    yield StringCommand(f"{_apply(file, manager)} --namespace {namespace} >/dev/null")
    crds = "crd/applications.argoproj.io crd/appprojects.argoproj.io"
    yield StringCommand(f"{KUBECTL} wait --for=condition=Established {crds} --timeout 60s >/dev/null")
    mark = f"{BOOTSTRAPPED}=$(sha256sum {file} | cut -c 1-16)"
    yield StringCommand(f"{KUBECTL} annotate namespace {namespace} --overwrite {mark}")


@operation()
def secret_present(
    namespace: str, secret: str, data: Mapping[str, str], labels: Mapping[str, str]
) -> Generator[StringCommand, None, None]:
    """Has a Secret with these values; keys that others put into it are left alone. The values go through stdin."""
    found = context.host.get_fact(SecretHash, namespace=namespace, secret=secret, keys=sorted(data))
    if found == hash_of(data):
        return
    wanted = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret, "namespace": namespace, "labels": dict(labels)},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }
    yield StringCommand(_apply("-", MANAGER), _stdin=json.dumps(wanted) + "\n")


@operation()
def token_present(account: str, token: str, ca: str, reader: str) -> Generator[StringCommand, None, None]:
    """Has a service account's token, and the cluster's CA, in files for programs of the host.

    Args:
        account: in kube-system; its token is the Secret ACCOUNT-token.
        token, ca: paths of the files.
        reader: group that may read the token; root alone until there is such a group.
    """
    if context.host.get_fact(TokenIsPlaced, account=account, path=token, reader=reader):
        return
    get = f"{KUBECTL} get secret {account}-token -n kube-system -o"
    lines = [
        "set -eu",
        "umask 077",
        f'for i in $(seq 60); do [ -z "$({get} jsonpath={{.data.token}} 2>/dev/null)" ] || break; sleep 1; done',
        f"{get} 'jsonpath={{.data.token}}' | base64 -d > {token}.new",
        f"{get} 'jsonpath={{.data.ca\\.crt}}' | base64 -d > {ca}.new",
        f"[ -s {token}.new ]",
        f"! getent group {reader} >/dev/null || {{ chgrp {reader} {token}.new; chmod 640 {token}.new; }}",
        f"chmod 644 {ca}.new",
        f"mv {token}.new {token}",
        f"mv {ca}.new {ca}",
    ]
    yield StringCommand("sh", "-c", shlex.quote("\n".join(lines)))


@operation()
def rolled_out(namespace: str, parts: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Waits until all pods of the named parts are ready."""
    if context.host.get_fact(PartsReady, namespace=namespace, parts=list(parts)):
        return
    lines = ["set -eu"]
    for part in parts:
        status = f"{KUBECTL} rollout status {shlex.quote(part)} -n {namespace} --timeout {ROLLOUT_TIMEOUT_S}s"
        lines.append(f"{status} >/dev/null || {{ {KUBECTL} get pods,events -n {namespace} >&2; exit 1; }}")
    yield StringCommand("sh", "-c", shlex.quote("\n".join(lines)))


def _apply(file: str, manager: str) -> str:
    return f"{KUBECTL} apply --server-side --force-conflicts --field-manager {manager} -f {file}"
