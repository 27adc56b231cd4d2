"""ArgoCD itself and its root application: shown, asked for, synced to the commit that was looked at."""

from __future__ import annotations

import json
import shlex

import pytest

from minipc.errors import MinipcError, RefusedError
from playbooks import argocd_sync
from tests.unit.gitops_cluster import FakeCluster, application, operation

SEEN = "c" * 40


def never_synced(**status):
    changed = [{"kind": "Deployment", "name": "argocd-server", "status": "OutOfSync"}]
    return application(history=[], sync={"status": "OutOfSync", "revision": SEEN}, resources=changed, **status)


class Cluster(FakeCluster):
    """With an application of each name."""

    def __init__(self, **states):
        super().__init__({})
        self.states = states
        self.synced: list[str] = []

    def run(self, command, stdin=b"", timeout_s=60):
        name = next(each for each in shlex.split(command) if each in argocd_sync.APPLICATIONS)
        self.application = self.states[name]
        before = len(self.operations)
        said = super().run(command, stdin, timeout_s)
        if len(self.operations) > before:
            self.synced.append(name)
            self.states[name] = self.application
        return said


@pytest.fixture
def said():
    return []


def test_what_differs_is_shown_before_the_question_and_the_commit_is_the_one_that_was_seen(said):
    cluster = Cluster(argocd=never_synced(), root=application("a" * 40))
    asked = []
    assert argocd_sync.sync(cluster, said.append, lambda question: asked.append((question, list(said))) or True) == 0
    ((question, shown),) = asked
    assert SEEN[:12] in question
    assert any("Deployment argocd-server" in line for line in shown)
    assert cluster.synced == ["argocd"]
    (sync,) = [each["sync"] for each in cluster.operations]
    assert (sync["revision"], sync["prune"]) == (SEEN, False)


def test_no_is_no(said):
    cluster = Cluster(argocd=never_synced(), root=never_synced())
    with pytest.raises(RefusedError, match="argocd is not synced: you said no"):
        argocd_sync.sync(cluster, said.append, lambda _: False)
    assert cluster.synced == []


def failing():
    cluster = Cluster(argocd=never_synced(), root=never_synced())
    cluster.outcome = lambda revision: never_synced(
        operationState=operation("Failed", revision, "2026-11-21T13:00:00Z", message="no such kind")
    )
    return cluster


def test_a_failed_one_ends_it(said):
    cluster = failing()
    assert argocd_sync.sync(cluster, said.append, lambda _: True) == 1
    assert cluster.synced == ["argocd"]
    assert "no such kind" in said[-1]
    with pytest.raises(MinipcError, match="the first sync of argocd failed: no such kind"):
        argocd_sync.adopt(failing())


def test_a_rebuild_syncs_what_never_was_and_nothing_that_waits_for_a_person():
    pending = application("a" * 40, sync={"status": "OutOfSync", "revision": SEEN})
    cluster = Cluster(argocd=never_synced(), root=pending)
    argocd_sync.adopt(cluster)
    assert cluster.synced == ["argocd"]
    assert json.dumps(cluster.states["root"]) == json.dumps(pending)
