"""A new version before users reach it: its migration, and one pod of it (the canary) that no Service leads to.

Both are made from the signed objects of the commit that is released, and removed afterwards.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from minipc.config.service import Service
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.core.polling import wait_until
from minipc.gitops.cluster import (
    COMPONENT,
    PART_OF,
    Cluster,
    NotAllowedError,
    Object,
    create,
    delete,
    items,
    kubectl,
    label,
    meta,
)
from minipc.gitops.pods import Cause, Diagnosis, is_ready, printed, warning

MIGRATE = "migrate"
"""The suspended CronJob of the migration, and the component of its pods."""
CANARY, SMOKE = "canary", "smoke"
PREFIX = "release-"
"""Of the names of what exists during a release only."""
KEPT_S = 86400
"""How long a finished job stays, for its log."""
SERVER = "node-role.kubernetes.io/control-plane"
PAUSE_S = 1.0
# Room for what the cluster does before and after the program's own time.
MARGIN_S = 30
# What only a pod that serves has.
_SERVING = ("ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle")
_SCRAPED = "prometheus.io/"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Attributes:
        passed: whether it ended with exit code 0.
        why: why not, one line.
        output: the last lines that it printed.
    """

    passed: bool
    why: str
    output: tuple[str, ...]


def of_kind(objects: Sequence[Object], kind: str, name: str) -> Object | None:
    """Return the object of that kind and name; None if there is none."""
    for each in objects:
        if (each.get("kind"), meta(each).get("name")) == (kind, name):
            return each
    return None


def deployment_of(objects: Sequence[Object], process: str) -> Object | None:
    """Return the Deployment (or StatefulSet) whose pods are a process."""
    for each in objects:
        if each.get("kind") in ("Deployment", "StatefulSet") and label(each["spec"]["template"], COMPONENT) == process:
            return each
    return None


def may_run_twice(service: Service, objects: Sequence[Object]) -> bool:
    """Return whether the front process of two versions may run at the same time: SQLite files allow only one."""
    found = deployment_of(objects, service.front[0]) if service.front else None
    return found is not None and (found["spec"].get("strategy") or {}).get("type") != "Recreate"


def migration(service: Service, objects: Sequence[Object]) -> Object | None:
    """Return the job that brings the database to the schema of these objects; None if the service has no migration.

    Raises:
        MinipcError: the service file has a migration, and the objects have no CronJob `migrate`.
    """
    if service.migrate is None:
        return None
    cron = of_kind(objects, "CronJob", MIGRATE)
    if cron is None:
        raise MinipcError(
            f"{service.name} has a migration, and its objects in the deploy repository have no CronJob {MIGRATE!r}",
            f"`minipc service render {service.name} --into CLONE`, then commit and push",
        )
    spec = copy.deepcopy(dict(cron["spec"]["jobTemplate"]["spec"]))
    return _job(service.name, MIGRATE, spec["template"], service.migrate.time_limit_s, spec)


def smoke_job(
    service: Service,
    objects: Sequence[Object],
    number: int,
    command: Sequence[str],
    time_limit_s: int,
    aliases: Sequence[Object] = (),
) -> Object:
    """Return a job that runs a smoke command in a pod of the release, with the environment of its front process.

    Args:
        number: of the check in the service file.
        aliases: `hostAliases` of the pod: names that lead to the canary.

    Raises:
        MinipcError: the objects have no Deployment of the process.
    """
    process = service.front[0] if service.front else next(iter(service.processes))
    template = _template(service, objects, process)
    container = template["spec"]["containers"][0]
    for name in _SERVING:
        container.pop(name, None)
    container.pop("command", None)
    container["args"] = [each.replace("$(", "$$(") for each in command]
    if aliases:
        template["spec"]["hostAliases"] = [*template["spec"].get("hostAliases", []), *aliases]
    return _job(service.name, SMOKE, template, time_limit_s, {}, name=f"{PREFIX}{SMOKE}-{number}")


def _template(service: Service, objects: Sequence[Object], process: str) -> dict[str, Any]:
    found = deployment_of(objects, process)
    if found is None:
        raise MinipcError(
            f"{service.name}: its objects in the deploy repository have no Deployment of the process {process!r}",
            f"`minipc service render {service.name} --into CLONE`, then commit and push",
        )
    return copy.deepcopy(dict(found["spec"]["template"]))


def _job(
    service: str, component: str, template: dict[str, Any], time_limit_s: int, spec: dict[str, Any], *, name: str = ""
) -> Object:
    _mark(template, service, component)
    template["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name or f"{PREFIX}{component}", "labels": _labels(service, component)},
        "spec": {
            **spec,
            "template": template,
            # A release says at once that it failed; a person starts it again.
            "backoffLimit": 0,
            "activeDeadlineSeconds": time_limit_s,
            "ttlSecondsAfterFinished": KEPT_S,
        },
    }


def _labels(service: str, component: str) -> dict[str, str]:
    return {PART_OF: service, COMPONENT: component}


def _mark(template: dict[str, Any], service: str, component: str) -> None:
    """Give a pod the labels of its own component, so that no Service leads to it, and keep it from being scraped."""
    data = dict(template.get("metadata") or {})
    data["labels"] = {**(data.get("labels") or {}), **_labels(service, component)}
    data["annotations"] = {
        key: value for key, value in (data.get("annotations") or {}).items() if not key.startswith(_SCRAPED)
    }
    template["metadata"] = data


def run(cluster: Cluster, service: str, job: Object, say: Say) -> Result:
    """Run a job of a release and wait for its end. A job of the same name that has finished is replaced.

    Raises:
        RefusedError: another release runs it now.
        CouldNotVerifyError: the cluster doesn't answer.
    """
    name, limit_s = str(meta(job)["name"]), float(job["spec"]["activeDeadlineSeconds"]) + MARGIN_S
    _make_way(cluster, service, "job", name)
    try:
        create(cluster, service, job)
    except NotAllowedError as error:
        return Result(False, error.what, ())
    diagnosis = Diagnosis(cluster, service, say, f"job-name={name}")
    give_up_at = time.monotonic() + limit_s
    try:
        while True:
            with suppress(CouldNotVerifyError):
                found = of_kind(items(cluster, "jobs.batch", service), "Job", name)
                if found is None:
                    return Result(False, "it was stopped", ())
                ended = _ended(found)
                if ended is not None:
                    return Result(not ended, ended, tuple(printed(cluster, service, f"job/{name}", 20)))
                causes = diagnosis.look(_has_not_ended) or _not_made(cluster, service, found)
                if causes:
                    return _given_up(cluster, service, name, causes)
            if time.monotonic() > give_up_at:
                raise CouldNotVerifyError(f"the job {name} is not over after {limit_s:.0f} s", "minipc release stop")
            time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        delete(cluster, service, f"job/{name}")
        raise


def _has_not_ended(pod: Object) -> bool:
    """Return whether a pod of a job still runs or waits; of one that has ended the job says the rest."""
    return pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")


def _given_up(cluster: Cluster, service: str, name: str, causes: Sequence[Cause]) -> Result:
    delete(cluster, service, f"job/{name}")
    return Result(False, causes[0].reason, ())


def _ended(job: Object) -> str | None:
    """Return why a job failed, "" if it succeeded, None while it runs."""
    for each in job.get("status", {}).get("conditions") or []:
        if each["status"] == "True" and each["type"] == "Complete":
            return ""
        if each["status"] == "True" and each["type"] == "Failed":
            late = each.get("reason") == "DeadlineExceeded"
            return "it took longer than its time limit" if late else "its command failed"
    return None


def _not_made(cluster: Cluster, service: str, job: Object) -> list[Cause]:
    """Return why a job has no pod: it would go beyond the quota, or Pod Security refuses it."""
    status = job.get("status", {})
    if status.get("active") or status.get("failed") or status.get("succeeded"):
        return []
    found = warning(cluster, service, str(meta(job)["name"]))
    return [found] if found else []


def _make_way(cluster: Cluster, service: str, kind: str, name: str) -> None:
    """Remove what an earlier release has left. Raises RefusedError if it is still in use."""
    plural = {"job": "jobs.batch", "pod": "pods"}[kind]
    for each in items(cluster, plural, service):
        if meta(each)["name"] == name:
            if not meta(each).get("deletionTimestamp") and _in_use(each):
                raise RefusedError(
                    f"{kind} {name} of another release of {service} is running",
                    f"wait for it, or `minipc release stop {service}`",
                )
            # Waits until it is gone: the name is free then.
            kubectl(cluster, "delete", "-n", service, "--ignore-not-found", f"{kind}/{name}", timeout_s=120)


def _in_use(each: Object) -> bool:
    if each.get("kind") == "Job":
        return _ended(each) is None
    return each.get("status", {}).get("phase") in ("Pending", "Running")


@dataclass(frozen=True)
class Canary:
    """A pod of the new version that runs and is ready.

    Attributes:
        address: URL of its HTTP server, as the machine reaches it.
        aliases: `hostAliases` by which another pod reaches it under the names of the service.
    """

    address: str
    aliases: tuple[Object, ...]


@contextmanager
def canary(cluster: Cluster, service: Service, objects: Sequence[Object], say: Say) -> Iterator[Canary | None]:
    """Run one pod of the new version of the front process while the block runs; None if it does not become ready.

    The cause is said. No Service leads to it.

    Raises:
        RefusedError: another release has one now.
        MinipcError: the objects have no such process.
        CouldNotVerifyError: the cluster doesn't answer.
    """
    if service.front is None or service.health is None:
        raise MinipcError(f"{service.name} has no front process")
    process, settings = service.front
    template = _template(service, objects, process)
    _mark(template, service.name, CANARY)
    # The machine itself sends it requests; network policies let it reach the pods of its own node.
    template["spec"].setdefault("nodeSelector", {})[SERVER] = "true"
    limit_s = service.health.start_limit_s + MARGIN_S
    # Should nobody remove it.
    template["spec"]["activeDeadlineSeconds"] = limit_s + sum(each.time_limit_s for each in service.smoke) + 60
    name = PREFIX + CANARY
    template["metadata"]["name"] = name
    _make_way(cluster, service.name, "pod", name)
    try:
        pod = None
        try:
            create(cluster, service.name, {"apiVersion": "v1", "kind": "Pod", **template})
            pod = _wait_ready(cluster, service.name, name, limit_s, say)
        except NotAllowedError as error:
            say(f"{name}: {error.what}")
        if pod is None:
            yield None
        else:
            address = str(pod["status"]["podIP"])
            aliases = _aliases(service.name, objects, process, address)
            yield Canary(f"http://{_bracketed(address)}:{settings.port}", aliases)
    finally:
        delete(cluster, service.name, f"pod/{name}")


def _wait_ready(cluster: Cluster, service: str, name: str, limit_s: float, say: Say) -> Object | None:
    diagnosis = Diagnosis(cluster, service, say, f"{COMPONENT}={CANARY}")

    def look() -> tuple[Object | None, bool]:
        """Return the pod, and whether waiting is over."""
        with suppress(CouldNotVerifyError):
            found = [each for each in items(cluster, "pods", service) if meta(each)["name"] == name]
            if not found:
                return None, True
            if is_ready(found[0]):
                return found[0], True
            return None, bool(diagnosis.look())
        return None, False

    pod, over = wait_until(look, limit_s, PAUSE_S, until=lambda result: result[1])
    if pod is None and not diagnosis.shown:
        say(f"{name}: " + (f"it is not ready after {limit_s:.0f} s" if not over else "it was stopped"))
        for line in printed(cluster, service, name):
            say(f"  | {line}")
    return pod


def _aliases(service: str, objects: Sequence[Object], process: str, address: str) -> tuple[Object, ...]:
    """Return the aliases by which another pod finds the canary under the names of the process's Services."""
    selected = [
        str(meta(each)["name"])
        for each in objects
        if each.get("kind") == "Service" and (each["spec"].get("selector") or {}).get(COMPONENT) == process
    ]
    suffixes = ("", f".{service}", f".{service}.svc", f".{service}.svc.cluster.local")
    names = [f"{name}{suffix}" for name in selected for suffix in suffixes]
    return ({"ip": address, "hostnames": names},) if names else ()


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def running(cluster: Cluster, service: str) -> list[str]:
    """Return what a release of a service runs now, besides a sync: KIND/NAME. Raises CouldNotVerifyError."""
    return [
        f"{kind}/{meta(each)['name']}"
        for kind, plural in (("job", "jobs.batch"), ("pod", "pods"))
        for each in items(cluster, plural, service)
        if meta(each)["name"].startswith(PREFIX) and not meta(each).get("ownerReferences") and _in_use(each)
    ]


def stop(cluster: Cluster, service: str) -> None:
    """Remove what a release of a service runs now. Raises CouldNotVerifyError."""
    if names := running(cluster, service):
        delete(cluster, service, *names)
