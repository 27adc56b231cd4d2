"""The two applications of ArgoCD's own: itself, and the root application, which defines all others.

Neither follows the repository by itself. What they may change is as good as the whole cluster, and so whoever can write
to the repository would own it a minute later. A person syncs them, after a look at what differs.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence

from minipc.errors import EXIT_FAIL, EXIT_PASS, MinipcError, RefusedError
from minipc.gitops import application as argocd
from minipc.gitops.application import SUCCEEDED, Application
from minipc.gitops.cluster import ARGOCD, Cluster, get
from minipc.verdicts import SIGNS

# In this order: a new version may know what the root application defines.
APPLICATIONS = ("argocd", "root")
TIMEOUT_S = 300


def sync(cluster: Cluster, say: Callable[[str], None], ask: Callable[[str], bool]) -> int:
    """Shows for each which objects differ from the repository, asks, and syncs it; returns the exit code.

    Raises:
        RefusedError: the operator said no, or a sync is under way.
        CouldNotVerifyError: the cluster doesn't answer, or it takes too long.
    """
    for name in APPLICATIONS:
        now = argocd.refresh(cluster, name)
        if now.sync == argocd.SYNCED:
            say(f"{SIGNS['pass']} {name}: nothing to do, the cluster is what {now.seen[:12]} says")
            continue
        for each in different(cluster, name):
            say(f"  {each}")
        if not ask(f"Sync {name} to {now.seen[:12]} of {now.repository}, {now.path}?"):
            raise RefusedError(f"{name} is not synced: you said no", "git -C YOUR-CLONE log -p, then again")
        after = bring(cluster, name, now)
        if after.operation != SUCCEEDED:
            say(f"{SIGNS['fail']} {name}: {after.operation_message}")
            return EXIT_FAIL
        say(f"{SIGNS['pass']} {name}: synced to {now.seen[:12]}")
    return EXIT_PASS


def adopt(cluster: Cluster) -> None:
    """Syncs each that was never synced in this cluster, without a question: a rebuild brings back what was there.

    Raises:
        MinipcError: a sync failed.
        CouldNotVerifyError: the cluster doesn't answer, or it takes too long.
    """
    for name in APPLICATIONS:
        now = argocd.refresh(cluster, name)
        if now.history:
            continue
        after = bring(cluster, name, now)
        if after.operation != SUCCEEDED:
            raise MinipcError(f"the first sync of {name} failed: {after.operation_message}", "`minipc argocd sync`")


def bring(cluster: Cluster, name: str, now: Application) -> Application:
    """Syncs to the commit that ArgoCD saw last, and returns what came of it. Removes nothing."""
    who = f"minipc argocd ({getpass.getuser()})"
    argocd.start(cluster, now, now.seen, who, name, prune=False)
    return argocd.wait(cluster, now, timeout_s=TIMEOUT_S, show=lambda _: None, name=name)


def different(cluster: Cluster, name: str) -> Sequence[str]:
    """The objects that differ from what the repository says."""
    status = get(cluster, "applications.argoproj.io", name, "-n", ARGOCD).get("status", {})
    return [
        f"{each['kind']} {each['name']}"
        for each in status.get("resources") or []
        if each.get("status") != argocd.SYNCED
    ]
