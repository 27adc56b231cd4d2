"""The cluster's check of images: in the namespace of a service with `image_signer`, only verified digests start.

A ValidatingAdmissionPolicy of Kubernetes, without a webhook. A converge makes policy and binding. The list of digests
is a ConfigMap in kube-system, which only minipc writes (`minipc.gitops.admitted_images`): ArgoCD's project of a service
is limited to its namespace. Without a list nothing starts.
"""

from __future__ import annotations

from collections.abc import Sequence

from minipc.config.service import Service
from minipc.services.manifests import PART_OF, Object
from minipc.services.signatures import CONTAINERS

NAMESPACE = "kube-system"
"""Of the list; no service and no project of one has rights there."""
GROUP = "admissionregistration.k8s.io/v1"
MANAGED = {"app.kubernetes.io/managed-by": "minipc"}


def name_of(service: str) -> str:
    """Return the name of policy, binding and list."""
    return f"minipc-images-{service}"


def labels(service: str) -> dict[str, str]:
    """Return the labels of policy, binding and list."""
    return {PART_OF: service, **MANAGED}


def objects(service: Service) -> list[Object]:
    """Return policy and binding; nothing if the service file names no signer."""
    return [_policy(service.name), _binding(service.name)] if service.image_signer else []


def probe(service: str, images: Sequence[str]) -> Object:
    """Return a pod of these images with which to ask the API (`create --dry-run=server`); it is never created."""
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "minipc-images", "namespace": service, "labels": labels(service)},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {"name": f"image-{number}", "image": image, "securityContext": secure}
                for number, image in enumerate(images)
            ],
        },
    }


def _policy(service: str) -> Object:
    """Return the policy. An update of a pod may keep the images that it has: a finalizer must be removable."""
    allowed = "has(params.data) && params.data.exists(key, params.data[key] == image)"
    return {
        "apiVersion": GROUP,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name_of(service), "labels": labels(service)},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["pods", "pods/ephemeralcontainers"],
                    }
                ]
            },
            "variables": [
                {"name": "images", "expression": _images("object")},
                {"name": "before", "expression": f"oldObject == null ? [] : {_images('oldObject')}"},
            ],
            "validations": [
                {
                    "expression": f"variables.images.all(image, ({allowed}) || image in variables.before)",
                    "messageExpression": (
                        f"'{service}: an image was not verified by minipc: ' + variables.images.join(', ')"
                    ),
                    "reason": "Forbidden",
                }
            ],
        },
    }


def _images(pod: str) -> str:
    """Return the CEL expression for the images of all containers and volumes of a pod."""
    parts = [f"(has({pod}.spec.{kind}) ? {pod}.spec.{kind}.map(each, each.image) : [])" for kind in CONTAINERS]
    volumes = f"{pod}.spec.volumes.filter(each, has(each.image)).map(each, each.image.reference)"
    parts.append(f"(has({pod}.spec.volumes) ? {volumes} : [])")
    return f"({' + '.join(parts)})"


def _binding(service: str) -> Object:
    name = name_of(service)
    return {
        "apiVersion": GROUP,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name, "labels": labels(service)},
        "spec": {
            "policyName": name,
            "validationActions": ["Deny"],
            "paramRef": {"name": name, "namespace": NAMESPACE, "parameterNotFoundAction": "Deny"},
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": service}}},
        },
    }
