"""Facts about the cluster."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra.api import FactBase

from minipc.services.manifests import PART_OF

PROGRAM = "/usr/local/bin/k3s"
PROGRAM_VERSION = f"{PROGRAM} --version 2>/dev/null | sed -n 's/^k3s version \\([^ ]*\\).*/\\1/p'"
KUBECTL = f"{PROGRAM} kubectl"
AS_THE_NODE = f"{KUBECTL} --kubeconfig /var/lib/rancher/k3s/agent/kubelet.kubeconfig"
"""kubectl as the kubelet, which may read its node: an agent has no administrator's credentials."""
MANAGER = "minipc"
"""Manager of the fields that a converge sets (server-side apply)."""

STARTED_WITH = "minipc.local/started-with"
"""Annotation of a service's Secret: the hash of the content that its processes were started with."""


@dataclass(frozen=True)
class Node:
    """The machine's node.

    Attributes:
        ready: whether it accepts pods.
        version: version of its kubelet, such as "v1.36.3+k3s1"; empty if there is none.
        program: path of the program that the next start uses; empty if there is none.
        program_version: version that this program reports.
    """

    ready: bool
    version: str
    program: str = ""
    program_version: str = ""


class ClusterNode(FactBase[Node]):
    """Return the node of that name from the API; not ready if the API does not answer."""

    def command(self, node: str, kubectl: str = KUBECTL) -> str:
        program = f"$(readlink -f {PROGRAM}) $({PROGRAM_VERSION})"
        ask = f"{kubectl} get node {shlex.quote(node)} --output json --request-timeout 5s 2>/dev/null || echo '{{}}'"
        return f'echo "{program}"; {ask}'

    @staticmethod
    def default() -> Node:
        return Node(ready=False, version="")

    def process(self, output: list[str]) -> Node:
        program, *answer = output
        status: dict[str, Any] = json.loads("\n".join(answer) or "{}").get("status", {})
        conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
        path, _, version = program.partition(" ")
        return Node(
            conditions.get("Ready") == "True", status.get("nodeInfo", {}).get("kubeletVersion", ""), path, version
        )


class ApiAnswers(FactBase[bool]):
    """Return whether the API of a cluster's server answers to this machine."""

    def command(self, server: str) -> str:
        ask = f"curl --silent --insecure --noproxy '*' --max-time 3 --output /dev/null https://{server}:6443/cacerts"
        return f"{ask} && echo yes || echo no"

    def process(self, output: list[str]) -> bool:
        return output[-1] == "yes"


class InUserNamespace(FactBase[bool]):
    """Return whether the machine is in a user namespace, as the lab's containers are."""

    def command(self) -> str:
        return "cat /proc/self/uid_map"

    def process(self, output: list[str]) -> bool:
        return output[0].split() != ["0", "0", "4294967295"]


class InterfaceOf(FactBase[str]):
    """Return the network interface with this IPv4 address; empty if there is none."""

    @staticmethod
    def default() -> str:
        return ""

    def command(self, address: str) -> str:
        return f"ip -4 -o address show to {shlex.quote(address)}"

    def process(self, output: list[str]) -> str:
        return output[0].split()[1] if output else ""


class ObjectsDiffer(FactBase[bool]):
    """Return whether the cluster's objects differ from a file on the machine; also True if this is unknown."""

    def command(self, path: str) -> str:
        diff = f"{KUBECTL} diff --server-side --force-conflicts --field-manager {MANAGER} -f {shlex.quote(path)}"
        return f"{diff} >/dev/null 2>&1; echo $?"

    def process(self, output: list[str]) -> bool:
        return output[-1].strip() != "0"


class SecretHash(FactBase[str]):
    """Return the hash of the named keys of a Secret, computed on the machine; see `hash_of`."""

    def command(self, namespace: str, secret: str, keys: Sequence[str]) -> str:
        template = "".join(f'{{{{index .data "{key}"}}}}\n' for key in sorted(keys))
        get = f"{KUBECTL} get secret {shlex.quote(secret)} -n {shlex.quote(namespace)} --request-timeout 5s"
        return f"{get} -o go-template={shlex.quote(template)} 2>/dev/null | sha256sum"

    def process(self, output: list[str]) -> str:
        return output[0].split()[0]


def hash_of(data: Mapping[str, str]) -> str:
    """Return the result of `SecretHash` for a Secret with these values."""
    encoded = (base64.b64encode(data[key].encode()).decode() for key in sorted(data))
    return hashlib.sha256("".join(f"{line}\n" for line in encoded).encode()).hexdigest()


class ServiceSecrets(FactBase[dict[tuple[str, str], tuple[str, str]]]):
    """Hash of each service's Secrets, computed on the machine, and the hash that its processes were started with.

    Returns:
        Namespace and name -> both hashes; see `secret_digest`.
    """

    def command(self) -> str:
        script = (
            "import hashlib, json, sys\n"
            "for each in json.load(sys.stdin)['items']:\n"
            "    about = each['metadata']\n"
            "    data = json.dumps(each.get('data') or {}, sort_keys=True)\n"
            f"    mark = about.get('annotations', {{}}).get('{STARTED_WITH}', '-')\n"
            "    print(about['namespace'], about['name'], hashlib.sha256(data.encode()).hexdigest()[:32], mark)\n"
        )
        get = f"{KUBECTL} get secrets -A -l {PART_OF} -o json --request-timeout 10s 2>/dev/null"
        return f"({get} || echo '{{\"items\": []}}') | python3 -c {shlex.quote(script)}"

    @staticmethod
    def default() -> dict[tuple[str, str], tuple[str, str]]:
        return {}

    def process(self, output: list[str]) -> dict[tuple[str, str], tuple[str, str]]:
        rows = (line.split() for line in output if len(line.split()) == 4)
        return {(namespace, name): (content, mark) for namespace, name, content, mark in rows}


def secret_digest(data: Mapping[str, str]) -> str:
    """Return what `ServiceSecrets` says of a Secret with this data, which is encoded in base64."""
    return hashlib.sha256(json.dumps(dict(data), sort_keys=True).encode()).hexdigest()[:32]


class ServiceNamespaces(FactBase[list[str]]):
    """The namespaces that a converge made for services; empty where the cluster does not answer."""

    def command(self) -> str:
        labels = f"{PART_OF},app.kubernetes.io/managed-by=minipc"
        get = f"{KUBECTL} get namespaces -l {labels} --request-timeout 5s 2>/dev/null"
        return f"{get} -o 'jsonpath={{.items[*].metadata.name}}' || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return " ".join(output).split()


class ImagePolicies(FactBase[list[str]]):
    """The services that have a policy of images; empty where the cluster does not answer."""

    def command(self) -> str:
        labels = f"{PART_OF},app.kubernetes.io/managed-by=minipc"
        get = f"{KUBECTL} get validatingadmissionpolicies -l {labels} --request-timeout 5s 2>/dev/null"
        key = PART_OF.replace(".", "\\.")
        return f"{get} -o 'jsonpath={{.items[*].metadata.labels.{key}}}' || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return " ".join(output).split()


class TokenIsPlaced(FactBase[bool]):
    """Return whether a file contains a service account's token and the reader's group (root if missing) may read it."""

    def command(self, account: str, path: str, reader: str) -> str:
        get = (
            f"{KUBECTL} get secret {shlex.quote(account)}-token -n kube-system -o jsonpath={{.data.token}} 2>/dev/null"
        )
        group = f"$(getent group {shlex.quote(reader)} >/dev/null && echo {shlex.quote(reader)} || echo root)"
        return (
            f'[ "$({get} | base64 -d | sha256sum)" = "$(sha256sum < {shlex.quote(path)} 2>/dev/null)" ] && '
            f'[ "$(stat -c %G {shlex.quote(path)})" = "{group}" ] && echo yes || echo no'
        )

    def process(self, output: list[str]) -> bool:
        return output[-1] == "yes"


class NamespaceMark(FactBase[str]):
    """Return an annotation of a namespace; empty if there is none."""

    def command(self, namespace: str, key: str) -> str:
        path = "{.metadata.annotations." + key.replace(".", r"\.") + "}"
        get = f"{KUBECTL} get namespace {shlex.quote(namespace)} --request-timeout 5s"
        return f"{get} -o jsonpath={shlex.quote(path)} 2>/dev/null || true"

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: list[str]) -> str:
        return "".join(output).strip()


class PartsReady(FactBase[bool]):
    """Return whether all pods of the named parts (`deployment/NAME`, `statefulset/NAME`) are ready."""

    def command(self, namespace: str, parts: Sequence[str]) -> str:
        get = f"{KUBECTL} get {' '.join(map(shlex.quote, parts))} -n {shlex.quote(namespace)} --request-timeout 5s"
        return f"{get} -o json 2>/dev/null || echo '{{}}'"

    def process(self, output: list[str]) -> bool:
        items = json.loads("\n".join(output)).get("items", [])
        return bool(items) and all(
            each["status"].get("readyReplicas", 0) >= each["spec"]["replicas"]
            and each["status"].get("observedGeneration") == each["metadata"]["generation"]
            for each in items
        )
