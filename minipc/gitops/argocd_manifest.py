"""The manifest that bootstraps ArgoCD, and by which it then manages itself from the deploy repository.

The same bytes for both: what is applied first is what Git says afterwards, so the first sync changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from minipc.core.errors import MinipcError
from minipc.core.yaml_text import DUMPER, LOADER

NAMESPACE = "argocd"
PATH = "argocd/install.yaml"
"""Where the deploy repository has it."""
NODE_PORT = 30443
"""On loopback only, as every NodePort here; `argocd_port` leads to it."""

# Single sign-on, notifications and generated applications are for many people and many clusters.
LEFT_OUT = ("argocd-dex-server", "argocd-notifications-", "argocd-applicationset-controller")
# Written by the converge, with values that are not for Git.
OURS = {("Secret", "argocd-secret"), ("ConfigMap", "argocd-ssh-known-hosts-cm")}
# Memory is bounded so that a leak ends in a restart of one pod, not of the database.
RESOURCES = {
    "argocd-application-controller": ("100m", "256Mi", "1Gi"),
    "argocd-repo-server": ("50m", "128Mi", "768Mi"),
    "argocd-server": ("50m", "128Mi", "384Mi"),
    "argocd-redis": ("20m", "32Mi", "128Mi"),
}
PARAMETERS = {
    # One repository, three applications: the defaults of 20 and 10 are for hundreds.
    "controller.status.processors": "4",
    "controller.operation.processors": "2",
    "reposerver.parallelism.limit": "2",
    # A release rolls out faster than the default of 180 s.
    "controller.repo.server.timeout.seconds": "120",
}
SETTINGS = {
    "users.anonymous.enabled": "false",
    "exec.enabled": "false",
    "statusbadge.enabled": "false",
    "timeout.reconciliation": "60s",
    "timeout.reconciliation.jitter": "10s",
}
_WORKLOADS = ("Deployment", "StatefulSet")
_CLUSTER_WIDE = ("CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding")

Object = dict[str, Any]


def render(upstream: Path) -> bytes:
    """Return the manifest for this machine, made from the artifact `argocd-manifest`.

    Raises:
        MinipcError: the file is no such manifest.
    """
    try:
        text = upstream.read_text(encoding="utf-8")
        documents = list(_objects(text))
        changed = [_changed(each) for each in documents if not _left_out(each)]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise MinipcError(
            f"{upstream.name} is not ArgoCD's manifest: {error}", "run `minipc artifacts fetch`"
        ) from None
    found = {each["metadata"]["name"] for each in changed if each["kind"] in _WORKLOADS}
    if missing := sorted(set(RESOURCES) - found):
        raise MinipcError(f"{upstream.name} does not contain {', '.join(missing)}", "pin a version of ArgoCD that does")
    head = "# Written by minipc from ArgoCD's install.yaml; not edited by hand.\n"
    body: str = yaml.dump_all(changed, Dumper=DUMPER, sort_keys=False, width=120)
    return (head + body).encode()


def images(manifest: bytes) -> set[str]:
    """Return the images that the manifest's pods run."""
    return {
        container["image"]
        for each in _objects(manifest.decode())
        if each["kind"] in _WORKLOADS
        for container in _containers(each)
    }


def _objects(text: str) -> Iterator[Object]:
    return (each for each in yaml.load_all(text, Loader=LOADER) if each)


def _left_out(each: Mapping[str, Any]) -> bool:
    kind, name = each["kind"], each["metadata"]["name"]
    return kind != "CustomResourceDefinition" and (name.startswith(LEFT_OUT) or (kind, name) in OURS)


def _changed(each: Object) -> Object:
    kind, name = each["kind"], each["metadata"]["name"]
    if kind not in _CLUSTER_WIDE:
        each["metadata"]["namespace"] = NAMESPACE
    if kind in _WORKLOADS:
        for container in _containers(each):
            # Images come as files; `Always` would ask a registry.
            container["imagePullPolicy"] = "IfNotPresent"
        cpu, memory, limit = RESOURCES[name]
        main = each["spec"]["template"]["spec"]["containers"][0]
        main["resources"] = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}
    elif (kind, name) == ("ConfigMap", "argocd-cmd-params-cm"):
        each["data"] = {**each.get("data", {}), **PARAMETERS}
    elif (kind, name) == ("ConfigMap", "argocd-cm"):
        each["data"] = {**each.get("data", {}), **SETTINGS}
    elif (kind, name) == ("Service", "argocd-server"):
        each["spec"]["type"] = "NodePort"
        for port in each["spec"]["ports"]:
            if port["port"] == 443:
                port["nodePort"] = NODE_PORT
        each["spec"]["ports"] = [port for port in each["spec"]["ports"] if port["port"] == 443]
    return each


def _containers(each: Mapping[str, Any]) -> list[Object]:
    pod = each["spec"]["template"]["spec"]
    return [*pod["containers"], *pod.get("initContainers", [])]
