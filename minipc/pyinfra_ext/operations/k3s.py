"""K3s operations: wait for nodes and the API, apply objects, save the datastore."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyinfra import context
from pyinfra.api import StringCommand, deploy, operation

from minipc.artifacts import Artifact
from minipc.gitops.node_images import PINNED
from minipc.pyinfra_ext.deploying import artifact, cluster_nodes, cluster_server, config
from minipc.pyinfra_ext.facts.images import ArchivesNotImported
from minipc.pyinfra_ext.facts.k3s import (
    KUBECTL,
    MANAGER,
    PROGRAM,
    PROGRAM_VERSION,
    STARTED_WITH,
    ApiAnswers,
    ClusterNode,
    ImagePolicies,
    NamespaceMark,
    ObjectsDiffer,
    PartsReady,
    SecretHash,
    ServiceNamespaces,
    ServiceSecrets,
    TokenIsPlaced,
    hash_of,
    secret_digest,
)
from minipc.pyinfra_ext.operations.files import Placed
from minipc.services import image_policy
from minipc.services.manifests import PART_OF

# Debian packages that every node needs.
PACKAGES = ["iptables", "ipset", "kmod", "python3"]
STATE = "/var/lib/rancher/k3s/server/db/state.db"
SAVED = "/var/lib/minipc/k3s"
# A mini PC with a slow disk first imports half a gigabyte of images.
READY_TIMEOUT_S = 600
ROLLOUT_TIMEOUT_S = 300
API_TIMEOUT_S = 60
# Annotation of the namespace: the hash of the manifest with which it was bootstrapped.
BOOTSTRAPPED = "minipc.local/bootstrapped"


def program_path(found: Artifact) -> str:
    """Return the path of a node's program. It contains the version, so the previous program is kept."""
    return f"/usr/local/lib/minipc/k3s-{found.version}"


@operation()
def saved_before(program: str, node: str) -> Generator[StringCommand, None, None]:
    """Copy the datastore before an upgrade, so that a failed upgrade can be rolled back.

    Args:
        program: path of the new program.
    """
    found = context.host.get_fact(ClusterNode, node=node)
    if not found.version or found.program == program:
        return
    # Named after the program, because a converge compares program names.
    copy = f"{SAVED}/state-{Path(found.program).name.removeprefix('k3s-') or found.version}.db"
    backup = (
        "import sqlite3, sys; source = sqlite3.connect(sys.argv[1]); target = sqlite3.connect(sys.argv[2]); "
        "source.backup(target)"
    )
    lines = [
        "set -eu",
        "umask 077",
        f"install -d -m 700 {SAVED}",
        # With sqlite3's backup function, because a plain copy of a running database can be inconsistent.
        f"[ ! -f {STATE} ] || python3 -c {shlex.quote(backup)} {STATE} {shlex.quote(copy)}",
    ]
    yield StringCommand("sh", "-c", shlex.quote("\n".join(lines)))


@operation()
def node_ready(
    node: str, program: str, unit: str = "k3s.service", kubectl: str = KUBECTL
) -> Generator[StringCommand, None, None]:
    """Wait until the node is ready and runs the given program.

    For a while after an upgrade the cluster still reports the node's earlier state: ready, with the previous version.

    Args:
        program: path of the program.
        unit: the unit that runs it.
        kubectl: command that queries the cluster.
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
    """Make agents wait until their server is up, if both are converged in one run.

    pyinfra runs the operations of two machines in parallel. An operation that both machines have ends on both before
    either continues.
    """
    if config().services.runtime == "k3s" and cluster_nodes() and artifact("k3s", component="k3s_agent"):
        api_answers(name="Wait until the server is up", server=cluster_server())


@operation()
def images_imported() -> Generator[StringCommand, None, None]:
    """Import the archives of images that containerd has lost: K3s does so only if an archive changed."""
    for path in context.host.get_fact(ArchivesNotImported):
        load = f"{PROGRAM} ctr -n k8s.io images import --label {PINNED}=pinned"
        yield StringCommand(f"{load} {shlex.quote(path)} >/dev/null")


@operation()
def api_answers(server: str | None) -> Generator[StringCommand, None, None]:
    """Wait until the API answers on a cluster's server. Do nothing on the server itself."""
    if server is None or context.host.get_fact(ApiAnswers, server=server):
        return
    ask = ApiAnswers().command(server)
    yield StringCommand(
        f'for i in $(seq {API_TIMEOUT_S}); do [ "$({ask})" = yes ] && exit 0; sleep 1; done; '
        f"echo 'no API at {server}:6443; converge the server first' >&2; exit 1"
    )


@operation()
def objects_present(path: str, placed: Placed) -> Generator[StringCommand, None, None]:
    """Apply the objects of a file on the machine to the cluster, if they differ.

    Args:
        path: path of the file.
        placed: the operation that placed it; if it changes the file, the file is applied.
    """
    if placed.operation.will_change or context.host.get_fact(ObjectsDiffer, path=path):
        yield StringCommand(_apply(shlex.quote(path), MANAGER))


@operation()
def once(namespace: str, path: str, manager: str, placed: Placed) -> Generator[StringCommand, None, None]:
    """Apply a file once in the life of the cluster. Afterwards its objects belong to another manager.

    Args:
        manager: name of the field manager.
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
    """Create or update a Secret with these values, sent through stdin. Keys of others are not changed."""
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
def service_secrets_present(secrets: Sequence[Mapping[str, Any]]) -> Generator[StringCommand, None, None]:
    """Have the Secrets of services with exactly this content, and restart the processes that use a changed one.

    An annotation says with which content the processes were started, so that a restart that was due still happens
    after an interruption. The values go through stdin.
    """
    states = context.host.get_fact(ServiceSecrets)
    for wanted in secrets:
        name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
        content = secret_digest(wanted["data"])
        there = states.get((namespace, name))
        if there == (content, content):
            continue
        if there is None or there[0] != content:
            # `apply` would keep keys that are not wanted any more.
            verb = "create" if there is None else "replace"
            yield StringCommand(f"{KUBECTL} {verb} -f - >/dev/null", _stdin=json.dumps(wanted) + "\n")
        quoted = shlex.quote(namespace)
        if there is not None and name == namespace:
            yield StringCommand(f"{KUBECTL} rollout restart deployment -n {quoted} -l {PART_OF}={quoted} >/dev/null")
        mark = f"{STARTED_WITH}={content}"
        yield StringCommand(f"{KUBECTL} annotate secret {shlex.quote(name)} -n {quoted} --overwrite {mark} >/dev/null")


@operation()
def namespaces_removed(kept: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Remove the namespaces and volumes of services that are not declared any more; the files in volumes stay."""
    for namespace in context.host.get_fact(ServiceNamespaces):
        if namespace not in kept:
            quoted = shlex.quote(namespace)
            yield StringCommand(f"{KUBECTL} delete namespace {quoted} --timeout 120s >/dev/null")
            yield StringCommand(f"{KUBECTL} delete persistentvolume -l {PART_OF}={quoted} >/dev/null")


@operation()
def image_policies_removed(kept: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Remove policy, binding and list of images of services that name no signer any more, or are gone.

    Args:
        kept: services that keep theirs.
    """
    for service in context.host.get_fact(ImagePolicies):
        if service not in kept:
            name = shlex.quote(image_policy.name_of(service))
            # The binding first: a policy that is bound and has no list admits nothing.
            kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
            yield StringCommand(f"{KUBECTL} delete {kinds} {name} --ignore-not-found")
            namespace = image_policy.NAMESPACE
            yield StringCommand(f"{KUBECTL} delete configmap {name} -n {namespace} --ignore-not-found")


@operation()
def token_present(account: str, token: str, ca: str, reader: str) -> Generator[StringCommand, None, None]:
    """Write a service account's token and the cluster's CA to files, for programs on the host.

    Args:
        account: account in kube-system; its token is the Secret ACCOUNT-token.
        token, ca: paths of the files.
        reader: group that may read the token; only root if the group does not exist yet.
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
    """Wait until all pods of the named parts are ready."""
    if context.host.get_fact(PartsReady, namespace=namespace, parts=list(parts)):
        return
    lines = ["set -eu"]
    for part in parts:
        status = f"{KUBECTL} rollout status {shlex.quote(part)} -n {namespace} --timeout {ROLLOUT_TIMEOUT_S}s"
        lines.append(f"{status} >/dev/null || {{ {KUBECTL} get pods,events -n {namespace} >&2; exit 1; }}")
    yield StringCommand("sh", "-c", shlex.quote("\n".join(lines)))


def _apply(file: str, manager: str) -> str:
    return f"{KUBECTL} apply --server-side --force-conflicts --field-manager {manager} -f {file}"
