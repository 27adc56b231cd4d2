"""Why a pod does not run: the cause as the kubelet, the scheduler and the program itself give it.

Reasons: k8s.io/kubernetes pkg/kubelet/images/types.go and pkg/kubelet/kuberuntime; conditions: k8s.io/api/core/v1.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minipc.core.errors import CouldNotVerifyError
from minipc.core.formatting import one_line
from minipc.gitops.cluster import COMPONENT, Cluster, Object, get, items, kubectl, label, meta

PATIENCE_S = 6.0
"""Some causes pass by themselves: a pod that ends makes room, a second attempt to get an image succeeds."""
SHOWN_LINES = 8
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
# Reasons of events about a container.
_OF_CONTAINERS = ("Failed", "BackOff", "Unhealthy")
# No waiting helps.
_FINAL = ("ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CrashLoopBackOff", "Failed", "OOMKilled")
_MISSING_KEY = re.compile(r"couldn't find key (\S+) in Secret|references non-existent secret key: (\S+)")
# Where a line of JSON has more to say than its message.
_EXCEPTION_KEYS = ("exception", "exc_info", "error", "err", "stack", "stack_trace", "traceback")


@dataclass(frozen=True)
class Cause:
    """Why a pod does not run.

    Attributes:
        pod: its name, or the name of what cannot make it.
        reason: as Kubernetes has it, such as ImagePullBackOff.
        message: what Kubernetes says about it, one line.
        output: the last lines that the program printed.
        advice: what the operator does next; empty where the message says it.
    """

    pod: str
    reason: str
    message: str
    output: tuple[str, ...] = ()
    advice: str = ""

    @property
    def lines(self) -> list[str]:
        """Return it for a person."""
        advice = [f"  next: {self.advice}"] if self.advice else []
        head = f"{self.pod}: {self.reason}" + (f": {self.message}" if self.message else "")
        return [head, *(f"  | {line}" for line in self.output), *advice]


def causes(cluster: Cluster, service: str, wanted: Callable[[Object], bool], *labels: str) -> list[Cause]:
    """Return why pods of a service do not run; nothing about those that run or are still starting.

    Args:
        wanted: whether a pod is meant.
        labels: NAME=VALUE that the pods have.

    Raises:
        CouldNotVerifyError: the cluster doesn't answer.
    """
    found = []
    for pod in items(cluster, "pods", service, *labels):
        if wanted(pod) and not meta(pod).get("deletionTimestamp"):
            cause = of_pod(pod) or _of_events(cluster, service, pod)
            if cause:
                found.append(_complete(cluster, service, cause))
    return found


def of_pod(pod: Object) -> Cause | None:
    """Return the cause that a pod's own state names; None if it names none."""
    status, name = pod.get("status", {}), str(meta(pod).get("name"))
    for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state = each.get("state", {})
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        reason = str(waiting.get("reason", ""))
        if reason == "CrashLoopBackOff":
            return Cause(name, reason, _ending(each.get("lastState", {}).get("terminated") or {}))
        if reason in _IMAGE + _CONFIG:
            return Cause(name, reason, one_line(str(waiting.get("message", ""))))
        if ended and ended.get("exitCode"):
            return Cause(name, "Failed", _ending(ended))
    if status.get("phase") == "Failed":
        return Cause(name, str(status.get("reason") or "Failed"), one_line(str(status.get("message", ""))))
    for each in status.get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return Cause(name, "Unschedulable", one_line(str(each.get("message", ""))))
    return None


def _ending(ended: Mapping[str, Any]) -> str:
    if ended.get("reason") == "OOMKilled":
        return "it needed more memory than its limit (memory_mb)"
    return f"it ended with exit code {ended.get('exitCode', 'unknown')}"


def _of_events(cluster: Cluster, service: str, pod: Object) -> Cause | None:
    """Return the newest warning about a pod that waits without a reason in its state, such as a failed mount."""
    status = pod.get("status", {})
    # What the kubelet says of a container is also in the pod's state, a moment later.
    waiting = [each.get("state", {}).get("waiting", {}).get("reason") for each in status.get("containerStatuses") or []]
    if status.get("phase") != "Pending" or not {"ContainerCreating", "PodInitializing"} & set(waiting):
        return None
    found = warning(cluster, service, str(meta(pod)["name"]))
    return found if found and found.reason not in _OF_CONTAINERS else None


def warning(cluster: Cluster, service: str, name: str) -> Cause | None:
    """Return the newest warning of the cluster about an object; None if there is none."""
    selector = f"involvedObject.name={name},type=Warning"
    events = get(cluster, "events", "-n", service, "--field-selector", selector)["items"]
    if not events:
        return None
    last = max(events, key=lambda each: str(each.get("lastTimestamp") or each.get("eventTime") or ""))
    return Cause(name, str(last.get("reason")), one_line(str(last.get("message", ""))))


def _complete(cluster: Cluster, service: str, cause: Cause) -> Cause:
    """Add what the program printed, and what to do."""
    output: tuple[str, ...] = ()
    if cause.reason in ("CrashLoopBackOff", "Failed", "DeadlineExceeded"):
        output = tuple(printed(cluster, service, cause.pod)) or ("it printed nothing",)
    return Cause(cause.pod, cause.reason, cause.message, output, _advice(service, cause))


def _advice(service: str, cause: Cause) -> str:
    missing = _MISSING_KEY.search(cause.message)
    if missing:
        key = (missing[1] or missing[2]).strip(",.")
        return f"`minipc apply services`; if {key} is a secret of yours, `minipc secrets set {service}.{key}` first"
    if cause.reason in _IMAGE:
        return (
            "check tag and digest of the release in the deploy repository; without a registry the machine needs the "
            f"image's archive: `minipc service image {service} FILE.tar`, then `minipc apply images`"
        )
    if cause.reason == "Unschedulable":
        return f"lower memory_mb or replicas in services/{service}.yaml, or make room on the machine"
    return ""


def printed(cluster: Cluster, service: str, name: str, lines: int = SHOWN_LINES) -> list[str]:
    """Return the last lines that a pod (or job/NAME) printed; those of its container before if it has none yet."""
    for more in ([], ["--previous"]):
        try:
            text = kubectl(cluster, "logs", "-n", service, name, "--tail=60", *more)
        except CouldNotVerifyError:
            continue
        if text.strip():
            return last_lines(text, lines)
    return []


def last_lines(text: str, number: int = SHOWN_LINES) -> list[str]:
    """Return the last lines of a program's output; of a line of JSON its level, its message and its exception."""
    found = [each for line in text.splitlines() if line.strip() for each in _readable(line)]
    return [line[:300] for line in found[-number:]]


def _readable(line: str) -> Iterator[str]:
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = {}
    indent = " " * min(len(line) - len(line.lstrip()), 8)
    if not isinstance(parsed, dict) or not parsed:
        yield indent + one_line(line)
        return
    head = [str(parsed[key]) for key in ("level", "severity", "message", "msg", "event") if parsed.get(key)]
    yield one_line(" ".join(head) or line)
    for key in _EXCEPTION_KEYS:
        if isinstance(parsed.get(key), str):
            yield from (one_line(each) for each in parsed[key].strip().splitlines()[-3:])


class Diagnosis:
    """Looks at pods again and again; knows how long a cause has lasted, and which ones were shown.

    Args:
        say: takes a line for the operator.
        labels: NAME=VALUE that the pods have.
    """

    def __init__(self, cluster: Cluster, service: str, say: Callable[[str], None], *labels: str) -> None:
        self._cluster, self._service, self._say, self._labels = cluster, service, say, labels
        self._since: dict[tuple[str, str], float] = {}
        self.shown: list[Cause] = []

    def look(self, wanted: Callable[[Object], bool] = lambda _: True) -> Sequence[Cause]:
        """Return the causes that will not pass by themselves, and show each once.

        Args:
            wanted: whether a pod is meant.

        Raises:
            CouldNotVerifyError: the cluster doesn't answer.
        """
        found = causes(self._cluster, self._service, wanted, *self._labels)
        now = time.monotonic()
        self._since = {key: self._since.get(key, now) for key in ((each.pod, each.reason) for each in found)}
        lasting = [
            each for each in found if each.reason in _FINAL or now - self._since[each.pod, each.reason] >= PATIENCE_S
        ]
        for each in lasting:
            if (each.pod, each.reason) not in [(known.pod, known.reason) for known in self.shown]:
                self.shown.append(each)
                for line in each.lines:
                    self._say(line)
        return lasting


def newer_than(moment: str) -> Callable[[Object], bool]:
    """Return whether a pod was made at or after a moment (RFC 3339, UTC, of the cluster's clock)."""
    return lambda pod: str(meta(pod).get("creationTimestamp", "")) >= moment


def is_ready(pod: Object) -> bool:
    """Return whether a pod is ready to serve."""
    conditions = pod.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def component(pod: Object) -> str:
    """Return the process, cron job or job of a release that a pod belongs to."""
    return label(pod, COMPONENT)
