"""From a running pod back to commit, image digest, desired-state commit and rollout."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from minipc.config.service import Service
from minipc.core.errors import ConfigError, CouldNotVerifyError
from minipc.gitops.application import Application
from minipc.gitops.cluster import COMPONENT, Cluster, Object, items, kubectl, label

REVISION = "org.opencontainers.image.revision"
DIGEST = "minipc.local/image-digest"
ATTEMPTS = 3
ROLLOUT = "deployment.kubernetes.io/revision"
REQUEST_ID = re.compile(r"^x-request-id:\s*([A-Za-z0-9._-]{1,128})\s*$", re.I | re.M)


@dataclass(frozen=True)
class Traced:
    """Where a pod comes from.

    Attributes:
        pod: its name.
        component: process, cron job or job of a release.
        state: Running and ready, or what it is instead.
        image: reference, as in the manifest.
        digest: of the image that desired state names.
        runs: digest of the image that the pod runs; empty when it runs none.
        commit: of the code.
        rollout: number of the deployment's rollout, and whether it is the current one; empty for a job's pod.
        current: whether the pod belongs to the current rollout.
        started: RFC 3339.
    """

    pod: str
    component: str
    state: str
    image: str
    digest: str
    runs: str
    commit: str
    rollout: str
    current: bool
    started: str

    @property
    def as_stated(self) -> bool:
        """Whether the pod runs the image that desired state names."""
        return bool(self.runs) and self.digest == self.runs


def trace(cluster: Cluster, service: str, pod: str | None = None) -> list[Traced]:
    """All pods of a service, or the one of that name, if it is among them.

    Raises:
        CouldNotVerifyError: the cluster doesn't answer.
    """
    pods = [each for each in items(cluster, "pods", service) if pod in (None, each["metadata"]["name"])]
    if not pods:
        return []
    owners = {each["metadata"]["name"]: each for each in items(cluster, "replicasets.apps", service)}
    deployments = {label(each, COMPONENT): each for each in items(cluster, "deployments.apps", service)}
    digests = imported(cluster.run("k3s ctr -n k8s.io images ls"))
    found = [_traced(each, owners, deployments, digests) for each in pods]
    return sorted(found, key=lambda each: (each.component, each.started))


def imported(listing: str) -> dict[str, str]:
    """Digest by reference, from `ctr images ls`: REF TYPE DIGEST SIZE PLATFORMS LABELS."""
    rows = (line.split() for line in listing.splitlines()[1:])
    return {row[0]: row[2] for row in rows if len(row) > 2 and row[2].startswith("sha256:")}


def _traced(
    pod: Object, owners: Mapping[str, Object], deployments: Mapping[str, Object], digests: Mapping[str, str]
) -> Traced:
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    annotations, labels = meta.get("annotations", {}), meta.get("labels", {})
    statuses = status.get("containerStatuses") or [{}]
    owner = next((each["name"] for each in meta.get("ownerReferences", []) if each["kind"] == "ReplicaSet"), "")
    number = _rollout(owners.get(owner))
    deployment = deployments.get(labels.get(COMPONENT, ""))
    return Traced(
        pod=meta["name"],
        component=labels.get(COMPONENT, ""),
        state=_state(pod),
        image=spec["containers"][0]["image"],
        digest=annotations.get(DIGEST, ""),
        runs=_digest(statuses[0].get("imageID", ""), digests),
        commit=annotations.get(REVISION, ""),
        rollout=number,
        current=not owner or number == _rollout(deployment),
        started=status.get("startTime", ""),
    )


def _rollout(owner: Object | None) -> str:
    return str(owner["metadata"].get("annotations", {}).get(ROLLOUT, "")) if owner else ""


def _digest(image_id: str, digests: Mapping[str, str]) -> str:
    """Return the manifest's digest. Of an image from a file the runtime may only know name or configuration."""
    _, _, digest = image_id.rpartition("@")
    return digests.get(image_id) or (digest if digest.startswith("sha256:") else "")


def _state(pod: Object) -> str:
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for each in status.get("containerStatuses") or []:
        waiting = each.get("state", {}).get("waiting")
        if waiting:
            return str(waiting.get("reason", "Waiting"))
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or [])
    phase = str(status.get("phase", "Unknown"))
    return phase if ready or phase != "Running" else "Running, not ready"


def answering(cluster: Cluster, url: str, service: Service) -> tuple[str, str]:
    """Return the pod that answers a request through the public ingress, and the id of the request.

    The id is the edge's own; the pod's log has it. Nothing about pods leaves the machine.

    Raises:
        ConfigError: the address is not the service's.
        CouldNotVerifyError: no pod logged the request.
    """
    parts, domain = urlsplit(url), service.domain
    if service.front is None or parts.hostname not in (None, *(service.ingress.domains if service.ingress else ())):
        raise ConfigError(f"{url} is not a URL of {domain}", f"use for example https://{domain}/")
    host = parts.hostname or domain
    address = f"https://{host}{parts.path or '/'}"
    command = f"curl -sk --max-time 10 -o /dev/null -D - --resolve {host}:443:127.0.0.1 {shlex.quote(address)}"
    found = REQUEST_ID.search(cluster.run(command).replace("\r", ""))
    if not found:
        raise CouldNotVerifyError(f"{address}: the answer has no request id", "run `minipc verify edge`")
    selector = f"{COMPONENT}={service.front[0]}"
    logs = ("logs", "-n", service.name, "-l", selector, "--prefix", "--since=1m", "--tail=-1")
    for _ in range(ATTEMPTS):
        pod = pod_of(kubectl(cluster, *logs), found[1])
        if pod:
            break
        time.sleep(1.0)  # the line may be a moment late
    else:
        raise CouldNotVerifyError(
            f"no pod logged the request {found[1]} for {address}",
            "use the URL of a page that the service logs with its X-Request-ID; probes may not be logged, and Caddy "
            "answers some paths itself",
        )
    return pod, found[1]


def pod_of(logs: str, request_id: str) -> str:
    """Return the pod that logged a request; empty if none did. `kubectl logs --prefix`: [pod/NAME/CONTAINER] LINE."""
    for line in logs.splitlines():
        found = re.match(r"\[pod/([^/\]]+)/[^\]]*\] ", line)
        if found and request_id in line:
            return found[1]
    return ""


def desired_state(application: Application, traced: Sequence[Traced]) -> str:
    """Return the commit of the deploy repository that these pods come from; empty if ArgoCD has synced none."""
    return application.attempted if all(each.current for each in traced) else application.deployed
