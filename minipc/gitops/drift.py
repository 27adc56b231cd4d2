"""Ask the program on the machine what was changed by hand in the live cluster."""

from __future__ import annotations

from minipc.gitops.cluster import Cluster
from minipc.remote.results import parse_result
from minipc_machine.gitops_drift import Drift

PROGRAM = "/usr/local/lib/minipc/gitops-drift"


def look(cluster: Cluster, application: str) -> Drift:
    """Compare the live objects with what ArgoCD applied last.

    Raises:
        CouldNotVerifyError: the cluster doesn't answer, or the program on the machine is another version.
    """
    text = cluster.run(f"python3 {PROGRAM} --application {application}", timeout_s=180)
    return parse_result(Drift, text, PROGRAM)
