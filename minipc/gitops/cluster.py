"""The cluster, asked over SSH with the machine's own kubectl: no credentials of it leave the machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Protocol

from minipc import ssh
from minipc.errors import CouldNotVerifyError
from minipc.inventory import Target
from minipc.wording import first_line

KUBECTL = "k3s kubectl"
NAMESPACE = "workload"
ARGOCD = "argocd"
APPLICATION = "workload"

# An object of the API, as its JSON says it.
Object = Mapping[str, Any]


class Cluster(Protocol):
    """What releases need of a cluster."""

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
        """What a shell command on the machine prints. Raises CouldNotVerifyError."""
        ...


class SshCluster:
    """The cluster on a machine of the inventory."""

    def __init__(self, target: Target) -> None:
        self._alias = target.alias
        self._config = ssh.write_config([(target.alias, target.data)])

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
        """What a shell command on the machine prints.

        Raises:
            CouldNotVerifyError: the machine can't be reached, or the command fails.
        """
        done = ssh.run(self._config, self._alias, command, stdin=stdin, timeout_s=timeout_s)
        if done.returncode:
            reason = first_line(done.stderr.decode(errors="replace")) or "no reason given"
            raise CouldNotVerifyError(
                f"{self._alias}: `{command[:70]}` failed: {reason}", "is the cluster up? `minipc verify k3s argocd`"
            )
        return done.stdout.decode(errors="replace")


def kubectl(cluster: Cluster, *argv: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
    """What kubectl prints. Raises CouldNotVerifyError."""
    return cluster.run(f"{KUBECTL} {shlex.join(argv)}", stdin, timeout_s)


def get(cluster: Cluster, *argv: str) -> Any:
    """Objects as JSON. Raises CouldNotVerifyError."""
    return json.loads(kubectl(cluster, "get", *argv, "-o", "json"))


def items(cluster: Cluster, kind: str, selector: str = "app.kubernetes.io/part-of=workload") -> list[Object]:
    """The service's objects of a kind. Raises CouldNotVerifyError."""
    found: list[Object] = get(cluster, kind, "-n", NAMESPACE, "-l", selector)["items"]
    return found
