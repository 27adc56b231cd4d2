"""What the rest of the project relies on in a service's manifests, generated or written by hand.

docs/howto/your-own-service.md is the contract for a person; `manifests: own` in a service file leaves the manifests to
the user, and then this is all that is asked of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minipc.config.service import Service
from minipc.core.errors import RefusedError
from minipc.core.formatting import plain
from minipc.gitops.cluster import COMPONENT, PART_OF, Object, meta
from minipc.gitops.trace import DIGEST, REVISION
from minipc.gitops.trial import CANARY, MIGRATE, SMOKE, deployment_of, of_kind
from minipc.services.signatures import images_of


def demand(service: Service, objects: Sequence[Object]) -> None:
    """Raise RefusedError if the manifests of a service break the contract. See `violations`."""
    found = list(violations(service, objects))
    if found:
        lines = "".join(f"\n  - {plain(each)}" for each in found[:20])
        step = f"`minipc service render {service.name} --into CLONE`, then commit and push"
        if service.manifests == "own":
            step = "correct the manifests, or use generated ones (docs/howto/your-own-service.md)"
        raise RefusedError(f"the manifests of {service.name} are not what its service file says:{lines}", step)


def violations(service: Service, objects: Sequence[Object]) -> Iterator[str]:
    """Say what breaks the contract, one sentence each."""
    for name in service.processes:
        if deployment_of(objects, name) is None:
            yield f"no Deployment has pods with the labels of the process {name!r} ({COMPONENT}: {name})"
    for name in [*service.cron, *([MIGRATE] if service.migrate else [])]:
        cron = of_kind(objects, "CronJob", name)
        if cron is None:
            yield f"there is no CronJob {name!r}"
        elif name == MIGRATE and cron["spec"].get("suspend") is not True:
            yield "CronJob 'migrate' is not suspended: it would run by itself"
    for owner, template in templates(objects):
        yield from (f"{owner}: {problem}" for problem in _pod(service, template))
    for each in objects:
        if each.get("kind") == "Service":
            yield from _service(service, each)
    yield from _front(service, objects)


def templates(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Return the pod templates of the objects, each with the name of its owner."""
    for each in objects:
        spec = each.get("spec") or {}
        if each.get("kind") == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            yield f"{each['kind']} {meta(each).get('name')}", spec["template"]


def _pod(service: Service, template: Object) -> Iterator[str]:
    labels, annotations = meta(template).get("labels") or {}, meta(template).get("annotations") or {}
    if labels.get(PART_OF) != service.name:
        yield f"its pods do not have the label {PART_OF}: {service.name}"
    known = {*service.processes, *service.cron, MIGRATE}
    if labels.get(COMPONENT) not in known:
        yield f"the label {COMPONENT} of its pods is not one of {', '.join(sorted(known))}"
    for name in (REVISION, DIGEST):
        if not annotations.get(name):
            yield f"its pods do not have the annotation {name}, which the release sets"
    if service.image_signer:
        for unpinned in (each for each in images_of([template["spec"]]) if "@sha256:" not in each):
            yield f"its image {unpinned} has no digest, and a signature is of a digest (NAME@sha256:…)"
    for container in template["spec"].get("containers") or []:
        image: Any = container.get("image") or ""
        if image == service.image:
            yield f"its image {image} has neither a tag nor a digest: the release names none"


def _service(service: Service, each: Object) -> Iterator[str]:
    """Say what is wrong with a Service: users must never be led to the pods that try a release out."""
    name, spec = meta(each).get("name"), each["spec"]
    selected = (spec.get("selector") or {}).get(COMPONENT)
    if not selected or selected in (CANARY, SMOKE, MIGRATE):
        yield f"Service {name}: its selector does not name a process ({COMPONENT})"
    allowed = service.ingress.node_port if service.ingress else None
    for port in spec.get("ports") or []:
        if port.get("nodePort") not in (None, allowed):
            yield f"Service {name}: nodePort {port['nodePort']} is not the ingress.node_port of the service file"


def _front(service: Service, objects: Sequence[Object]) -> Iterator[str]:
    if service.front is None or service.ingress is None:
        return
    name, process = service.front
    ports = [
        port
        for each in objects
        if each.get("kind") == "Service" and (each["spec"].get("selector") or {}).get(COMPONENT) == name
        for port in each["spec"].get("ports") or []
    ]
    if not any(port.get("nodePort") == service.ingress.node_port for port in ports):
        yield f"no Service leads to the process {name!r} at nodePort {service.ingress.node_port}"
    if not any(port.get("port") == process.port for port in ports):
        yield f"no Service of the process {name!r} has its port {process.port}: commands reach it at http://{name}:PORT"
