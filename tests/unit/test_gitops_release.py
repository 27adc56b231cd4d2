"""Releases: what is said, asked and done, and that nothing is done without being asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from minipc.config.service import Service
from minipc.core import polling
from minipc.core.environment import LAB
from minipc.core.errors import ConfigError, CouldNotVerifyError, RefusedError
from minipc.gitops import application as argocd
from minipc.gitops import signing, smoke, trial
from minipc.gitops.repository import Repository
from playbooks import release
from playbooks import release_steps as steps
from tests.unit.gitops_cluster import SHOP, DeployRepository, FakeCluster, application, operation, step

LATER = "2026-11-21T13:00:00Z"
SOONER = "2026-11-21T12:45:00Z"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    made = DeployRepository(tmp_path)
    monkeypatch.setattr(signing, "signing_key", lambda environment: made.key)
    return made


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "operator")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "operator@example.org")


@pytest.fixture
def fast(monkeypatch):
    for module in (argocd, steps, trial, smoke, polling):
        monkeypatch.setattr(module.time, "sleep", lambda _: None)


class Desk:
    """The operator: what was said to them and asked."""

    def __init__(
        self,
        remote: DeployRepository,
        cluster: FakeCluster,
        tmp_path: Path,
        answer: bool = True,
        service: Service = SHOP,
    ) -> None:
        self.lines: list[str] = []
        self.questions: list[str] = []
        self.answer, self.service = answer, service
        history = cluster.application["status"]["history"]
        remote.approve(history[0]["revision"] if history else remote.bare_git("rev-list", "--max-parents=0", "main"))
        self.repository = remote.clone()
        self.cluster = cluster
        self.context = release.Context(LAB, cluster, self.repository, self.lines.append, self.ask)

    def ask(self, question: str) -> bool:
        self.questions.append(question)
        return self.answer

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def of(desk: Desk) -> tuple[release.Context, Service]:
    """What the procedures take."""
    return desk.context, desk.service


def succeeded(revision: str, *before: str):
    return application(
        revision,
        history=[*before, revision],
        operationState=operation(
            "Succeeded",
            revision,
            LATER,
            step("Job", "migrate", "PreSync", hookPhase="Succeeded"),
            step("Deployment", "api", status="Synced"),
            step("Job", "smoke", "PostSync", hookPhase="Succeeded"),
        ),
    )


def failed(revision: str, *before: str):
    resources = [
        {
            "kind": "Deployment",
            "name": "api",
            "health": {"status": "Degraded", "message": 'Deployment "api" exceeded its progress deadline'},
        }
    ]
    return application(
        revision,
        history=list(before),
        health={"status": "Degraded"},
        resources=resources,
        operationState=operation("Failed", revision, SOONER, message="one or more synchronization tasks failed"),
    )


def test_nothing_pending_is_said_and_exits_0(remote, tmp_path):
    desk = Desk(remote, FakeCluster(application(remote.push(2))), tmp_path)
    assert release.status(desk.context, desk.service) == 0
    assert "pending    nothing" in desk.text
    assert "drift      none in 7 objects" in desk.text


def test_a_pending_release_is_shown_and_exits_2(remote, tmp_path):
    first = remote.push(2)
    remote.push(3, "three of them")
    desk = Desk(remote, FakeCluster(application(first)), tmp_path)
    assert release.status(desk.context, desk.service, full=True) == 2
    assert "pending    1 object would change" in desk.text
    assert "three of them" in desk.text
    assert "-  replicas: 2" in desk.text
    assert "+  replicas: 3" in desk.text


def test_a_commit_that_changes_no_object_is_not_pending(remote, tmp_path):
    first = remote.push(2)
    remote.push(2, "words only")
    desk = Desk(remote, FakeCluster(application(first)), tmp_path)
    assert release.status(desk.context, desk.service) == 0


def test_a_change_by_hand_is_shown_and_exits_2(remote, tmp_path):
    cluster = FakeCluster(application(remote.push(2)))
    changed = [{"name": "Deployment api", "by": "kubectl-edit", "at": "2026-11-21T12:30:00Z"}]
    cluster.drift = {"changed": changed, "missing": ["Service api"], "diff": "-  replicas: 5", "checked": 7}
    desk = Desk(remote, cluster, tmp_path)
    assert release.status(desk.context, desk.service, full=True) == 2
    assert "2 objects of 7, changed manually" in desk.text
    assert "Deployment api (by kubectl-edit at 2026-11-21T12:30:00Z)" in desk.text
    assert "Service api is gone" in desk.text
    assert "-  replicas: 5" in desk.text


def test_a_failed_sync_is_shown_and_exits_1(remote, tmp_path):
    first, second = remote.push(2), remote.push(3)
    desk = Desk(remote, FakeCluster(failed(second, first)), tmp_path)
    assert release.status(desk.context, desk.service) == 1
    assert "exceeded its progress deadline" in desk.text


def test_before_the_first_release_everything_is_pending(remote, tmp_path):
    remote.push(2)
    desk = Desk(remote, FakeCluster(application("", health={"status": "Missing"})), tmp_path)
    assert release.status(desk.context, desk.service) == 2
    assert "deployed   nothing yet" in desk.text


def test_a_release_shows_asks_syncs_and_tags(remote, tmp_path, fast):
    first, second = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(first))
    cluster.outcome = lambda revision: succeeded(revision, first)
    desk = Desk(remote, cluster, tmp_path)
    assert release.sync(desk.context, desk.service) == 0
    assert desk.questions == [f"Release {second[:12]} of shop to lab?"]
    assert desk.text.index("+  replicas: 3") < desk.text.index("a pod of the new version is ready")
    assert desk.text.index("a pod of the new version is ready") < desk.text.index("Deployment api  ")
    (asked,) = cluster.operations
    assert asked["sync"] == {"revision": second, "prune": True, "syncOptions": ["PruneLast=true"]}
    assert asked["initiatedBy"]["username"].startswith("minipc release")
    # Once at the pod that no user reaches, once at the port of the ingress.
    assert cluster.asked == ["http://10.42.0.9:8000/open", "http://127.0.0.1:30090/open"]
    assert desk.text.count("✓ smoke     the shop is open") == 2
    assert "is released; 1 smoke check passed" in desk.text
    (tag,) = remote.bare_git("tag", "--list", "release/lab/shop/*").split()
    assert remote.bare_git("rev-parse", tag) == second


def test_no_means_no(remote, tmp_path):
    first, _ = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(first))
    for act in (release.sync, lambda *who: release.rollback(*who, first)):
        with pytest.raises(RefusedError, match="you answered no"):
            act(*of(Desk(remote, cluster, tmp_path, answer=False)))
    assert not cluster.operations


def test_what_runs_already_is_not_synced_again(remote, tmp_path):
    cluster = FakeCluster(application(remote.push(2)))
    desk = Desk(remote, cluster, tmp_path)
    assert release.sync(desk.context, desk.service) == 0
    assert "nothing to do" in desk.text
    assert not cluster.operations
    assert not desk.questions


def test_a_sync_under_way_is_left_alone(remote, tmp_path):
    first, second = remote.push(2), remote.push(3)
    state = application(first, operationState=operation("Running", second, LATER))
    cluster = FakeCluster(state)
    with pytest.raises(RefusedError, match="is running"):
        release.sync(*of(Desk(remote, cluster, tmp_path)))
    assert not cluster.operations


def test_a_failed_release_says_why_who_serves_and_what_next(remote, tmp_path, fast):
    first, second = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(first))
    cluster.outcome = lambda revision: failed(revision, first)
    meta = {"name": "api-new", "labels": {"app.kubernetes.io/component": "api"}}
    waiting = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    crashing = {
        "metadata": meta,
        "spec": {"containers": [{"image": "x:1"}]},
        "status": {"phase": "Running", "containerStatuses": [waiting]},
    }

    def outcome(revision: str):
        cluster.objects["pods"] = [crashing]
        return failed(revision, first)

    cluster.outcome = outcome
    cluster.logs["api-new"] = '{"level": "CRITICAL", "message": "service failed", "exception": "KeyError: \'PORT\'"}\n'
    desk = Desk(remote, cluster, tmp_path)
    assert release.sync(desk.context, desk.service) == 1
    assert "exceeded its progress deadline" in desk.text
    assert "2 pods of the process 'api' serve users now" in desk.text
    assert "api-new: CrashLoopBackOff" in desk.text
    assert "  | CRITICAL service failed\n  | KeyError: 'PORT'" in desk.text
    assert f"✗ FAIL  {second[:12]}" in desk.text
    assert "minipc release rollback" in desk.text
    assert not remote.bare_git("tag", "--list")


def test_a_rollback_is_a_new_commit_with_the_operators_name(remote, tmp_path, fast):
    first, second = remote.push(2), remote.push(3)
    cluster = FakeCluster(failed(second, first))
    cluster.outcome = lambda revision: succeeded(revision, first)
    desk = Desk(remote, cluster, tmp_path)
    desk.repository.mark_released("lab", "shop", first, "20261121T120000Z")
    assert release.rollback(desk.context, desk.service) == 0
    made = remote.bare_git("rev-parse", "main")
    assert made not in (first, second)
    assert remote.bare_git("rev-parse", f"{made}^") == second
    assert remote.bare_git("rev-parse", f"{made}^{{tree}}") == remote.bare_git("rev-parse", f"{first}^{{tree}}")
    assert remote.bare_git("log", "-1", "--format=%an: %s", made) == f"operator: Roll back to {first[:12]}: replicas 2"
    assert cluster.operations[0]["sync"]["revision"] == made
    assert "-  replicas: 3" in desk.text
    assert "+  replicas: 2" in desk.text


def test_without_tags_a_rollback_takes_argocds_history(remote, tmp_path, fast):
    first, second = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(second, history=[first, second]))
    cluster.outcome = lambda revision: succeeded(revision, first, second)
    assert release.rollback(*of(Desk(remote, cluster, tmp_path))) == 0
    made = cluster.operations[0]["sync"]["revision"]
    assert remote.bare_git("rev-parse", f"{made}^{{tree}}") == remote.bare_git("rev-parse", f"{first}^{{tree}}")


def test_rolling_back_twice_does_not_come_back_to_the_bad_one(remote, tmp_path, fast):
    """The tags name what passed: a release that failed is never the one to go back to."""
    good, bad = remote.push(2), remote.push(3)
    cluster = FakeCluster(failed(bad, good))
    cluster.outcome = lambda revision: succeeded(revision, good)
    desk = Desk(remote, cluster, tmp_path)
    desk.repository.mark_released("lab", "shop", good, "20261121T120000Z")
    release.rollback(desk.context, desk.service)
    with pytest.raises(RefusedError, match="no earlier release"):
        release.rollback(desk.context, desk.service)


def test_there_may_be_nothing_to_go_back_to(remote, tmp_path):
    desk = Desk(remote, FakeCluster(application(remote.push(2))), tmp_path)
    with pytest.raises(RefusedError, match="no earlier release"):
        release.rollback(desk.context, desk.service)
    with pytest.raises(ConfigError, match="no commit"):
        release.rollback(desk.context, desk.service, "0123abc")


def test_a_sync_that_does_not_end_could_not_be_verified(remote, tmp_path, fast):
    first, second = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(first))
    cluster.outcome = lambda revision: application(first, operationState=operation("Running", second, LATER))
    with pytest.raises(CouldNotVerifyError, match="did not end in"):
        release.sync(*of(Desk(remote, cluster, tmp_path)), timeout_s=0)


def test_a_success_that_the_cluster_contradicts_is_none(remote, tmp_path, fast):
    first, second = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(first))
    made = succeeded(second, first)
    made["status"]["sync"]["status"] = "OutOfSync"
    cluster.outcome = lambda _: made
    desk = Desk(remote, cluster, tmp_path)
    assert release.sync(desk.context, desk.service) == 1
    assert "the sync succeeded, but the cluster is OutOfSync" in desk.text
    assert not remote.bare_git("tag", "--list")


def test_a_sync_begins_without_the_results_of_the_one_before(remote, tmp_path, fast):
    """ArgoCD would go on from them, find everything done, and report a success without having applied anything."""
    first, _ = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(first))
    cluster.outcome = lambda revision: succeeded(revision, first)
    release.sync(*of(Desk(remote, cluster, tmp_path)))
    assert cluster.patches[0]["status"] == {"operationState": None}


def test_a_cluster_that_is_silent_for_a_moment_is_asked_again(remote, tmp_path, fast):
    first, second = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(first))
    cluster.outcome = lambda revision: succeeded(revision, first)
    answer, silent = cluster.run, [True, True]

    def run(command: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
        if cluster.operations and silent:
            silent.pop()
            raise CouldNotVerifyError("no answer")
        return answer(command, stdin, timeout_s)

    cluster.run = run
    assert release.sync(*of(Desk(remote, cluster, tmp_path))) == 0
    assert cluster.operations[0]["sync"]["revision"] == second


def test_a_release_that_can_not_be_tagged_is_released_all_the_same(remote, tmp_path, fast):
    first, _ = remote.push(2), remote.push(3)
    cluster = FakeCluster(application(first))
    cluster.outcome = lambda revision: succeeded(revision, first)
    hook = remote.bare / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    desk = Desk(remote, cluster, tmp_path)
    assert release.sync(desk.context, desk.service) == 0
    assert "the tag could not be created" in desk.text


def test_a_repository_out_of_reach_is_named(remote, tmp_path):
    with pytest.raises(CouldNotVerifyError, match=r"deploy repository .*nowhere"):
        Repository(str(tmp_path / "nowhere"), tmp_path / "clone", "main", remote.trust)


def test_someone_elses_push_is_not_overwritten(remote, tmp_path):
    first = remote.push(2)
    repository = remote.clone()
    theirs = remote.push(3)
    with pytest.raises(CouldNotVerifyError, match="deploy repository"):
        repository.restore(first, "shop/lab", "Roll back")
    assert remote.bare_git("rev-parse", "main") == theirs


def test_one_file_is_written_as_a_commit_and_only_when_it_differs(remote, tmp_path):
    first = remote.push(2)
    repository = remote.clone()
    made = repository.write("a/new.yaml", "x: 1\n", "Release 1f0c")
    assert remote.bare_git("show", f"{made}:a/new.yaml") == "x: 1"
    assert remote.bare_git("rev-parse", f"{made}^") == first
    assert repository.write("a/new.yaml", "x: 1\n", "Release 1f0c") == made
    # What was there stays.
    assert "kind: Deployment" in remote.bare_git("show", f"{made}:shop/lab/objects.yaml")
