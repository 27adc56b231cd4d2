"""From a pod back to a commit, and the program that finds changes made by hand."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

from minipc.core.errors import ConfigError, CouldNotVerifyError
from minipc.gitops import trace
from minipc_machine import gitops_drift
from playbooks.release_trace import show_trace
from tests.unit.gitops_cluster import NAME, SHOP, DeployRepository, FakeCluster, application
from tests.unit.test_gitops_release import Desk

COMMIT, DIGEST, CONFIG, OTHER = "c" * 40, "sha256:" + "d" * 64, "sha256:" + "e" * 64, "sha256:" + "f" * 64
IMAGE = f"minipc.local/parking:{COMMIT}"
# As `ctr images ls` prints it; an image imported from a file is also known by its configuration.
IMAGES = f"""\
REF TYPE DIGEST SIZE PLATFORMS LABELS
{IMAGE} application/vnd.oci.image.manifest.v1+json {DIGEST} 153.0 MiB linux/amd64 io.cri-containerd.image=managed
{CONFIG} application/vnd.oci.image.manifest.v1+json {DIGEST} 153.0 MiB linux/amd64 io.cri-containerd.image=managed
"""


def pod(name: str = "api-1-a", *, runs: str = CONFIG, owner: str = "api-1", component: str = "api") -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/component": component},
            "annotations": {trace.REVISION: COMMIT, trace.DIGEST: DIGEST},
            "ownerReferences": [{"kind": "ReplicaSet", "name": owner}],
        },
        "spec": {"containers": [{"name": "parking", "image": IMAGE}]},
        "status": {
            "phase": "Running",
            "startTime": "2026-11-21T12:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"imageID": runs, "state": {"running": {}}}],
        },
    }


def owned(name: str, number: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "annotations": {trace.ROLLOUT: number},
            "labels": {"app.kubernetes.io/component": name},
        }
    }


@pytest.fixture
def cluster():
    made = FakeCluster(application("a" * 40))
    made.images = IMAGES
    made.objects = {
        "pods": [pod()],
        "replicasets.apps": [owned("api-1", "7"), owned("api-0", "6")],
        "deployments.apps": [owned("api", "7")],
    }
    return made


@pytest.mark.parametrize("runs", [CONFIG, IMAGE, f"minipc.local/parking@{DIGEST}", DIGEST])
def test_a_pod_leads_to_commit_digest_and_rollout(cluster, runs):
    cluster.objects["pods"] = [pod(runs=runs)]
    (found,) = trace.trace(cluster, NAME)
    assert (found.commit, found.digest, found.runs) == (COMMIT, DIGEST, DIGEST)
    assert found.as_stated
    assert (found.rollout, found.current, found.state) == ("7", True, "Running")


def test_another_image_under_the_same_name_is_noticed(cluster):
    cluster.objects["pods"] = [pod(runs=f"minipc.local/parking@{OTHER}")]
    (found,) = trace.trace(cluster, NAME)
    assert not found.as_stated
    assert found.runs == OTHER


def test_a_pod_that_is_being_replaced_says_so(cluster):
    cluster.objects["pods"] = [pod(owner="api-0")]
    (found,) = trace.trace(cluster, NAME)
    assert (found.rollout, found.current) == ("6", False)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, "ImagePullBackOff"),
        ({"conditions": [{"type": "Ready", "status": "False"}]}, "Running, not ready"),
        ({"phase": "Pending", "conditions": [], "containerStatuses": []}, "Pending"),
    ],
)
def test_a_pod_that_does_not_run_says_why(cluster, change, state):
    cluster.objects["pods"][0]["status"] |= change
    assert trace.trace(cluster, NAME)[0].state == state


def test_an_unknown_pod_is_not_among_them(cluster):
    assert trace.trace(cluster, NAME, "api-9") == []


LOGS = (
    '[pod/api-1-a/parking] {"request_id": "r-1", "message": "request"}\n'
    '[pod/api-1-b/parking] {"request_id": "r-2", "message": "request"}\n'
)


def test_an_address_leads_to_the_pod_that_answers(cluster):
    cluster.headers = "HTTP/2 200\r\nx-request-id: r-2\r\nserver: x\r\n"
    cluster.logs["app.kubernetes.io/component=api"] = LOGS
    assert trace.answering(cluster, "https://service.test/api/outing", SHOP) == ("api-1-b", "r-2")
    assert "https://service.test/api/outing" in cluster.commands[0]


def test_an_address_elsewhere_is_refused_and_a_quiet_one_explained(cluster, monkeypatch):
    monkeypatch.setattr(trace.time, "sleep", lambda _: None)
    with pytest.raises(ConfigError, match="is not a URL of"):
        trace.answering(cluster, "https://example.org/", SHOP)
    with pytest.raises(CouldNotVerifyError, match="no request id"):
        trace.answering(cluster, "/api/parking", SHOP)
    cluster.headers = "HTTP/2 200\r\nX-Request-ID: r-9\r\n"
    cluster.logs["app.kubernetes.io/component=api"] = LOGS
    with pytest.raises(CouldNotVerifyError, match="probes may not be logged"):
        trace.answering(cluster, "/api/livez", SHOP)


def test_what_is_printed_goes_all_the_way_back(cluster, tmp_path):
    remote = DeployRepository(tmp_path)
    released = remote.push(2, "Release cccccccccccc")
    cluster.application = application(released)
    desk = Desk(remote, cluster, tmp_path)
    assert show_trace(desk.context, [SHOP], "api-1-a", {COMMIT: "Faster screens"}.__getitem__) == 0
    for part in (f"version  {COMMIT}  Faster screens", DIGEST, "rollout 7 of api", released[:12], "someone"):
        assert part in desk.text, part
    cluster.objects["pods"] = [pod(runs=f"x@{OTHER}")]
    assert show_trace(desk.context, [SHOP], None, lambda _: "") == 1
    assert f"but it runs {OTHER}" in desk.text
    with pytest.raises(ConfigError, match="there is no pod api-9 of shop"):
        show_trace(desk.context, [SHOP], "api-9", lambda _: "")
    with pytest.raises(ConfigError, match="is not the address of one service"):
        show_trace(desk.context, [SHOP], "https://example.org/x", lambda _: "")


# --- drift -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drift(monkeypatch) -> ModuleType:
    """The program that runs on the machine."""
    return gitops_drift


def live(name: str, *, tracked: bool = True, writers: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    annotations = {"argocd.argoproj.io/tracking-id": "parking:x"} if tracked else {}
    applied = {"kind": "Deployment", "metadata": {"name": name, "annotations": annotations}}
    return {
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": NAME,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(applied)},
            "managedFields": [
                *({"manager": who, "time": when} for who, when in writers),
                {"manager": "some-controller", "time": "2026-11-21T23:00:00Z", "subresource": "status"},
            ],
        },
    }


def resource(name: str, **more: Any) -> dict[str, Any]:
    return {"group": "apps", "version": "v1", "kind": "Deployment", "namespace": NAME, "name": name, **more}


def answers(monkeypatch, drift, resources, objects, diff="", phase="Succeeded"):
    def kubectl(*argv):
        if argv[1:3] == ("applications.argoproj.io", "-n"):
            return json.dumps({"items": [{"metadata": {"name": name}} for name in ("argocd", "root", NAME)]})
        if argv[1] == "applications.argoproj.io":
            return json.dumps(
                {"status": {"resources": resources, "operationState": {"phase": phase}, "history": [{"id": 0}]}}
            )
        assert argv[1] in ("deployment.v1.apps", "service")
        if argv[2] not in objects:
            return ""
        found = json.loads(json.dumps(objects[argv[2]]))
        if "--show-managed-fields" not in argv:  # as kubectl does
            del found["metadata"]["managedFields"]
        return json.dumps(found)

    monkeypatch.setattr(drift, "kubectl", kubectl)
    monkeypatch.setattr(drift, "difference", lambda _: diff)


DIFF = """\
diff -u -N /tmp/LIVE-1/apps.v1.Deployment.shop.api /tmp/MERGED-2/apps.v1.Deployment.shop.api
-  replicas: 5
+  replicas: 2
"""


def test_an_object_of_the_core_group_is_found(monkeypatch, drift):
    core = {"version": "v1", "kind": "Service", "namespace": NAME, "name": "api"}
    answers(monkeypatch, drift, [core], {"api": live("api") | {"kind": "Service"}})
    assert drift.compare(NAME).missing == []


def test_before_the_first_sync_nothing_drifts(monkeypatch, drift):
    state = {"status": {"resources": [resource("api")]}}
    monkeypatch.setattr(drift, "kubectl", lambda *_: json.dumps(state))
    assert drift.compare(NAME) == drift.Drift([], [], "", 0)


def test_no_drift(monkeypatch, drift):
    answers(monkeypatch, drift, [resource("api"), resource("migrate", hook=True)], {"api": live("api")})
    assert drift.compare(NAME) == drift.Drift([], [], "", 1)


def test_an_edited_object_is_named_with_who_and_when(monkeypatch, drift):
    writers = (("argocd-controller", "2026-11-21T12:50:00Z"), ("kubectl-edit", "2026-11-21T12:40:00Z"))
    objects = {"api": live("api", writers=writers), "push": live("push")}
    answers(monkeypatch, drift, [resource("api"), resource("push")], objects, DIFF)
    found = drift.compare(NAME)
    assert found.changed == [drift.Change("Deployment api", "kubectl-edit", "2026-11-21T12:40:00Z")]
    assert found.diff == DIFF


def set_by_hand(fields: dict[str, Any], manager: str = "kubectl-patch", **more: str) -> dict[str, Any]:
    found = live("api")
    when = "2026-11-21T12:40:00Z"
    found["metadata"]["managedFields"].append({"manager": manager, "time": when, "fieldsV1": fields, **more})
    return found


SIDECAR = {"f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"spy"}': {".": {}, "f:image": {}}}}}}}
VARIABLE = {"f:containers": {'k:{"name":"api"}': {"f:env": {'k:{"name":"DEBUG"}': {".": {}, "f:value": {}}}}}}
RESTARTED = {"f:template": {"f:metadata": {"f:annotations": {"f:kubectl.kubernetes.io/restartedAt": {}}}}}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (SIDECAR, "spec.template.spec.containers[spy]"),
        ({"f:spec": {"f:template": {"f:spec": VARIABLE}}}, "spec.template.spec.containers[api].env[DEBUG]"),
        ({"f:metadata": {"f:labels": {"f:stage": {}}}}, "metadata.labels.stage"),
        ({"f:spec": {"f:sessionAffinity": {}}}, "spec.sessionAffinity"),
        ({"f:metadata": {"f:finalizers": {'v:"x/y"': {}}}}, "metadata.finalizers[x/y]"),
    ],
)
def test_a_field_that_git_never_named_is_drift(monkeypatch, drift, fields, path):
    answers(monkeypatch, drift, [resource("api")], {"api": set_by_hand(fields)})
    (change,) = drift.compare(NAME).changed
    assert change.added == [path]
    assert "by kubectl-patch at 2026-11-21T12:40:00Z" in str(change)
    assert f"{path} set by hand; a sync leaves it" in str(change)


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        # A restart and a stop by programs of minipc.
        ({"f:spec": RESTARTED}, {}),
        ({"f:spec": {"f:replicas": {}}}, {"manager": "kubectl", "subresource": "scale"}),
        ({"f:metadata": {"f:annotations": {"f:minipc.local/replicas": {}}}}, {}),
        (SIDECAR, {"manager": "argocd-controller"}),
        (SIDECAR, {"manager": "some-controller", "subresource": "status"}),
    ],
)
def test_what_programs_set_is_no_drift(monkeypatch, drift, fields, more):
    answers(monkeypatch, drift, [resource("api")], {"api": set_by_hand(fields, **more)})
    assert drift.compare(NAME).changed == []


def test_an_object_someone_applied_over_argocd_is_drift(monkeypatch, drift):
    answers(monkeypatch, drift, [resource("api")], {"api": live("api", tracked=False)})
    assert [each.name for each in drift.compare(NAME).changed] == ["Deployment api"]


def test_a_removed_object_is_drift(monkeypatch, drift):
    answers(monkeypatch, drift, [resource("api"), resource("push")], {"api": live("api")})
    assert drift.compare(NAME).missing == ["Deployment push"]


def test_the_metric_is_written_whole_and_readable(monkeypatch, drift, tmp_path, capsys):
    answers(monkeypatch, drift, [resource("api")], {})
    assert drift.main(["--metrics", str(tmp_path / "drift.prom")]) == 0
    text = (tmp_path / "drift.prom").read_text()
    assert '\nminipc_gitops_drift_objects{service="shop"} 1\n' in text
    assert "\nminipc_gitops_drift_checked_timestamp_seconds " in text
    assert (tmp_path / "drift.prom").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["drift.prom"]
    assert capsys.readouterr().out == "1\n"
    assert drift.main(["--application", NAME]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == ["Deployment api"]


def test_a_sync_under_way_is_no_drift(monkeypatch, drift, tmp_path, capsys):
    answers(monkeypatch, drift, [resource("api")], {}, phase="Running")
    for options in (["--metrics", str(tmp_path / "drift.prom")], ["--count"]):
        assert drift.main([*options]) == 0
        assert capsys.readouterr().out == "0\n"
    text = (tmp_path / "drift.prom").read_text()
    assert 'minipc_gitops_drift_objects{service="shop"} 0' in text
    (tmp_path / "drift.prom").write_text(text.replace('"} 0', '"} 3'))
    assert drift.main(["--metrics", str(tmp_path / "drift.prom")]) == 0
    assert 'minipc_gitops_drift_objects{service="shop"} 3' in (tmp_path / "drift.prom").read_text()


def test_drift_can_be_counted(monkeypatch, drift, capsys):
    answers(monkeypatch, drift, [resource("api"), resource("push")], {})
    assert drift.main(["--count"]) == 0
    assert capsys.readouterr().out == "2\n"


def test_what_can_not_be_told_is_no_metric(monkeypatch, drift, tmp_path, capsys):
    def kubectl(*argv):
        raise drift.FailedError("k3s kubectl ended with 1: connection refused")

    monkeypatch.setattr(drift, "kubectl", kubectl)
    assert drift.main(["--metrics", str(tmp_path / "drift.prom")]) == 1
    assert not (tmp_path / "drift.prom").exists()
    assert "connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [
        'error: the server doesn\'t have a resource type "applications"',
        'Error from server (NotFound): applications.argoproj.io "parking" not found',
    ],
)
def test_before_argocd_is_there_nothing_drifts(monkeypatch, drift, tmp_path, capsys, said):
    """Its timer begins with the machine, long before the first sync: that is no failed unit."""

    def kubectl(*argv):
        raise drift.FailedError(f"k3s kubectl ended with 1: {said}")

    monkeypatch.setattr(drift, "kubectl", kubectl)
    assert drift.main(["--metrics", str(tmp_path / "drift.prom")]) == 0
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == "0\n"
