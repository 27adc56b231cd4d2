"""ArgoCD itself and its root application: shown with their content, asked for, synced to the commit that was shown."""

from __future__ import annotations

import json
import shlex

import pytest
import yaml

from minipc import artifacts
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError, RefusedError
from minipc.core.yaml_text import LOADER
from minipc.gitops import argocd_manifest, policy, signing
from playbooks import argocd_sync, release
from tests.unit.gitops_cluster import NAME, OVERLAY, DeployRepository, FakeCluster, application, operation
from tests.unit.test_gitops_attacks import BINDING, root_objects

PATHS = {"argocd": "argocd", "root": "root/lab"}
SERVER = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: argocd-server, namespace: argocd}
spec: {replicas: 1}
"""


def files(manifest: str = SERVER) -> dict[str, str]:
    project, service = root_objects()
    return {
        "argocd/install.yaml": manifest,
        "root/lab/kustomization.yaml": "resources: [objects.yaml]\n",
        "root/lab/objects.yaml": yaml.safe_dump_all([project, service]),
        f"{OVERLAY}/objects.yaml": json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}),
    }


def state(name: str, *history: str, seen: str = "", sync: str = "OutOfSync", **status):
    revision = seen or (history[-1] if history else "")
    return application(history=list(history), path=PATHS[name], sync={"status": sync, "revision": revision}, **status)


class Cluster(FakeCluster):
    """With an application of each name."""

    def __init__(self, **states):
        super().__init__({})
        self.states = states
        self.synced: list[tuple[str, str]] = []

    def run(self, command, stdin=b"", timeout_s=60):
        name = next((each for each in shlex.split(command) if each in PATHS), None)
        if name is None:
            return super().run(command, stdin, timeout_s)
        self.application = self.states[name]
        self.outcome = lambda revision: self.result(name, revision)
        before = len(self.operations)
        said = super().run(command, stdin, timeout_s)
        if len(self.operations) > before:
            self.synced.append((name, self.operations[-1]["sync"]["revision"]))
            self.states[name] = self.application
        return said

    def result(self, name, revision):
        done = operation("Succeeded", revision, "2026-11-21T13:00:00Z")
        return state(name, revision, sync="Synced", operationState=done)


class Failing(Cluster):
    def result(self, name, revision):
        failed = operation("Failed", revision, "2026-11-21T13:00:00Z", message="no such kind")
        return state(name, operationState=failed)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    made = DeployRepository(tmp_path)
    monkeypatch.setattr(signing, "signing_key", lambda environment: made.key)
    monkeypatch.setattr(argocd_sync, "_bootstrapped", list)  # whatever this controller has in its cache
    return made


class Person:
    """What was said and asked, and the answer."""

    def __init__(self, remote: DeployRepository, cluster: FakeCluster, answer: bool = True) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []

        def ask(question: str) -> bool:
            self.asked.append(question)
            return answer

        self.context = release.Context(LAB, cluster, remote.clone(), self.said.append, ask)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def both(remote):
    """Two commits, the first approved: in the second, ArgoCD's own manifest has changed."""
    first = remote.push_files(files(), "first")
    remote.approve(first)
    return first, remote.push_files(files(SERVER.replace("1}", "2}")), "second")


def test_the_content_is_shown_before_the_question_and_the_commit_is_the_one_that_was_shown(remote, both):
    first, second = both
    cluster = Cluster(argocd=state("argocd", first), root=state("root", first, seen=second, sync="Synced"))
    person = Person(remote, cluster)
    assert argocd_sync.sync(person.context) == 0
    (question,) = person.asked
    assert second[:12] in question
    assert "-  replicas: 1" in person.text
    assert "+  replicas: 2" in person.text
    assert "Deployment argocd-server in argocd: 1 line added, 1 removed" in person.text
    assert cluster.synced == [("argocd", second)]
    (sync,) = [each["sync"] for each in cluster.operations]
    assert (sync["revision"], sync["prune"]) == (second, False)
    assert remote.approvals.commits() == {"argocd": second, "root": second, NAME: first}


def test_a_service_that_is_gone_loses_its_application_and_its_approval(remote):
    first = remote.push_files(files(), "first")
    remote.approve(first)
    second = remote.push_files(
        {
            "root/lab/kustomization.yaml": "resources: [kept.yaml]\n",
            "root/lab/kept.yaml": yaml.safe_dump(root_objects()[0]),
        },
        "Remove the service",
    )
    cluster = Cluster(argocd=state("argocd", first, seen=second, sync="Synced"), root=state("root", first))
    person = Person(remote, cluster)
    assert argocd_sync.sync(person.context) == 0
    assert f"Application {NAME} in argocd: 0 lines added" in person.text
    assert [(each["sync"]["revision"], each["sync"]["prune"]) for each in cluster.operations] == [(second, True)]
    assert remote.approvals.commits() == {"argocd": second, "root": second}


def test_no_is_no(remote, both):
    first, _ = both
    cluster = Cluster(argocd=state("argocd", first), root=state("root", first))
    with pytest.raises(RefusedError, match="argocd is not synced: you answered no"):
        argocd_sync.sync(Person(remote, cluster, answer=False).context)
    assert cluster.synced == []
    assert set(remote.approvals.commits().values()) == {first}


def test_a_failed_one_ends_it_and_is_not_approved(remote, both):
    first, _ = both
    cluster = Failing(argocd=state("argocd", first), root=state("root", first))
    person = Person(remote, cluster)
    assert argocd_sync.sync(person.context) == 1
    assert [name for name, _ in cluster.synced] == ["argocd"]
    assert "no such kind" in person.said[-1]
    assert set(remote.approvals.commits().values()) == {first}
    with pytest.raises(MinipcError, match="the first sync of argocd failed: no such kind"):
        argocd_sync.adopt(Failing(argocd=state("argocd"), root=state("root")), remote.clone())


def test_what_argocd_synced_instead_is_a_failure(remote, both):
    first, second = both

    class Elsewhere(Cluster):
        def result(self, name, revision):
            return super().result(name, first)

    person = Person(remote, Elsewhere(argocd=state("argocd", first), root=state("root", first)))
    assert argocd_sync.sync(person.context) == 1
    assert f"ArgoCD reports {first[:12]}, not {second[:12]}" in person.said[-1]


def test_an_attack_by_argocds_own_manifest_is_shown_and_refused(remote, both):
    """What gave root on the machine: here even signed by somebody who may."""
    first, _ = both
    remote.push_files(files(f"{SERVER}---\n{BINDING}"), "harmless")
    cluster = Cluster(argocd=state("argocd", first), root=state("root", first))
    person = Person(remote, cluster)
    with pytest.raises(RefusedError, match="ClusterRoleBinding helper") as error:
        argocd_sync.sync(person.context)
    assert error.value.exit_code == 3
    assert "+  name: cluster-admin" in person.text
    assert (person.asked, cluster.synced) == ([], [])


def test_an_unsigned_commit_is_shown_and_refused(remote, both):
    first, _ = both
    remote.push_files(files(SERVER.replace("1}", "7}")), "unsigned", sign=False)
    cluster = Cluster(argocd=state("argocd", first), root=state("root", first))
    person = Person(remote, cluster)
    with pytest.raises(RefusedError, match="is not signed"):
        argocd_sync.sync(person.context)
    assert "+  replicas: 7" in person.text
    assert (person.asked, cluster.synced) == ([], [])


def test_a_rebuild_syncs_what_was_approved_and_nothing_that_came_later(remote, both):
    first, _ = both
    remote.push_files(files(f"{SERVER}---\n{BINDING}"), "evil", sign=False)
    cluster = Cluster(argocd=state("argocd"), root=state("root"))
    argocd_sync.adopt(cluster, remote.clone())
    assert cluster.synced == [("argocd", first), ("root", first)]


def test_a_rebuild_refuses_history_that_somebody_replaced(remote, both):
    """What gave root on the machine at the next rebuild, without a question."""
    first, _ = both
    remote.git("checkout", "-q", "--orphan", "evil")
    remote.push_files(files(f"{SERVER}---\n{BINDING}"), "evil", sign=False)
    cluster = Cluster(argocd=state("argocd"), root=state("root"))
    with pytest.raises(RefusedError, match=f"does not contain commit {first[:12]}") as error:
        argocd_sync.adopt(cluster, remote.clone())
    assert error.value.exit_code == 3
    assert cluster.synced == []


def test_a_rebuild_asks_for_nothing_and_takes_nothing_unapproved(remote):
    remote.push_files(files(), "first")
    cluster = Cluster(argocd=state("argocd"), root=state("root"))
    with pytest.raises(RefusedError, match="is approved for argocd"):
        argocd_sync.adopt(cluster, remote.clone())
    assert cluster.synced == []


def test_what_was_synced_in_this_cluster_waits_for_a_person(remote, both):
    first, _ = both
    cluster = Cluster(argocd=state("argocd"), root=state("root", first))
    argocd_sync.adopt(cluster, remote.clone())
    assert cluster.synced == [("argocd", first)]


# --- the first time --------------------------------------------------------------------------------------------------


def test_the_first_approval_shows_everything_signs_it_and_syncs_nothing(remote):
    head = remote.push_files(files(), "before there were signatures", sign=False)
    cluster = Cluster(argocd=state("argocd"), root=state("root"))
    with pytest.raises(RefusedError, match="no commit of the deploy repository is approved"):
        argocd_sync.sync(Person(remote, cluster).context)
    person = Person(remote, cluster)
    assert argocd_sync.pin(person.context, "root/lab", ()) == 0
    for part in ("+kind: AppProject", "+kind: ConfigMap", "+  name: argocd-server", "A rebuild syncs exactly this"):
        assert part in person.text + person.asked[0]
    made = remote.bare_git("rev-parse", "main")
    assert remote.bare_git("rev-parse", f"{made}^") == head
    assert remote.approvals.commits() == dict.fromkeys(["argocd", "root", NAME], made)
    assert remote.clone().admit_approved(NAME) == made
    assert cluster.synced == []


def test_at_first_argocd_is_compared_with_what_was_bootstrapped(remote, monkeypatch):
    """Its manifest is some 30,000 lines: a person can only see what is not minipc's own."""
    monkeypatch.setattr(argocd_sync, "_bootstrapped", lambda: list(yaml.safe_load_all(SERVER)))
    remote.push_files(files(), "first", sign=False)
    person = Person(remote, Cluster(argocd=state("argocd"), root=state("root")))
    assert argocd_sync.pin(person.context, "root/lab", ()) == 0
    assert "argocd-server" not in person.text
    assert "+kind: AppProject" in person.text


def test_argocds_real_manifest_holds_what_it_may():
    found = artifacts.resolve("argocd-manifest", "amd64", fetch=False)
    if found.path is None:
        pytest.skip(f"NOT EXERCISED: ArgoCD's own manifest: {found.why_missing}")
    objects = [each for each in yaml.load_all(argocd_manifest.render(found.path), Loader=LOADER) if each]
    assert list(policy.violations("argocd", objects, "ssh://git@example.org/deploy.git")) == []
    (project,) = [each for each in objects if each["metadata"]["name"] == "appprojects.argoproj.io"]
    spec = project["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    # Without names in it, the project of ArgoCD itself would allow every cluster role.
    assert "name" in spec["clusterResourceWhitelist"]["items"]["properties"]


def test_the_first_approval_may_be_refused_by_the_person_and_by_the_rules(remote):
    remote.push_files(files(), "first", sign=False)
    cluster = Cluster(argocd=state("argocd"), root=state("root"))
    with pytest.raises(RefusedError, match="you answered no"):
        argocd_sync.pin(Person(remote, cluster, answer=False).context, "root/lab", ())
    remote.push_files(files(f"{SERVER}---\n{BINDING}"), "evil")
    person = Person(remote, cluster)
    with pytest.raises(RefusedError, match="ClusterRoleBinding helper"):
        argocd_sync.pin(person.context, "root/lab", ())
    assert person.asked == []
    assert remote.approvals.commits() == {}


def test_history_that_was_rewritten_is_named_before_it_is_approved_again(remote, both):
    first, _ = both
    remote.git("checkout", "-q", "--orphan", "mine")
    remote.push_files(files(), "cleaned up")
    person = Person(remote, Cluster(argocd=state("argocd", first), root=state("root", first)))
    assert argocd_sync.pin(person.context, "root/lab", ()) == 0
    assert f"is NOT based on {first[:12]}" in person.text
