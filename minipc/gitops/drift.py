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
    changed = tuple(
        each["name"] + (f" (by {each['by']} at {each['at']})" if each["by"] else "") for each in found["changed"]
    )
    return Drift(changed, tuple(found["missing"]), found["diff"], found["checked"])
