"""What the cluster says of itself."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra.api import FactBase

PROGRAM = "/usr/local/bin/k3s"
PROGRAM_VERSION = f"{PROGRAM} --version 2>/dev/null | sed -n 's/^k3s version \\([^ ]*\\).*/\\1/p'"
KUBECTL = f"{PROGRAM} kubectl"
AS_THE_NODE = f"{KUBECTL} --kubeconfig /var/lib/rancher/k3s/agent/kubelet.kubeconfig"
"""As the kubelet, which may see its own node: on an agent there is no administrator."""
MANAGER = "minipc"
"""Owner of the fields that a converge sets (server-side apply)."""


@dataclass(frozen=True)
class Node:
    """The machine's own node.

    Attributes:
        ready: whether it takes pods.
        version: of its kubelet, such as "v1.36.3+k3s1"; empty when there is none.
        program: path of the program in use from the next start on; empty when there is none.
        program_version: what that says it is.
    """

    ready: bool
    version: str
    program: str = ""
    program_version: str = ""


class ClusterNode(FactBase[Node]):
    """The node of that name, as the API tells; not ready where nothing answers."""

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
    """Whether the API of a cluster answers on its server, as far as this machine can tell."""

    def command(self, server: str) -> str:
        ask = f"curl --silent --insecure --noproxy '*' --max-time 3 --output /dev/null https://{server}:6443/cacerts"
        return f"{ask} && echo yes || echo no"

    def process(self, output: list[str]) -> bool:
        return output[-1] == "yes"


class InUserNamespace(FactBase[bool]):
    """Whether root here is somebody else outside, as on the lab's container machines."""

    def command(self) -> str:
        return "cat /proc/self/uid_map"

    def process(self, output: list[str]) -> bool:
        return output[0].split() != ["0", "0", "4294967295"]


class InterfaceOf(FactBase[str]):
    """The network interface that has an IPv4 address; empty where none has."""

    @staticmethod
    def default() -> str:
        return ""

    def command(self, address: str) -> str:
        return f"ip -4 -o address show to {shlex.quote(address)}"

    def process(self, output: list[str]) -> str:
        return output[0].split()[1] if output else ""


class ObjectsDiffer(FactBase[bool]):
    """Whether the cluster has other objects than a file on the machine says; also when it can't tell."""

    def command(self, path: str) -> str:
        diff = f"{KUBECTL} diff --server-side --force-conflicts --field-manager {MANAGER} -f {shlex.quote(path)}"
        return f"{diff} >/dev/null 2>&1; echo $?"

    def process(self, output: list[str]) -> bool:
        return output[-1].strip() != "0"


class SecretHash(FactBase[str]):
    """Hash of the named keys of a Secret, computed on the machine; see `hash_of`."""

    def command(self, namespace: str, secret: str, keys: Sequence[str]) -> str:
        template = "".join(f'{{{{index .data "{key}"}}}}\n' for key in sorted(keys))
        get = f"{KUBECTL} get secret {shlex.quote(secret)} -n {shlex.quote(namespace)} --request-timeout 5s"
        return f"{get} -o go-template={shlex.quote(template)} 2>/dev/null | sha256sum"

    def process(self, output: list[str]) -> str:
        return output[0].split()[0]


def hash_of(data: Mapping[str, str]) -> str:
    """What `SecretHash` says of a Secret with these values."""
    encoded = (base64.b64encode(data[key].encode()).decode() for key in sorted(data))
    return hashlib.sha256("".join(f"{line}\n" for line in encoded).encode()).hexdigest()


class TokenIsPlaced(FactBase[bool]):
    """Whether a file holds a service account's token, and that group, as soon as there is one, may read it."""

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
    """An annotation of a namespace; empty where there is none."""

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
    """Whether every named part (`deployment/NAME`, `statefulset/NAME`) has all its pods ready."""

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
