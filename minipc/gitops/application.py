"""ArgoCD's Application: what should run, what does, and the sync that brings one to the other.

Fields: argoproj.io/v1alpha1, https://argo-cd.readthedocs.io/en/stable/operator-manual/application.yaml
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from minipc.core.errors import CouldNotVerifyError, RefusedError
from minipc.core.formatting import one_line
from minipc.core.polling import wait_until
from minipc.gitops.cluster import ARGOCD, Cluster, get, kubectl

REFRESH = "argocd.argoproj.io/refresh"
RUNNING = ("Running", "Terminating")
HEALTHY = "Healthy"
SYNCED = "Synced"
SUCCEEDED = "Succeeded"
# For so long the cluster may be silent while a sync goes on.
SILENCE_S = 60.0


@dataclass(frozen=True)
class Step:
    """One object of a sync.

    Attributes:
        phase: PreSync, Sync, PostSync.
        name: kind and name.
        state: Synced, Succeeded, Running, Failed, …
        message: what ArgoCD says about it, one line.
    """

    phase: str
    name: str
    state: str
    message: str

    @property
    def failed(self) -> bool:
        """Whether this is why a sync failed."""
        return self.state in ("Failed", "Error", "SyncFailed")


@dataclass(frozen=True)
class Release:
    """A desired state that was synced.

    Attributes:
        revision: commit in the deploy repository.
        deployed_at: RFC 3339, UTC.
        by: who asked for it.
    """

    revision: str
    deployed_at: str
    by: str


@dataclass(frozen=True)
class Application:
    """Attributes:
    repository: address of the deploy repository, as ArgoCD reads it.
    path: of the overlay in it.
    branch: where desired state is.
    sync: Synced, OutOfSync or Unknown, compared with the head of the branch.
    health: Healthy, Progressing, Degraded, Missing, Unknown or Suspended.
    seen: the branch's head when ArgoCD last looked.
    history: releases that succeeded, oldest first.
    operation: the phase of the last sync: Running, Succeeded, Failed, Error; empty when there was none.
    operation_message: what ArgoCD says about it.
    operation_revision: the commit it was for.
    result_revision: the commit that ArgoCD says it synced; empty when it says none.
    operation_started: RFC 3339; empty when there was none.
    operation_by: who asked for it.
    steps: its objects.
    problems: what is wrong with objects, and with the application itself.
    options: sync options.
    """

    repository: str
    path: str
    branch: str
    sync: str
    health: str
    seen: str
    history: tuple[Release, ...]
    operation: str
    operation_message: str
    operation_revision: str
    result_revision: str
    operation_started: str
    operation_by: str
    steps: tuple[Step, ...]
    problems: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def running(self) -> bool:
        """Whether a sync is under way."""
        return self.operation in RUNNING

    @property
    def deployed(self) -> str:
        """The commit of the last release that succeeded; empty when there was none."""
        return self.history[-1].revision if self.history else ""

    @property
    def attempted(self) -> str:
        """The commit that was synced last, whether it succeeded or not; empty when there was none."""
        return self.operation_revision or self.deployed

    @property
    def failed_steps(self) -> tuple[Step, ...]:
        """Why the last sync failed."""
        return tuple(step for step in self.steps if step.failed)


def parse(data: Mapping[str, Any]) -> Application:
    """Read an Application. A field that ArgoCD has not written yet is empty."""
    spec, status = data["spec"], data.get("status", {})
    source, operation = spec["source"], status.get("operationState", {})
    result = operation.get("syncResult", {})
    asked = operation.get("operation", {})
    return Application(
        repository=source["repoURL"],
        path=source.get("path", "."),
        branch=source.get("targetRevision") or "HEAD",
        sync=status.get("sync", {}).get("status", "Unknown"),
        health=status.get("health", {}).get("status", "Unknown"),
        seen=status.get("sync", {}).get("revision", ""),
        history=tuple(
            Release(each["revision"], each["deployedAt"], _who(each.get("initiatedBy", {})))
            for each in status.get("history") or []
        ),
        operation=operation.get("phase", ""),
        operation_message=one_line(operation.get("message", "")),
        result_revision=result.get("revision", ""),
        operation_revision=result.get("revision") or asked.get("sync", {}).get("revision", ""),
        operation_started=operation.get("startedAt", ""),
        operation_by=_who(asked.get("initiatedBy", {})),
        steps=tuple(map(_step, result.get("resources") or [])),
        problems=tuple(_problems(status)),
        options=tuple(spec.get("syncPolicy", {}).get("syncOptions") or []),
    )


def _who(initiated: Mapping[str, Any]) -> str:
    return "automated" if initiated.get("automated") else str(initiated.get("username") or "unknown")


def _step(data: Mapping[str, Any]) -> Step:
    return Step(
        phase=data.get("syncPhase") or "Sync",
        name=f"{data['kind']} {data['name']}",
        state=data.get("hookPhase") or data.get("status") or "",
        message=one_line(data.get("message", "")),
    )


def _problems(status: Mapping[str, Any]) -> Iterator[str]:
    for condition in status.get("conditions") or []:
        yield f"{condition['type']}: {one_line(condition.get('message', ''))}"
    for each in status.get("resources") or []:
        health = each.get("health", {})
        if health.get("status") in ("Degraded", "Missing", "Progressing"):
            message = one_line(health.get("message", ""))
            yield f"{each['kind']} {each['name']}: {health['status']}{f': {message}' if message else ''}"


def read(cluster: Cluster, name: str) -> Application:
    """Return the application as it is now.

    Raises:
        CouldNotVerifyError: there is none, or the cluster doesn't answer.
    """
    return parse(get(cluster, "applications.argoproj.io", name, "-n", ARGOCD))


def refresh(cluster: Cluster, name: str, *, timeout_s: float = 60) -> Application:
    """Has ArgoCD look at Git and the cluster now, and reads the application.

    Raises:
        CouldNotVerifyError: it doesn't look within so many seconds.
    """
    kubectl(
        cluster, "annotate", "applications.argoproj.io", name, "-n", ARGOCD, f"{REFRESH}=normal", "--overwrite"
    )  # the controller takes the annotation away once it has looked
    data = wait_until(
        lambda: get(cluster, "applications.argoproj.io", name, "-n", ARGOCD),
        within_s=timeout_s,
        every_s=1.0,
        until=_has_looked,
    )
    if not _has_looked(data):
        raise CouldNotVerifyError(
            f"ArgoCD did not read the repository within {timeout_s:.0f} s",
            "`minipc verify argocd`; its logs: kubectl -n argocd logs statefulset/argocd-application-controller",
        )
    return parse(data)


def _has_looked(application: dict[str, Any]) -> bool:
    return REFRESH not in application["metadata"].get("annotations", {})


def demand_idle(application: Application) -> None:
    """Raise RefusedError if a sync is under way."""
    if application.running:
        raise RefusedError(
            f"a sync to {application.operation_revision[:12]} is running",
            "wait for it (`minipc release status`), or stop it: `minipc release stop`",
        )


def other_revision(after: Application, commit: str) -> str:
    """Say that ArgoCD has synced another commit than it was asked to; empty when it reports the right one."""
    if after.result_revision == commit and after.deployed == commit:
        return ""
    return f"ArgoCD reports {after.result_revision[:12] or 'no commit'}, not {commit[:12]}"


def start(cluster: Cluster, application: Application, revision: str, by: str, name: str, *, prune: bool = True) -> None:
    """Asks ArgoCD to sync to a commit, as its own API would.

    Args:
        revision: full hash. A branch would be looked up by ArgoCD, which may find another commit than was approved.
        prune: remove what the commit no longer has.

    Raises:
        RefusedError: a sync is under way.
        CouldNotVerifyError: the cluster doesn't answer.
    """
    demand_idle(application)
    operation = {
        "initiatedBy": {"username": by},
        "sync": {"revision": revision, "prune": prune, "syncOptions": list(application.options)},
    }
    # Without that ArgoCD goes on from the results of the sync before: everything is done already, and it has succeeded.
    patch = json.dumps({"operation": operation, "status": {"operationState": None}})
    kubectl(cluster, "patch", "applications.argoproj.io", name, "-n", ARGOCD, "--type", "merge", "-p", patch)


def stop(cluster: Cluster, name: str) -> None:
    """Ask ArgoCD to end the sync that is under way, as its own API would. Raises CouldNotVerifyError."""
    patch = json.dumps({"status": {"operationState": {"phase": "Terminating"}}})
    kubectl(cluster, "patch", "applications.argoproj.io", name, "-n", ARGOCD, "--type", "merge", "-p", patch)


def wait_idle(cluster: Cluster, name: str, timeout_s: float) -> bool:
    """Wait until no sync is under way, and return whether that is so. Raises CouldNotVerifyError."""
    return wait_until(lambda: not read(cluster, name).running, timeout_s, 1.0)


def wait(
    cluster: Cluster,
    before: Application,
    *,
    timeout_s: float,
    show: Callable[[Step], None],
    name: str,
    watch: Callable[[Application], None] = lambda _: None,
    pause_s: float = 1.0,
) -> Application:
    """Wait for the sync that was started after `before` was read, and show each step as it changes.

    A cluster that doesn't answer for a moment is asked again.

    Args:
        watch: called again and again while the sync goes on; what it raises ends the waiting.

    Raises:
        CouldNotVerifyError: it isn't over after so many seconds, or the cluster doesn't answer for a minute.
    """
    give_up_at = time.monotonic() + timeout_s
    answered_at = time.monotonic()
    shown: dict[tuple[str, str], Step] = {}
    while True:
        try:
            now = read(cluster, name)
            answered_at = time.monotonic()
        except CouldNotVerifyError:
            if time.monotonic() > answered_at + SILENCE_S:
                raise
            time.sleep(pause_s)
            continue
        if now.operation and now.operation_started != before.operation_started:
            for step in now.steps:
                if shown.get((step.phase, step.name)) != step:
                    shown[step.phase, step.name] = step
                    show(step)
            if not now.running:
                return now
            with suppress(CouldNotVerifyError):
                watch(now)
        if time.monotonic() > give_up_at:
            raise CouldNotVerifyError(
                f"the sync did not end in {timeout_s:.0f} s: {now.operation or 'not started'} {now.operation_message}",
                "it continues on the machine; `minipc release status` shows it, `minipc release stop` ends it",
            )
        time.sleep(pause_s)
