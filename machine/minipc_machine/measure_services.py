"""Measure the services: which processes run, and when each cron job last succeeded.

It asks K3s for pods and cron jobs, or systemd for the units of podman, and writes metrics for Prometheus.

    measure-services SETTINGS.json [--print processes|cron|nodes|pressure|cluster]

With --print it writes no metrics, but prints lines NAME VALUE for `minipc status` and `minipc triage`.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from minipc_machine import schema
from minipc_machine.files import write_file
from minipc_machine.metrics import TEXTFILES, Gauge, write_metrics
from minipc_machine.processes import run
from minipc_machine.program import EXIT_PASS, FailedError, say

ASK_LIMIT_S = 20
SHORT = ("DiskPressure", "MemoryPressure", "PIDPressure")
PRINTED = ("processes", "cron", "nodes", "pressure", "cluster")
# What K3s prints before it ends because SQLite cannot read its datastore.
CORRUPT = re.compile(r"database disk image is malformed|file is not a database")
PART_OF, COMPONENT = "app.kubernetes.io/part-of", "app.kubernetes.io/component"
# What `systemctl show` prints of a unit.
PROPERTIES = "Id,ActiveState,NRestarts,Result,ExecMainStartTimestamp,InactiveEnterTimestamp"

Object = dict[str, Any]
Key = tuple[str, str]
"""Service, and the name of the process or cron job."""


@dataclass(frozen=True)
class Wanted:
    """A process, and how many of it should run."""

    service: str
    process: str
    replicas: int


@dataclass(frozen=True)
class CronJob:
    """A cron job, and how long ago its last success may be."""

    service: str
    cron: str
    alert_after_s: int


@dataclass(frozen=True)
class MeasureSettings:
    """Settings of this program. `deploys/prometheus.py` writes them.

    Attributes:
        answer_within_s: of each service, the longest time for an answer, seconds; published as a metric for the rules.
        state: file that remembers the successes of cron jobs.
    """

    runtime: Literal["k3s", "podman"]
    processes: list[Wanted]
    cron: list[CronJob]
    answer_within_s: dict[str, float]
    state: str


@dataclass
class Running:
    """What is known about a process.

    Attributes:
        ready: how many of it are ready.
        restarts: how often it was started again.
        reason: why one of it is not ready, such as "ErrImagePull"; empty if not known.
    """

    ready: int = 0
    restarts: int = 0
    reason: str = ""


@dataclass
class Success:
    """When a cron job was first known here, and when it last succeeded (0: never), epoch seconds."""

    known_since: float
    last: float = 0


@dataclass
class State:
    """What survives a restart: successes by SERVICE/CRON."""

    cron: dict[str, Success] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Measure, and write metrics or print. Raises FailedError if the settings cannot be read."""
    parser = argparse.ArgumentParser(prog="measure-services", description="Measure the declared services.")
    parser.add_argument("settings", type=Path, metavar="SETTINGS.json")
    parser.add_argument("--print", choices=PRINTED, dest="printed", help="print; no metrics")
    options = parser.parse_args(arguments)
    settings = schema.load(MeasureSettings, options.settings)
    if options.printed:
        for line in lines(settings, options.printed):
            print(line)
        return EXIT_PASS
    write_metrics("minipc_cluster", [_of_cluster(settings)])
    try:
        write_metrics("minipc_services", measured(settings, time.time()))
    except FailedError as error:
        # Old values would look like good ones. Without any, the alert NoData says that nothing is known.
        say(f"the services cannot be measured: {error}")
        (TEXTFILES / "minipc_services.prom").unlink(missing_ok=True)
    return EXIT_PASS


def measured(settings: MeasureSettings, now: float) -> list[Gauge]:
    """Return the metrics of processes and cron jobs. Raises FailedError if K3s or systemd does not answer."""
    found, state = processes(settings), successes(settings, now)
    wanted = {(each.service, each.process): each.replicas for each in settings.processes}
    ready = {key: min(each.ready, wanted[key]) for key, each in found.items()}
    return [
        _gauge("minipc_process_wanted", "How many of a process should run.", "process", wanted),
        _gauge("minipc_process_ready", "How many of a process are ready.", "process", ready),
        _gauge(
            "minipc_process_restarts",
            "How often a process was started again.",
            "process",
            {key: each.restarts for key, each in found.items()},
        ),
        _gauge(
            "minipc_cron_last_success_timestamp_seconds",
            "When a cron job last succeeded, or was first known here.",
            "cron",
            {key: each.last or each.known_since for key, each in state.items()},
        ),
        _gauge(
            "minipc_cron_alert_after_seconds",
            "How long ago the last success of a cron job may be.",
            "cron",
            {(each.service, each.cron): each.alert_after_s for each in settings.cron},
        ),
        Gauge(
            "minipc_service_answer_within_seconds",
            "The longest time for an answer of a service.",
            [({"service": name}, limit) for name, limit in settings.answer_within_s.items()],
        ),
        Gauge(
            "minipc_node_ready",
            "1 if the node of the cluster is ready: only then pods are started on it.",
            [({"name": name}, ready) for name, ready in nodes(settings).items()],
        ),
        Gauge(
            "minipc_node_pressure",
            "1 if the node lacks disk space, memory or process ids: pods are evicted from it and none is started.",
            [({"name": name}, short) for name, short in pressure(settings).items()],
        ),
    ]


def _of_cluster(settings: MeasureSettings) -> Gauge:
    state = cluster(settings)
    help_ = "1 if the cluster's API answers; the name says why it does not."
    return Gauge("minipc_cluster_up", help_, [({"name": name}, up) for name, up in state.items()])


def lines(settings: MeasureSettings, what: str) -> Iterator[str]:
    """Return lines NAME VALUE: the share of a process that is ready, or a job's age in multiples of its limit.

    For a node: 1 if it is ready, or if it lacks something. For the cluster: 1 if its API answers.
    """
    states = {"nodes": nodes, "pressure": pressure, "cluster": cluster}
    if what in states:
        for name, holds in states[what](settings).items():
            yield f"{name} {holds:d}"
        return
    if what == "processes":
        found = processes(settings)
        for process in settings.processes:
            running = found[process.service, process.process]
            reason = f" ({running.reason})" if running.reason and running.ready < process.replicas else ""
            share = min(running.ready, process.replicas) / process.replicas
            yield f"{process.service}/{process.process}{reason} {share:.3g}"
        return
    now = time.time()
    state = successes(settings, now)
    for job in settings.cron:
        success = state[job.service, job.cron]
        age = now - (success.last or success.known_since)
        yield f"{job.service}/{job.cron} {age / job.alert_after_s:.3g}"


def processes(settings: MeasureSettings) -> dict[Key, Running]:
    """Return what is known about each declared process. Raises FailedError if it cannot be asked."""
    found = {(each.service, each.process): Running() for each in settings.processes}
    if not found:
        return found
    if settings.runtime == "podman":
        for running, unit in zip(found.values(), units(list(found)), strict=True):
            running.ready = int(unit.get("ActiveState") == "active")
            running.restarts = int(unit.get("NRestarts") or 0)
            running.reason = "" if running.ready else unit.get("ActiveState", "")
        return found
    for pod in listed("/api/v1/pods"):
        labels = pod["metadata"].get("labels", {})
        key = (pod["metadata"]["namespace"], labels.get(COMPONENT, ""))
        if key in found and not pod["metadata"].get("deletionTimestamp"):
            _add_pod(found[key], pod.get("status", {}))
    return found


def _add_pod(running: Running, status: Object) -> None:
    containers = status.get("containerStatuses", [])
    conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
    running.restarts += sum(int(each.get("restartCount", 0)) for each in containers)
    if conditions.get("Ready") == "True":
        running.ready += 1
        return
    waiting = [each.get("state", {}).get("waiting", {}).get("reason", "") for each in containers]
    unschedulable = [each.get("reason", "") for each in status.get("conditions", []) if each["type"] == "PodScheduled"]
    reasons = [*waiting, *unschedulable, status.get("reason", "")]
    running.reason = next((reason for reason in reasons if reason), running.reason)


def successes(settings: MeasureSettings, now: float) -> dict[Key, Success]:
    """Return when each cron job last succeeded; remember it. Raises FailedError if it cannot be asked."""
    path = Path(settings.state)
    known = State()
    with suppress(OSError, schema.SchemaError):
        known = schema.load(State, path)
    seen = _seen_successes(settings)
    found = {}
    for job in settings.cron:
        before = known.cron.get(f"{job.service}/{job.cron}", Success(now))
        last = max(before.last, seen.get((job.service, job.cron), 0))
        found[job.service, job.cron] = Success(before.known_since, last)
    after = State({f"{service}/{cron}": each for (service, cron), each in found.items()})
    if after != known:
        write_file(path, schema.dump(asdict(after)), 0o600)
    return found


def _seen_successes(settings: MeasureSettings) -> dict[Key, float]:
    """Return the times that K3s or systemd knows, epoch seconds."""
    if not settings.cron:
        return {}
    if settings.runtime == "podman":
        found = {}
        jobs = [(job.service, job.cron) for job in settings.cron]
        for job, unit in zip(jobs, units(jobs), strict=True):
            ended = unit.get("InactiveEnterTimestamp", "").removeprefix("@")
            if unit.get("Result") == "success" and unit.get("ExecMainStartTimestamp") and ended.isdigit():
                found[job] = float(ended)
        return found
    return {
        (each["metadata"]["namespace"], each["metadata"]["name"]): datetime.fromisoformat(at).timestamp()
        for each in listed("/apis/batch/v1/cronjobs")
        if (at := each.get("status", {}).get("lastSuccessfulTime"))
    }


def units(parts: Sequence[Key]) -> list[dict[str, str]]:
    """Return the properties of the units of processes or cron jobs, in their order.

    Raises:
        FailedError: systemd does not answer.
    """
    names = [f"minipc-{service}-{part}.service" for service, part in parts]
    argv = ["systemctl", "show", "--timestamp=unix", f"--property={PROPERTIES}", *names]
    blocks = run(argv, timeout_s=ASK_LIMIT_S).strip().split("\n\n")
    return [dict(line.partition("=")[::2] for line in block.splitlines()) for block in blocks]


def listed(path: str) -> list[Object]:
    """Return the services' objects at a path of the Kubernetes API.

    Raises:
        FailedError: the cluster does not answer.
    """
    return _items(f"{path}?labelSelector={quote(PART_OF, '')}")


def nodes(settings: MeasureSettings) -> dict[str, bool]:
    """Return for each node of the cluster whether it is ready; none without a cluster or services.

    Raises:
        FailedError: the cluster does not answer.
    """
    # Unknown: its kubelet is silent.
    return {name: conditions.get("Ready") == "True" for name, conditions in _conditions(settings).items()}


def pressure(settings: MeasureSettings) -> dict[str, bool]:
    """Return for NODE/CONDITION, such as `a/DiskPressure`, whether the node evicts pods because of it.

    Raises:
        FailedError: the cluster does not answer.
    """
    return {
        f"{node}/{kind}": kinds[kind] == "True"
        for node, kinds in _conditions(settings).items()
        for kind in SHORT
        if kind in kinds
    }


def _conditions(settings: MeasureSettings) -> dict[str, dict[str, str]]:
    if settings.runtime != "k3s" or not settings.processes:
        return {}
    return {
        each["metadata"]["name"]: {kind["type"]: kind["status"] for kind in each["status"].get("conditions", [])}
        for each in _items("/api/v1/nodes")
    }


def cluster(settings: MeasureSettings) -> dict[str, bool]:
    """Return whether the cluster's API answers; its name says why not. Empty without a cluster or services."""
    if settings.runtime != "k3s" or not settings.processes:
        return {}
    with suppress(FailedError):
        run(["k3s", "kubectl", "get", "--raw", "/readyz"], ASK_LIMIT_S)
        return {"k3s": True}
    return {f"k3s ({_why_down()})": False}


def _why_down() -> str:
    with suppress(FailedError):
        if CORRUPT.search(run(["journalctl", "-u", "k3s", "--since=-15min", "-n", "400", "-o", "cat"], ASK_LIMIT_S)):
            return "its datastore is corrupt"
        state = run(["systemctl", "show", "k3s", "--property=ActiveState", "--value"], ASK_LIMIT_S).strip()
        if state != "active":
            return f"the unit is {state}"
    return "the API does not answer"


def _items(path: str) -> list[Object]:
    printed = run(["k3s", "kubectl", "get", "--raw", path], ASK_LIMIT_S)
    try:
        items: list[Object] = json.loads(printed)["items"]
    except (ValueError, KeyError) as error:
        raise FailedError(f"the cluster answered with something else than a list: {error}") from None
    return items


def _gauge(name: str, help_: str, label: str, values: Mapping[Key, float]) -> Gauge:
    return Gauge(name, help_, [({"service": service, label: part}, value) for (service, part), value in values.items()])
