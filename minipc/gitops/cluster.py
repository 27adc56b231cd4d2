"""The cluster, asked over SSH with the machine's own kubectl: no credentials of it leave the machine."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any, Protocol

from minipc.core.errors import CouldNotVerifyError, MinipcError
from minipc.core.formatting import first_line
from minipc.remote import ssh
from minipc.remote.inventory import Target

KUBECTL = "k3s kubectl"
ARGOCD = "argocd"
# How kubectl reports that the API refuses an object.
_REFUSED = re.compile(
    r"(Error from server )?\((Forbidden|Invalid|BadRequest|NotFound)\).*|The \w+ \"[^\"]*\" is invalid.*"
)
PART_OF = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"
"""Labels of each object and pod of a service: the service's name, and the process, cron job or job of a release."""

# An object of the API, as its JSON says it.
Object = Mapping[str, Any]


class Cluster(Protocol):
    """What releases need of a cluster."""

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
        """Return what a shell command on the machine prints. Raises CouldNotVerifyError."""
        ...


class SshCluster:
    """The cluster on a machine of the inventory."""

    def __init__(self, target: Target) -> None:
        self._alias = target.alias
        self._config = ssh.write_config([(target.alias, target.data)])

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
        """Return what a shell command on the machine prints.

        Raises:
            CouldNotVerifyError: the machine can't be reached, or the command fails.
        """
        done = ssh.run(self._config, self._alias, command, stdin=stdin, timeout_s=timeout_s)
        if done.returncode:
            reason = first_line(done.stderr.decode(errors="replace")) or "no reason given"
            raise CouldNotVerifyError(
                f"{self._alias}: `{command[:70]}` failed: {reason}",
                "check that the cluster is up: `minipc verify k3s argocd`",
            )
        return done.stdout.decode(errors="replace")


def kubectl(cluster: Cluster, *argv: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
    """Return what kubectl prints. Raises CouldNotVerifyError."""
    return cluster.run(f"{KUBECTL} {shlex.join(argv)}", stdin, timeout_s)


def get(cluster: Cluster, *argv: str) -> Any:
    """Objects as JSON. Raises CouldNotVerifyError."""
    return json.loads(kubectl(cluster, "get", *argv, "-o", "json"))


def items(cluster: Cluster, kind: str, service: str, *labels: str) -> list[Object]:
    """Return a service's objects of a kind, which have these labels (NAME=VALUE), too. Raises CouldNotVerifyError."""
    selector = ",".join([f"{PART_OF}={service}", *labels])
    found: list[Object] = get(cluster, kind, "-n", service, "-l", selector)["items"]
    return found


class NotAllowedError(MinipcError):
    """The cluster refuses an object: it would go beyond a quota, or Pod Security or the API's rules forbid it."""


def create(cluster: Cluster, namespace: str, manifest: Object) -> None:
    """Create an object.

    Raises:
        NotAllowedError: the cluster refuses it; with the cluster's reason.
        CouldNotVerifyError: the cluster doesn't answer.
    """
    try:
        kubectl(cluster, "create", "-n", namespace, "-f", "-", stdin=json.dumps(manifest).encode())
    except CouldNotVerifyError as error:
        found = _REFUSED.search(error.what)
        if not found:
            raise
        raise NotAllowedError(found[0]) from None


def delete(cluster: Cluster, namespace: str, *names: str) -> None:
    """Remove objects (KIND/NAME) with all that they own; those that do not exist are ignored."""
    kubectl(cluster, "delete", "-n", namespace, "--ignore-not-found", "--wait=false", *names)


def meta(each: Object) -> Mapping[str, Any]:
    """Return an object's metadata."""
    found: Mapping[str, Any] = each.get("metadata") or {}
    return found


def label(each: Object, name: str) -> str:
    """Return the value of a label; empty if there is none."""
    return str((meta(each).get("labels") or {}).get(name, ""))
