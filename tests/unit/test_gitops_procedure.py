"""The steps of a release: what is tried before users reach it, what failed, what is left alone, and the way back."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from minipc.config.service import Service
from minipc.core import polling
from minipc.core.errors import RefusedError
from minipc.gitops import application as argocd
from minipc.gitops import contract, node_images, pods, signing, smoke, trial
from minipc.gitops.deploy_files import Version
from minipc.services import images
from minipc.services.images import ServiceImage
from playbooks import release
from playbooks import release_steps as steps
from tests.unit.gitops_cluster import (
    DIGEST,
    NAME,
    OVERLAY,
    SHOP,
    DeployRepository,
    FakeCluster,
    application,
    live,
    manifests_of,
    operation,
)
from tests.unit.service_files import BOOKINGS, service
from tests.unit.test_gitops_release import Desk, of, succeeded

MIGRATING = SHOP.model_copy(update={"migrate": service(BOOKINGS).migrate})


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(images, "find", lambda *_: None)
    for module in (argocd, steps, trial, smoke, polling):
        monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setattr(pods, "PATIENCE_S", 0)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    made = DeployRepository(tmp_path)
    monkeypatch.setattr(signing, "signing_key", lambda environment: made.key)
    return made


@pytest.fixture
def start(remote, tmp_path):
    """Return a function that makes a machine that runs a service, with a new version pending."""

    def make(which: Service = SHOP) -> Desk:
        first, _ = remote.push(2, service=which), remote.push(3, service=which)
        cluster = FakeCluster(application(first))
        cluster.outcome = lambda revision: succeeded(revision, first)
        return Desk(remote, cluster, tmp_path, service=which)

    return make


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


# --- before users reach it -------------------------------------------------------------------------------------------


def test_the_migration_runs_first_as_a_job_of_the_new_version(start):
    desk = start(MIGRATING)
    assert release.sync(*of(desk)) == 0
    job, pod = desk.cluster.created
    assert (job["kind"], job["metadata"]["name"]) == ("Job", "release-migrate")
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 600)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == ["python", "bookings.py", "migrate"]
    assert container["image"] == "registry.example/shop:v1"
    assert (pod["kind"], pod["metadata"]["name"]) == ("Pod", "release-canary")
    assert "pod/release-canary" in desk.cluster.deleted


def test_a_failed_migration_shows_its_output_and_changes_nothing(start):
    desk = start(MIGRATING)
    desk.cluster.job_status = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
    desk.cluster.logs["job/release-migrate"] = "Applying 0002\npsycopg.errors.DuplicateColumn: column exists\n"
    assert release.sync(*of(desk)) == 1
    assert "✗ migrate   its command failed\n  | Applying 0002\n  | psycopg.errors.DuplicateColumn" in desk.text
    assert "the version before keeps serving" in desk.text
    assert not desk.cluster.operations
    assert [each["kind"] for each in desk.cluster.created] == ["Job"]


def test_the_canary_is_in_no_service_and_is_not_scraped(start):
    which = SHOP.model_copy(
        update={"processes": {"api": SHOP.processes["api"].model_copy(update={"metrics": None})}, "smoke": []}
    )
    desk = start(which)
    assert release.sync(*of(desk)) == 0
    (pod,) = desk.cluster.created
    selector = next(each for each in manifests_of() if each["kind"] == "Service")["spec"]["selector"]
    assert not selector.items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == NAME
    assert not [key for key in pod["metadata"]["annotations"] if key.startswith("prometheus.io/")]
    assert pod["spec"]["activeDeadlineSeconds"] > 60


@pytest.mark.parametrize(
    ("status", "said", "advice"),
    [
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "x:9"'),
            "ImagePullBackOff: Back-off",
            "minipc service image",
        ),
        (waiting("ErrImageNeverPull", "not present"), "ErrImageNeverPull: not present", "minipc apply images"),
        (
            waiting("CreateContainerConfigError", "couldn't find key STRIPE_KEY in Secret shop/shop"),
            "CreateContainerConfigError: couldn't find key",
            "minipc secrets set shop.STRIPE_KEY",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient memory"}
                ],
            },
            "Unschedulable: 0/1 nodes: Insufficient memory",
            "lower memory_mb",
        ),
        (
            waiting("CrashLoopBackOff")
            | {"phase": "Running"}
            | {
                "containerStatuses": [
                    {
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
                    }
                ]
            },
            "CrashLoopBackOff: it ended with exit code 1\n  | Traceback (most recent call last):",
            "",
        ),
    ],
)
def test_the_cause_is_shown_and_users_meet_nothing_of_it(start, status, said, advice):
    desk = start()
    desk.cluster.pod_status = status
    desk.cluster.logs["release-canary"] = "Traceback (most recent call last):\n  File \"x.py\"\nKeyError: 'PORT'\n"
    assert release.sync(*of(desk)) == 1
    assert said in desk.text
    assert advice in desk.text
    assert "a pod of the new version does not become ready" in desk.text
    assert not desk.cluster.operations
    assert not desk.cluster.asked


def test_a_volume_that_cannot_be_mounted_is_named(start):
    desk = start()
    desk.cluster.pod_status = waiting("ContainerCreating")
    desk.cluster.events = [
        {
            "reason": "FailedMount",
            "message": "references non-existent secret key: POSTGRES_PASSWORD",
            "lastTimestamp": "1",
        }
    ]
    assert release.sync(*of(desk)) == 1
    assert "release-canary: FailedMount: references non-existent secret key" in desk.text


@pytest.mark.parametrize("which", [SHOP, MIGRATING])
def test_what_the_cluster_refuses_is_a_failure_with_its_reason(start, which):
    desk = start(which)
    desk.cluster.refusal = 'Error from server (Forbidden): pods "release-canary" is forbidden: exceeded quota: service'
    assert release.sync(*of(desk)) == 1
    assert "is forbidden: exceeded quota: service" in desk.text
    assert not desk.cluster.operations


def test_a_version_that_answers_wrongly_never_reaches_users(start):
    desk = start()
    desk.cluster.answers["10.42.0.9"] = (500, "Internal Server Error")
    assert release.sync(*of(desk)) == 1
    assert "✗ smoke     the shop is open: GET /open answered 500, expected 200: Internal Server Error" in desk.text
    assert not desk.cluster.operations
    assert not [url for url in desk.cluster.asked if "127.0.0.1" in url]


def test_a_smoke_command_finds_the_canary_under_the_names_of_the_service(start):
    check = {"name": "as a user sees it", "command": ["smoke", "--url", "http://api:8000"]}
    desk = start(Service.model_validate(SHOP.model_dump() | {"smoke": [check]}))
    assert release.sync(*of(desk)) == 0
    first, second = [each for each in desk.cluster.created if each["kind"] == "Job"]
    (alias,) = first["spec"]["template"]["spec"]["hostAliases"]
    assert alias["ip"] == "10.42.0.9"
    assert {"api", "api.shop"} <= set(alias["hostnames"])
    assert "hostAliases" not in second["spec"]["template"]["spec"]
    container = first["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == check["command"]
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} & set(container)


@pytest.mark.parametrize("output", ['{"ok":true}', "[1, 2]", "", "plain words", '{"checks": 3}'])
def test_a_smoke_command_may_print_anything(start, output):
    """What curl of a health page prints once ended a release with a traceback."""
    check = {"name": "healthy", "command": ["smoke"]}
    desk = start(Service.model_validate(SHOP.model_dump() | {"smoke": [check]}))
    desk.cluster.logs["job/release-smoke-1"] = output
    assert release.sync(*of(desk)) == 0
    desk.cluster.job_status = {"conditions": [{"type": "Failed", "status": "True"}]}
    job = trial.smoke_job(desk.service, manifests_of(), 1, ["smoke"], 30)
    done = trial.run(desk.cluster, NAME, job, desk.lines.append)
    assert (done.passed, done.why) == (False, "its command failed")


def test_a_service_without_smoke_checks_is_said_not_to_be_exercised(start):
    desk = start(SHOP.model_copy(update={"smoke": []}))
    assert release.sync(*of(desk)) == 0
    assert "NOT EXERCISED: services/shop.yaml declares no smoke checks" in desk.text
    assert "PASS" in desk.text
    assert "passed" not in desk.text


def test_the_first_release_has_nobody_to_protect(remote, tmp_path):
    first = remote.push(2)
    cluster = FakeCluster(application("", health={"status": "Missing"}))
    cluster.objects = {"deployments.apps": []}

    def outcome(revision: str) -> dict[str, Any]:
        cluster.objects["deployments.apps"] = [live()]
        return succeeded(revision)

    cluster.outcome = outcome
    desk = Desk(remote, cluster, tmp_path)
    assert release.sync(*of(desk)) == 0
    assert not cluster.created
    assert cluster.asked == ["http://127.0.0.1:30090/open"]
    assert cluster.operations[0]["sync"]["revision"] == first


def test_two_versions_never_write_the_same_sqlite_file(start):
    volume = {"data": {"mount": "/data", "size_gb": 1, "data_class": "must recover", "sqlite": ["*.db"]}}
    desk = start(Service.model_validate(SHOP.model_dump() | {"volumes": volume}))
    assert release.sync(*of(desk)) == 0
    assert not desk.cluster.created
    assert "canary    NOT EXERCISED" in desk.text


def test_a_release_under_way_is_not_disturbed(start):
    desk = start()
    other = {"kind": "Pod", "metadata": {"name": "release-canary", "labels": {}}, "status": {"phase": "Running"}}
    desk.cluster.objects["pods"] = [other]
    with pytest.raises(RefusedError, match="another release of shop is running"):
        release.sync(*of(desk))
    assert not desk.cluster.operations
    assert "pod/release-canary" not in desk.cluster.deleted


def test_an_image_that_only_this_controller_has_is_copied(start, tmp_path, monkeypatch):
    """A converge copies the one that was added last; a rebuild needs the one that was approved."""
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"layers")
    found = ServiceImage(NAME, "registry.example/shop", "v1", DIGEST, "v1", "0" * 64, archive)
    monkeypatch.setattr(images, "find", lambda name, digest: found if (name, digest) == (NAME, DIGEST) else None)
    desk = start()
    assert release.sync(*of(desk)) == 0
    assert desk.cluster.imported == desk.cluster.kept == [b"layers"]
    again = start()
    again.cluster.images += f"registry.example/shop:v1 application/x {DIGEST} 1MiB\n"
    assert release.sync(*of(again)) == 0
    assert again.cluster.imported == []


def test_another_image_under_the_released_name_is_not_run(start):
    """What a machine imported from a file may come from its backup: it is data."""
    other = "sha256:" + "e" * 64
    desk = start()
    desk.cluster.images += (
        f"registry.example/shop:v1 application/x {other} 1MiB linux/amd64 {node_images.PINNED}=pinned\n"
    )
    with pytest.raises(RefusedError, match=f"has registry.example/shop:v1 with the digest {other}; the release names"):
        release.sync(*of(desk))
    assert not desk.cluster.created
    assert not desk.cluster.operations


# --- after the switch ------------------------------------------------------------------------------------------------


def test_a_pod_that_breaks_during_the_switch_ends_it(start):
    desk = start()
    state = application(history=[])

    def outcome(revision: str) -> dict[str, Any]:
        meta = {"name": "api-new", "labels": {}, "creationTimestamp": "2026-11-21T13:00:05Z"}
        desk.cluster.objects["pods"] = [{"metadata": meta, "status": waiting("ImagePullBackOff", "no such host")}]
        state["status"]["operationState"] = operation("Running", revision, "2026-11-21T13:00:00Z")
        return state

    desk.cluster.outcome = outcome
    assert release.sync(*of(desk)) == 1
    assert "api-new: ImagePullBackOff: no such host" in desk.text
    assert desk.cluster.patches[-1] == {"status": {"operationState": {"phase": "Terminating"}}}
    assert "minipc release rollback shop" in desk.text


def test_a_pod_from_before_is_not_blamed(start):
    desk = start()
    old = {"name": "other", "labels": {}, "creationTimestamp": "2026-11-21T11:00:00Z"}
    desk.cluster.objects["pods"] = [{"metadata": old, "status": waiting("CrashLoopBackOff")}]
    assert release.sync(*of(desk)) == 0


def test_a_deployment_that_makes_no_progress_fails(start):
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    assert "progress deadline" in str(steps.rollout(live(available=1, conditions=[late])))
    assert steps.rollout(live(available=1)) is None
    assert steps.rollout(live(replicas=2) | {"metadata": {"name": "api", "generation": 2}}) is None
    assert steps.rollout(live()) == ""
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    assert "exceeded quota" in str(steps.rollout(live(available=1, conditions=[refused])))


@pytest.mark.parametrize("rollback", ["ask", "automatic"])
def test_a_version_that_is_wrong_after_the_switch_is_rolled_back_where_that_is_declared(start, remote, rollback):
    desk = start(SHOP.model_copy(update={"rollback": rollback}))
    first = remote.approvals.of(NAME)
    bad = remote.bare_git("rev-parse", "main")

    def outcome(revision: str) -> dict[str, Any]:
        started = f"2026-11-21T13:00:0{len(desk.cluster.operations)}Z"
        desk.cluster.answers = {"127.0.0.1": (500, "broken")} if revision == bad else {}
        return succeeded(revision, first) | {
            "status": succeeded(revision, first)["status"]
            | {"operationState": operation("Succeeded", revision, started)}
        }

    desk.cluster.outcome = outcome
    assert release.sync(*of(desk)) == 1
    made = remote.bare_git("rev-parse", "main")
    if rollback == "ask":
        assert made == bad
        assert "minipc release rollback shop" in desk.text
        return
    assert [each["sync"]["revision"] for each in desk.cluster.operations] == [bad, made]
    assert remote.bare_git("rev-parse", f"{made}:{OVERLAY}") == remote.bare_git("rev-parse", f"{first}:{OVERLAY}")
    assert "rollback: automatic; going back to" in desk.text
    assert remote.approvals.of(NAME) == made


# --- the way back, and the end ---------------------------------------------------------------------------------------


def test_a_rollback_leaves_other_services_alone(remote, tmp_path):
    first = remote.push(2)
    remote.push(3)
    remote.push_files({"other/lab/x.yaml": "kind: ConfigMap\n"}, "another service")
    desk = Desk(remote, FakeCluster(application(first)), tmp_path)
    made = desk.context.repository.restore(first, OVERLAY, "Roll back")
    assert remote.bare_git("rev-parse", f"{made}:{OVERLAY}") == remote.bare_git("rev-parse", f"{first}:{OVERLAY}")
    assert remote.bare_git("show", f"{made}:other/lab/x.yaml") == "kind: ConfigMap"


def test_a_rollback_that_is_refused_has_pushed_nothing(start, remote):
    """A sync may begin while the operator reads the question."""
    desk = start()
    first, head = remote.approvals.of(NAME), remote.bare_git("rev-parse", "main")

    def ask(question: str) -> bool:
        desk.cluster.application["status"]["operationState"] = operation("Running", head, "2026-11-21T13:00:00Z")
        return True

    context = release.Context(desk.context.environment, desk.cluster, desk.repository, desk.lines.append, ask)
    with pytest.raises(RefusedError, match="is running"):
        release.rollback(context, desk.service, first)
    assert remote.bare_git("rev-parse", "main") == head


def test_subjects_of_rollbacks_do_not_pile_up(start, remote):
    desk = start()
    first = remote.approvals.of(NAME)
    one = desk.repository.restore(first, OVERLAY, f"Roll back to {first[:12]}: replicas 2")
    remote.git("pull", "-q", "origin", "main")
    remote.push(5)
    again = Desk(remote, desk.cluster, remote.work.parent)
    release.rollback(again.context, again.service, one)
    assert remote.bare_git("log", "-1", "--format=%s", "main") == f"Roll back to {one[:12]}: replicas 2"


def test_a_rollback_migrates_and_tries_nothing(start, remote):
    """The earlier code may not know the newer schema's migrations; and it ran before."""
    desk = start(MIGRATING)
    remote.approve(remote.bare_git("rev-parse", "main"))
    assert release.rollback(*of(desk), remote.bare_git("rev-list", "--max-parents=0", "main")) == 0
    assert not desk.cluster.created


def test_a_release_can_be_stopped(start):
    desk = start()
    assert release.stop(*of(desk)) == 0
    assert "no release of shop is under way" in desk.text
    job = {"kind": "Job", "metadata": {"name": "release-migrate", "labels": {}}, "status": {"active": 1}}
    desk.cluster.objects["jobs.batch"] = [job]
    desk.cluster.application["status"]["operationState"]["phase"] = "Running"
    assert release.stop(*of(desk)) == 0
    assert "job/release-migrate" in desk.cluster.deleted
    assert desk.cluster.patches == [{"status": {"operationState": {"phase": "Terminating"}}}]
    assert "part of its work" in desk.questions[0]


def test_before_the_first_release_nothing_was_changed_manually(remote, tmp_path):
    remote.push(2)
    cluster = FakeCluster(application("", health={"status": "Missing"}))
    cluster.drift = {"changed": [], "missing": ["Deployment api"], "diff": "", "checked": 1}
    desk = Desk(remote, cluster, tmp_path)
    release.status(*of(desk))
    assert "drift      none: nothing was released yet" in desk.text
    assert "is gone" not in desk.text


def test_status_says_why_a_pod_does_not_run(remote, tmp_path):
    cluster = FakeCluster(application(remote.push(2), health={"status": "Progressing"}))
    labels = {"app.kubernetes.io/component": "api"}
    cluster.objects["pods"] = [
        {"metadata": {"name": "api-1", "labels": labels}, "status": waiting("ErrImagePull", "gone")}
    ]
    desk = Desk(remote, cluster, tmp_path)
    assert release.status(*of(desk)) == 1
    assert "not ready  api-1: ErrImagePull: gone" in desk.text


def test_any_name_is_a_version(start, remote):
    desk = start()
    version = Version("registry.example/shop", "", "sha256:" + "e" * 64, "v2.2.9")
    assert release.set_version(*of(desk), version) == 0
    written = yaml.safe_load(remote.bare_git("show", f"main:{OVERLAY}/release/kustomization.yaml"))
    assert written["images"] == [
        {"name": "registry.example/shop", "newName": "registry.example/shop", "digest": "sha256:" + "e" * 64}
    ]
    assert written["commonAnnotations"]["org.opencontainers.image.revision"] == "v2.2.9"
    desk.repository.admit(desk.repository.head)


# --- the contract ----------------------------------------------------------------------------------------------------


def broken(change: Any) -> str:
    which = service(BOOKINGS)
    objects = json.loads(json.dumps(manifests_of(which, replicas=1)))
    change(objects)
    return "\n".join(contract.violations(which, objects))


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))


def test_generated_manifests_keep_the_contract():
    assert broken(lambda objects: None) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o.remove(named(o, "Deployment", "worker")), "no Deployment .* the process 'worker'"),
        (lambda o: o.remove(named(o, "CronJob", "nightly")), "no CronJob 'nightly'"),
        (lambda o: named(o, "CronJob", "migrate")["spec"].update(suspend=False), "is not suspended"),
        (lambda o: named(o, "Service", "web")["spec"]["ports"][0].update(nodePort=30999), "nodePort 30999 is not"),
        (lambda o: named(o, "Service", "web")["spec"].update(selector={}), "selector does not name a process"),
        (lambda o: named(o, "Service", "web")["spec"]["ports"][0].update(port=80), "has its port 8000"),
        (
            lambda o: named(o, "Deployment", "web")["spec"]["template"]["metadata"].update(annotations={}),
            "annotation org.opencontainers.image.revision",
        ),
        (
            lambda o: named(o, "Deployment", "web")["spec"]["template"]["spec"]["containers"][0].update(
                image="ghcr.io/you/bookings"
            ),
            "neither a tag nor a digest",
        ),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_named(change, words):
    assert re.search(words, broken(change))


def test_what_breaks_the_contract_is_not_synced(start, remote):
    desk = start()
    objects = json.loads(json.dumps(manifests_of(replicas=4)))
    named(objects, "Service", "api")["spec"]["ports"][0]["nodePort"] = 31111
    remote.push_files({f"{OVERLAY}/objects.yaml": yaml.safe_dump_all(objects)}, "another port")
    again = Desk(remote, desk.cluster, remote.work.parent)
    with pytest.raises(RefusedError, match="nodePort 31111 is not the ingress") as error:
        release.sync(*of(again))
    assert "minipc service render shop" in error.value.next_step


# --- output ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\n\nb\n", ["a", "b"]),
        ('{"level": "CRITICAL", "message": "service failed", "exception": "Traceback:\\n  x\\nKeyError: 1"}',
         ["CRITICAL service failed", "Traceback:", "x", "KeyError: 1"]),
        ('{"msg": "bad", "err": "no such table"}', ["bad", "no such table"]),
        ("\x1b[31mred\x1b[0m", ["red"]),
        ("[1, 2]", ["[1, 2]"]),
        ("  indented", ["  indented"]),
    ],
)  # fmt: skip
def test_the_last_lines_say_what_happened(text, lines):
    assert pods.last_lines(text) == lines
