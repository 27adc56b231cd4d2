"""What was changed in the live cluster behind Git's back; the program that tells it runs on the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass

from minipc.gitops.cluster import APPLICATION, Cluster
from minipc.paths import ROOT

PROGRAM = ROOT / "templates/workload/drift.py"


@dataclass(frozen=True)
class Drift:
    """Attributes:
    changed: objects, each with who changed it and when where Kubernetes says so.
    missing: objects that are gone.
    diff: what would bring them back to what was applied.
    checked: how many objects were looked at.
    """

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    diff: str
    checked: int

    @property
    def found(self) -> bool:
        """Whether there is any."""
        return bool(self.changed or self.missing)


def look(cluster: Cluster, application: str = APPLICATION) -> Drift:
    """Compares the live objects with what ArgoCD applied last.

    Raises:
        CouldNotVerifyError: the cluster doesn't answer.
    """
    text = cluster.run(f"python3 - --application {application}", stdin=PROGRAM.read_bytes(), timeout_s=180)
    found = json.loads(text)
    changed = tuple(each["name"] + _who(each) for each in found["changed"])
    return Drift(changed, tuple(found["missing"]), found["diff"], found["checked"])


def _who(change: dict[str, str]) -> str:
    """Kubernetes keeps no time of a scaling, and no name of one to 0."""
    when = f" at {change['at']}" if change["at"] else ""
    return f" (by {change['by']}{when})" if change["by"] else ""
