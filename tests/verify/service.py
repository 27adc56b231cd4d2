"""The service as the checks handle it, wherever it runs: stopped and started by part, its log, its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

WORKERS = ("ingest", "forecast", "push")
PARTS = ("api", *WORKERS)
KUBECTL = "k3s kubectl --request-timeout=30s -n workload"

Shell = Callable[..., str]


class Service(Protocol):
    """What both have in common. Parts are "api" and the workers' names."""

    def stop(self, disturb: Shell, part: str) -> None:
        """Stops a part, and waits until it is gone."""

    def start(self, disturb: Shell, part: str) -> None:
        """Starts it again."""

    def log(self) -> list[str]:
        """The last lines of all parts."""
        ...

    def metrics(self, part: str) -> str:
        """What Prometheus reads from all processes of a part, one after the other."""
        ...


class StandIn:
    """Units of systemd."""

    def __init__(self, sh: Shell, ports: dict[str, int]) -> None:
        self._sh, self._ports = sh, ports

    def unit(self, part: str) -> str:
        """The unit of a part."""
        return "workload-api.service" if part == "api" else f"workload-worker@{part}.service"

    def stop(self, disturb: Shell, part: str) -> None:
        disturb(f"systemctl stop {self.unit(part)}")

    def start(self, disturb: Shell, part: str) -> None:
        disturb(f"systemctl start {self.unit(part)}")

    def log(self) -> list[str]:
        tags = " ".join(f"-t workload-{name}" for name in ("migrate", *PARTS))
        return self._sh(f"journalctl --sync; journalctl {tags} -o cat -n 500").splitlines()

    def metrics(self, part: str) -> str:
        return self._sh(f"curl -s --max-time 5 http://127.0.0.1:{self._ports[part]}/metrics")


class InK3s:
    """Deployments of the cluster."""

    def __init__(self, sh: Shell) -> None:
        self._sh = sh
        self._replicas: dict[str, int] = {}

    def stop(self, disturb: Shell, part: str) -> None:
        self._replicas[part] = int(disturb(f"{KUBECTL} get deploy {part} -o jsonpath={{.spec.replicas}}"))
        disturb(f"{KUBECTL} scale deploy {part} --replicas 0")
        # As long as one of them answers while it ends, requests still go there.
        disturb(f"{KUBECTL} wait --for=delete pod -l app.kubernetes.io/component={part} --timeout 60s")

    def start(self, disturb: Shell, part: str) -> None:
        disturb(f"{KUBECTL} scale deploy {part} --replicas {self._replicas.get(part, 1)}")
        disturb(f"k3s kubectl -n workload rollout status deploy/{part} --timeout 120s")

    def log(self) -> list[str]:
        # A pod that comes or goes has none, and kubectl then ends with 1; who looks for a line tries again.
        parts = f"app.kubernetes.io/component in ({','.join(('migrate', *PARTS))})"
        return self._sh(
            f"{KUBECTL} logs -l '{parts}' --max-log-requests 20 --tail 500 2>/dev/null || true"
        ).splitlines()

    def metrics(self, part: str) -> str:
        return self._sh(
            "; ".join(
                f"curl -s --noproxy '*' --max-time 5 http://{pod['status']['podIP']}:{port}/metrics"
                for pod in self.pods(part)
                for port in [pod["metadata"]["annotations"]["prometheus.io/port"]]
            )
        )

    def pods(self, part: str) -> list[Any]:
        """The pods of a part that are not ending."""
        found = json.loads(self._sh(f"{KUBECTL} get pods -l app.kubernetes.io/component={part} -o json"))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
