"""The list of images that a service's namespace admits: of the release, of the one before, and of the one tried last.

Every image in it was verified on the controller. The cluster's policy reads the list (`minipc.services.image_policy`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from minipc.config.service import Service
from minipc.core.errors import CouldNotVerifyError
from minipc.core.polling import wait_until
from minipc.gitops.cluster import Cluster, Object, kubectl, meta
from minipc.gitops.contract import templates
from minipc.services import image_policy, signatures
from minipc.services.signatures import Verify

MANAGER = "minipc-release"
SIGNER = "minipc.local/signer"
"""Annotation of the list: SHA-256 of the key with which its images were verified."""
EFFECT_S = 30.0
NEXT, RELEASED, BEFORE = "next", "released", "before"


def verify(service: Service, objects: Sequence[Object], check: Verify) -> list[str]:
    """Verify each image of a release, and return them. Return nothing if the service file names no signer.

    Raises:
        RefusedError: an image is not named by its digest, or is not signed.
        MinipcError, CouldNotVerifyError: the registry does not have it, or does not answer.
    """
    if service.image_signer is None:
        return []
    found = sorted(set(signatures.images_of([template["spec"] for _, template in templates(objects)])))
    for reference in found:
        check(service, reference)
    return found


def admit(cluster: Cluster, service: Service, images: Sequence[str]) -> None:
    """Let the namespace start these images, in addition to those of the release and of the one before.

    The API learns of a new list some moments later, so this waits until it accepts a pod of these images.

    Raises:
        CouldNotVerifyError: the cluster does not answer, or still denies the images after some time.
    """
    if service.image_signer is None:
        return
    _write(cluster, service, {**_listed(cluster, service), NEXT: list(images)})
    if not wait_until(lambda: not _denied(cluster, service, images), within_s=EFFECT_S, every_s=0.5):
        raise CouldNotVerifyError(
            f"the cluster still denies verified images of {service.name} after {EFFECT_S:.0f} s",
            f"`k3s kubectl describe validatingadmissionpolicy {image_policy.name_of(service.name)}` on the machine",
        )


def settle(cluster: Cluster, service: Service, images: Sequence[str]) -> None:
    """Note these images as the released ones. What was released before them may still start, for a rollback.

    Raises:
        CouldNotVerifyError: the cluster does not answer; nothing was changed.
    """
    if service.image_signer is None:
        return
    listed = _listed(cluster, service)
    released = listed.get(RELEASED, [])
    before = released if released != list(images) else listed.get(BEFORE, [])
    _write(cluster, service, {RELEASED: list(images), BEFORE: before})


def known(cluster: Cluster, service: Service) -> frozenset[str]:
    """Return the images that the list has, verified with the key in the service file; none without a signer.

    Raises:
        CouldNotVerifyError: the cluster does not answer.
    """
    listed = _listed(cluster, service) if service.image_signer else {}
    return frozenset(image for images in listed.values() for image in images)


def _denied(cluster: Cluster, service: Service, images: Sequence[str]) -> bool:
    """Return whether the policy denies a pod of these images; nothing is created."""
    pod = json.dumps(image_policy.probe(service.name, images)).encode()
    try:
        kubectl(cluster, "create", "--dry-run=server", "-f", "-", stdin=pod)
    except CouldNotVerifyError as error:
        if image_policy.name_of(service.name) not in error.what:
            raise
        return True
    return False


def _listed(cluster: Cluster, service: Service) -> dict[str, list[str]]:
    """Return the list, without what was verified with another key; empty if there is none."""
    name = image_policy.name_of(service.name)
    text = kubectl(cluster, "get", "configmap", name, "-n", image_policy.NAMESPACE, "--ignore-not-found", "-o", "json")
    if not text.strip():
        return {}
    found: Object = json.loads(text)
    if (meta(found).get("annotations") or {}).get(SIGNER) != _signer(service):
        return {}
    listed: dict[str, list[str]] = {}
    for key, image in sorted((found.get("data") or {}).items()):
        listed.setdefault(key.partition(".")[0], []).append(image)
    return listed


def _write(cluster: Cluster, service: Service, listed: Mapping[str, Sequence[str]]) -> None:
    name = image_policy.name_of(service.name)
    data = {f"{kind}.{number:03}": image for kind, images in listed.items() for number, image in enumerate(images)}
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": image_policy.NAMESPACE,
            "labels": image_policy.labels(service.name),
            "annotations": {SIGNER: _signer(service)},
        },
        "data": data,
    }
    options = ("--server-side", "--force-conflicts", f"--field-manager={MANAGER}")
    kubectl(cluster, "apply", *options, "-f", "-", stdin=json.dumps(manifest).encode())


def _signer(service: Service) -> str:
    return signatures.fingerprint(signatures.public_key(service))
