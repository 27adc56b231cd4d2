"""A service as the checks control it: stop and start its processes, read its logs and metrics, in both runtimes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from minipc.config.service import Service
from minipc.services.ports import metrics_port

Shell = Callable[..., str]
PART_OF, COMPONENT = "app.kubernetes.io/part-of", "app.kubernetes.io/component"


class RunningService(Protocol):
    """The operations that both runtimes offer.

    Attributes:
        file: the service as its file describes it.
    """

    file: Service

    def stop(self, disturb: Shell, process: str) -> None:
        """Stop a process and wait until it has stopped."""

    def start(self, disturb: Shell, process: str) -> None:
        """Start a process again."""

    def running(self, process: str) -> int:
        """Return how many replicas of a process run and are ready."""
        ...

    def log(self) -> list[str]:
        """Return the last log lines of all processes."""
        ...

    def metrics(self, process: str) -> str:
        """Return the metrics of all replicas of a process, concatenated."""
        ...


class UnderPodman:
    """A service under podman: one systemd unit for each process (lab only)."""

    def __init__(self, sh: Shell, file: Service, services: Sequence[Service]) -> None:
        self._sh, self.file, self._services = sh, file, services

    def unit(self, process: str) -> str:
        """Return the name of the unit that runs a process."""
        return f"minipc-{self.file.name}-{process}.service"

    def stop(self, disturb: Shell, process: str) -> None:
        disturb(f"systemctl stop {self.unit(process)}")

    def start(self, disturb: Shell, process: str) -> None:
        disturb(f"systemctl start {self.unit(process)}")

    def running(self, process: str) -> int:
        return int(self._sh(f"systemctl is-active {self.unit(process)} || true") == "active")

    def log(self) -> list[str]:
        tags = " ".join(f"-t minipc-{self.file.name}-{each}" for each in self.file.processes)
        fields = "-o json --output-fields=MESSAGE,_COMM -n 500"
        entries = map(json.loads, self._sh(f"journalctl --sync; journalctl {tags} {fields}").splitlines())
        # Podman prints the ids of what it makes into the same log.
        return [str(entry["MESSAGE"]) for entry in entries if entry.get("_COMM") not in ("podman", "conmon", "crun")]

    def metrics(self, process: str) -> str:
        described = self.file.processes[process].metrics
        port = metrics_port(self._services, self.file.name, process)
        return self._sh(f"curl -s --max-time 5 http://127.0.0.1:{port}{described.path if described else '/'}")


class InK3s:
    """A service as Deployments in K3s."""

    def __init__(self, sh: Shell, file: Service) -> None:
        self._sh, self.file = sh, file
        self._replicas: dict[str, int] = {}
        self.kubectl = f"k3s kubectl --request-timeout=30s -n {file.name}"

    def stop(self, disturb: Shell, process: str) -> None:
        self._replicas[process] = int(disturb(f"{self.kubectl} get deploy {process} -o jsonpath={{.spec.replicas}}"))
        disturb(f"{self.kubectl} scale deploy {process} --replicas 0")
        # A pod that is stopping may still answer requests.
        disturb(f"{self.kubectl} wait --for=delete pod -l {COMPONENT}={process} --timeout 60s")

    def start(self, disturb: Shell, process: str) -> None:
        disturb(f"{self.kubectl} scale deploy {process} --replicas {self._replicas.get(process, 1)}")
        disturb(f"k3s kubectl -n {self.file.name} rollout status deploy/{process} --timeout 120s")

    def running(self, process: str) -> int:
        pods = self.pods(process)
        return sum(
            all(each["ready"] for each in pod["status"].get("containerStatuses", [{"ready": 0}])) for pod in pods
        )

    def log(self) -> list[str]:
        # kubectl fails while a pod starts or stops and has no log yet; the caller tries again.
        selector = shlex.quote(f"{COMPONENT} in ({','.join(self.file.processes)})")
        return self._sh(
            f"{self.kubectl} logs -l {selector} --max-log-requests 20 --tail 500 2>/dev/null || true"
        ).splitlines()

    def metrics(self, process: str) -> str:
        described = self.file.processes[process].metrics
        path = f":{described.port}{described.path}" if described else ""
        urls = [f"http://{pod['status']['podIP']}{path}" for pod in self.pods(process)]
        return self._sh("; ".join(f"curl -s --noproxy '*' --max-time 5 {shlex.quote(url)}" for url in urls))

    def pods(self, process: str) -> list[Any]:
        """Return the pods of a process that are not being deleted."""
        found = json.loads(self._sh(f"{self.kubectl} get pods -l {COMPONENT}={process} -o json"))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
