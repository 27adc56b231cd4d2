"""Write the files of the deploy repository from the service files.

root/ENVIRONMENT has each service's project and application, NAME/ENVIRONMENT its manifests, and
NAME/ENVIRONMENT/release which version runs. CI or `minipc release set` writes that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import yaml

from minipc.config.service import Service
from minipc.core.yaml_text import DUMPER
from minipc.gitops.argocd_manifest import NAMESPACE as ARGOCD
from minipc.gitops.cluster import Object
from minipc.gitops.policy import CLUSTER, ROOT, SERVICE_KINDS
from minipc.gitops.trace import DIGEST, REVISION
from minipc.gitops.tree import Files
from minipc.services import manifests
from minipc.services.images import ServiceImage

KUSTOMIZATION = "kustomization.yaml"
HEAD = "# Written by `minipc service render` from services/{name}.yaml; not edited by hand.\n"
RELEASE_HEAD = "# The version that runs. CI writes this file, or `minipc release set`.\n"
ROOT_HEAD = "# Written by `minipc service render`; not edited by hand.\n"
SYNC_OPTIONS = ("CreateNamespace=false", "PruneLast=true", "FailOnSharedResource=true")


@dataclass(frozen=True)
class Version:
    """The version of a service that should run.

    Attributes:
        repository: of the image.
        tag: of the image; empty: the digest alone names it.
        digest: of the image, such as "sha256:…".
        name: of the version: a commit, or anything that the image is known by, such as "v2.2.9".
    """

    repository: str
    tag: str
    digest: str
    name: str


def of_image(image: ServiceImage, name: str | None = None) -> Version:
    """Return the version of an image that was added or built here; `name`: what it is called, if not as it says."""
    return Version(image.repository, image.tag, image.digest, name or image.revision or image.tag)


def folder(service: str, environment: str) -> str:
    """Return where a service's manifests are."""
    return f"{service}/{environment}"


def release_file(service: str, environment: str) -> str:
    """Return the path of the file that names the version."""
    return f"{folder(service, environment)}/release/{KUSTOMIZATION}"


def release(service: Service, version: Version | None) -> bytes:
    """Return the file that names the version; None: of a service that was never released."""
    image: dict[str, str] = {"name": service.image}
    if version is None:
        image["newTag"] = "not-released"
        annotations = {REVISION: "not-released", DIGEST: "sha256:" + "0" * 64}
    else:
        image["newName"] = version.repository
        # An image that came as a file has no digest in containerd's names; its tag names it.
        image |= {"newTag": version.tag} if version.tag else {"digest": version.digest}
        annotations = {REVISION: version.name, DIGEST: version.digest}
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "images": [image],
        "commonAnnotations": annotations,
    }
    return _text(RELEASE_HEAD, content)


def of_service(service: Service, environment: str) -> Files:
    """Return the manifests of a service, by path. None if the user writes them (`manifests: own`)."""
    if service.manifests == "own":
        return {}
    where, head = folder(service.name, environment), HEAD.format(name=service.name)
    files: dict[str, list[Object]] = {}
    for each in manifests.objects(service, environment):
        part = str(each["metadata"]["labels"]["app.kubernetes.io/component"])
        files.setdefault(f"{part}.yaml", []).append(each)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": service.name,
        "resources": list(files),
        "components": ["release"],
    }
    return {
        f"{where}/{KUSTOMIZATION}": _text(head, kustomization),
        **{f"{where}/{name}": _text(head, *objects) for name, objects in files.items()},
    }


def of_root(services: Sequence[Service], environment: str, repository: str, branch: str) -> Files:
    """Return the root application: project and application of each service.

    Args:
        repository: address of the deploy repository, as ArgoCD reads it.
        branch: with the desired state.
    """
    where = folder(ROOT, environment)
    if not services:
        # Git keeps no empty folder, and ArgoCD wants one.
        return {f"{where}/README.md": b"No services yet: `minipc service render` writes them here.\n"}
    files: dict[str, Object] = {}
    for service in services:
        files[f"{service.name}.project.yaml"] = project(service.name, repository)
        files[f"{service.name}.application.yaml"] = application(service.name, environment, repository, branch)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(files),
    }
    return {
        f"{where}/{KUSTOMIZATION}": _text(ROOT_HEAD, kustomization),
        **{f"{where}/{name}": _text(ROOT_HEAD, each) for name, each in files.items()},
    }


def project(name: str, repository: str) -> Object:
    """Return the project of a service: its own namespace, the kinds that a service needs, nothing cluster-wide.

    Its Secrets, its namespace, its limits, its volumes and its network policies are the machine's.
    """
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AppProject",
        # Before the application in it.
        "metadata": {"name": name, "namespace": ARGOCD, "annotations": {"argocd.argoproj.io/sync-wave": "-1"}},
        "spec": {
            "description": f"The service {name}. Its own namespace, nothing that belongs to the cluster.",
            "sourceRepos": [repository],
            "destinations": [{"server": CLUSTER, "namespace": name}],
            "clusterResourceWhitelist": [],
            "namespaceResourceWhitelist": [{"group": group, "kind": kind} for group, kind in sorted(SERVICE_KINDS)],
            "orphanedResources": {"warn": False},
        },
    }


def application(name: str, environment: str, repository: str, branch: str) -> Object:
    """Return the application of a service. It has no `automated`: a person syncs it (`minipc release sync`)."""
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": ARGOCD},
        "spec": {
            "project": name,
            "source": {"repoURL": repository, "targetRevision": branch, "path": folder(name, environment)},
            "destination": {"server": CLUSTER, "namespace": name},
            "syncPolicy": {"syncOptions": list(SYNC_OPTIONS)},
            "revisionHistoryLimit": 20,
        },
    }


def whole(
    services: Sequence[Service],
    environment: str,
    repository: str,
    branch: str,
    versions: Mapping[str, Version],
    more: Files,
) -> Files:
    """Return all files of a new deploy repository.

    Args:
        versions: of each service that has one, by name.
        more: files besides, such as ArgoCD's own manifest.
    """
    files = {**more, **of_root(services, environment, repository, branch)}
    for service in services:
        files |= of_service(service, environment)
        files[release_file(service.name, environment)] = release(service, versions.get(service.name))
    return files


def stale(old: Iterable[str], new: Files, names: Sequence[str], environment: str) -> list[str]:
    """Return generated files that are there and no longer generated: of a process or a service that is gone.

    Args:
        old: paths that are there.
        new: what is generated now.
        names: services that were rendered.
    """
    root, there = folder(ROOT, environment), list(old)
    applications = f"{root}/*.application.yaml"
    gone = [
        path.removeprefix(f"{root}/").removesuffix(".application.yaml")
        for path in there
        if fnmatchcase(path, applications) and path not in new
    ]
    folders = [root, *(folder(name, environment) for name in (*names, *gone))]
    folders += [f"{folder(name, environment)}/release" for name in gone]
    return [path for path in there if path not in new and path.rpartition("/")[0] in folders and path.endswith(".yaml")]


def _text(head: str, *documents: Mapping[str, Any]) -> bytes:
    body: str = yaml.dump_all(documents, Dumper=DUMPER, sort_keys=False, width=120)
    return (head + body).encode()
