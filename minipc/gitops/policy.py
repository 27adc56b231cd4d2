"""What each application may hold. ArgoCD's projects say the same in the cluster; this is asked before a sync.

It is asked of the objects that a person is shown, so a repository cannot widen its own limits: the project of a service
is itself an object of the root application.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minipc.core.errors import RefusedError
from minipc.core.formatting import plain
from minipc.gitops.argocd_manifest import NAMESPACE as ARGOCD
from minipc.gitops.argocd_manifest import RESOURCES
from minipc.gitops.cluster import Object

SYSTEM, ROOT = "argocd", "root"
"""ArgoCD itself, and the application that defines all others."""
CLUSTER = "https://kubernetes.default.svc"
# ArgoCD's own projects; no repository may change them.
OURS = {"default", "system", "root"}

CLUSTER_WIDE = frozenset(
    {
        *("APIService", "CSIDriver", "CertificateSigningRequest", "ClusterRole", "ClusterRoleBinding"),
        *("CustomResourceDefinition", "DeviceClass", "FlowSchema", "IngressClass", "MutatingAdmissionPolicy"),
        *("MutatingAdmissionPolicyBinding", "MutatingWebhookConfiguration", "Namespace", "Node", "PersistentVolume"),
        *("PriorityClass", "PriorityLevelConfiguration", "RuntimeClass", "StorageClass"),
        *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration"),
    }
)
RIGHTS = frozenset(
    ["AppProject", "Application", "NetworkPolicy", "Role", "RoleBinding", "Secret", "ServiceAccount", "Pod"]
)
"""What is not cluster-wide, and decides all the same who may do what."""

# A service needs no more: its Secret, its namespace, its limits and its network policies are the machine's.
SERVICE_KINDS = {
    ("", "ConfigMap"),
    ("", "Service"),
    ("apps", "Deployment"),
    ("apps", "StatefulSet"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("batch", "CronJob"),
    ("batch", "Job"),
    ("policy", "PodDisruptionBudget"),
}
SYSTEM_KINDS = {
    ("", "ConfigMap"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("apps", "Deployment"),
    ("apps", "StatefulSet"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
}
# Cluster-wide, by name; templates/argocd/applications.yaml.j2 has the same.
SYSTEM_CLUSTER_WIDE = {
    "CustomResourceDefinition": {f"{name}.argoproj.io" for name in ("applications", "applicationsets", "appprojects")},
    "ClusterRole": {"argocd-application-controller", "argocd-server"},
    "ClusterRoleBinding": {"argocd-application-controller", "argocd-server"},
}
SOURCE_FIELDS = {"repoURL", "targetRevision", "path"}


def demand(application: str, objects: Sequence[Object], repository: str) -> None:
    """Raise RefusedError if an application's objects go beyond what it may hold. See `violations`."""
    found = list(violations(application, objects, repository))
    if found:
        lines = "".join(f"\n  - {plain(each)}" for each in found[:20])
        raise RefusedError(
            f"{application} is not synced: it contains objects that are not allowed ({len(found)}):{lines}",
            "find out who added them, and remove them from the deploy repository; see docs/reference/argocd.md",
        )


def violations(application: str, objects: Sequence[Object], repository: str) -> Iterator[str]:
    """Say what an application holds that it may not, one sentence each.

    Args:
        application: `argocd`, `root`, or the name of a service, which is that of its namespace and project, too.
        objects: all that it would apply.
        repository: address of the deploy repository, as ArgoCD reads it.
    """
    for each in objects:
        match application:
            case "argocd":
                found = _system(each)
            case "root":
                found = _root(each, repository)
            case _:
                found = _service(each, application)
        yield from (f"{_name(each)}: {problem}" for problem in found)


def _service(each: Object, namespace: str) -> Iterator[str]:
    if _kind(each) not in SERVICE_KINDS:
        yield "no service may have an object of this kind"
    yield from _place(each, namespace)


def _system(each: Object) -> Iterator[str]:
    kind, name = each["kind"], _meta(each).get("name")
    if kind in SYSTEM_CLUSTER_WIDE:
        if name not in SYSTEM_CLUSTER_WIDE[kind]:
            yield "it is not one of ArgoCD's own cluster-wide objects"
        if kind == "ClusterRoleBinding":
            subjects = [{"kind": "ServiceAccount", "name": name, "namespace": ARGOCD}]
            if each.get("subjects") != subjects or each.get("roleRef", {}).get("name") != name:
                yield "it gives the role to somebody else than ArgoCD's own account"
        return
    if _kind(each) not in SYSTEM_KINDS:
        yield "ArgoCD's own manifest has no object of this kind"
    elif kind in ("Deployment", "StatefulSet") and name not in RESOURCES:
        yield "it is not one of ArgoCD's own programs"
    yield from _place(each, ARGOCD, required=True)


def _root(each: Object, repository: str) -> Iterator[str]:
    name, spec = _meta(each).get("name"), each.get("spec") or {}
    yield from _place(each, ARGOCD, required=True)
    if name in OURS | {SYSTEM}:
        yield "this name is ArgoCD's own"
    match _kind(each):
        case ("argoproj.io", "AppProject"):
            yield from _project(spec, name, repository)
        case ("argoproj.io", "Application"):
            yield from _application(spec, name, repository)
            if "operation" in each:
                yield "its operation would start a sync, of any commit, without a person"
        case _:
            yield "the root application defines applications and projects, nothing else"


def _project(spec: Mapping[str, Any], name: Any, repository: str) -> Iterator[str]:
    if set(spec.get("sourceRepos") or []) != {repository}:
        yield f"sourceRepos is not [{repository}]"
    if [dict(each) for each in spec.get("destinations") or []] != [{"server": CLUSTER, "namespace": name}]:
        yield f"destinations is not the namespace {name} of this cluster alone"
    if spec.get("clusterResourceWhitelist"):
        yield "clusterResourceWhitelist is not empty"
    kinds = {(each.get("group"), each.get("kind")) for each in spec.get("namespaceResourceWhitelist") or []}
    if not kinds or not kinds <= SERVICE_KINDS:
        yield "namespaceResourceWhitelist is missing or wider than a service's; `minipc service render` writes it"
    if more := sorted({"roles", "sourceNamespaces", "destinationServiceAccounts"} & set(spec)):
        yield f"{', '.join(more)} is not allowed"


def _application(spec: Mapping[str, Any], name: Any, repository: str) -> Iterator[str]:
    source, policy = spec.get("source") or {}, spec.get("syncPolicy") or {}
    if spec.get("project") != name:
        yield f"its project is not {name}"
    if dict(spec.get("destination") or {}) != {"server": CLUSTER, "namespace": name}:
        yield f"its destination is not the namespace {name} of this cluster"
    if "sources" in spec or "sourceHydrator" in spec or not set(source) <= SOURCE_FIELDS:
        yield f"its source has more than {', '.join(sorted(SOURCE_FIELDS))}"
    if source.get("repoURL") != repository:
        yield f"its repoURL is not {repository}"
    if not str(source.get("path", "")).startswith(f"{name}/"):
        yield f"its path is not below {name}/"
    if "automated" in policy or "managedNamespaceMetadata" in policy:
        yield "it would be synced without a person, or change its namespace"


def _place(each: Object, namespace: str, *, required: bool = False) -> Iterator[str]:
    found = _meta(each).get("namespace", "" if required else namespace)
    if found != namespace:
        yield f"it is in namespace {found or 'none'}, not in {namespace}"


def _kind(each: Object) -> tuple[str, str]:
    group, slash, _ = str(each.get("apiVersion", "")).partition("/")
    return (group if slash else ""), str(each.get("kind"))


def _meta(each: Object) -> Mapping[str, Any]:
    found: Mapping[str, Any] = each.get("metadata") or {}
    return found


def _name(each: Object) -> str:
    return f"{each.get('kind')} {_meta(each).get('name')}"
