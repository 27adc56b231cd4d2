"""From a pod back to a commit, and the program that finds changes made by hand."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType
from typing import Any

import pytest

from minipc.errors import ConfigError, CouldNotVerifyError
from minipc.gitops import trace
from minipc.paths import ROOT
from playbooks import release
from tests.unit.gitops_cluster import DeployRepository, FakeCluster, application
from tests.unit.test_gitops_release import Desk

COMMIT, DIGEST, CONFIG, OTHER = "c" * 40, "sha256:" + "d" * 64, "sha256:" + "e" * 64, "sha256:" + "f" * 64
IMAGE = f"minipc.local/workload:{COMMIT}"
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
        "spec": {"containers": [{"name": "workload", "image": IMAGE}]},
        "status": {
            "phase": "Running",
            "startTime": "2026-11-21T12:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"imageID": runs, "state": {"running": {}}}],
        },
    }


def owned(name: str, number: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "annotations": {trace.ROLLOUT: number}}}


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


@pytest.mark.parametrize("runs", [CONFIG, IMAGE, f"minipc.local/workload@{DIGEST}", DIGEST])
def test_a_pod_leads_to_commit_digest_and_rollout(cluster, runs):
    cluster.objects["pods"] = [pod(runs=runs)]
    (found,) = trace.trace(cluster)
    assert (found.commit, found.digest, found.runs) == (COMMIT, DIGEST, DIGEST)
    assert found.as_stated
    assert (found.rollout, found.current, found.state) == ("7", True, "Running")


def test_another_image_under_the_same_name_is_noticed(cluster):
    cluster.objects["pods"] = [pod(runs=f"minipc.local/workload@{OTHER}")]
    (found,) = trace.trace(cluster)
    assert not found.as_stated
    assert found.runs == OTHER


def test_a_pod_that_is_being_replaced_says_so(cluster):
    cluster.objects["pods"] = [pod(owner="api-0")]
    (found,) = trace.trace(cluster)
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
    assert trace.trace(cluster)[0].state == state


def test_an_unknown_pod_is_named(cluster):
    with pytest.raises(ConfigError, match="no pod api-9"):
        trace.trace(cluster, "api-9")


LOGS = (
    '[pod/api-1-a/workload] {"request_id": "r-1", "message": "request"}\n'
    '[pod/api-1-b/workload] {"request_id": "r-2", "message": "request"}\n'
)


def test_an_address_leads_to_the_pod_that_answers(cluster):
    cluster.headers = "HTTP/2 200\r\nx-request-id: r-2\r\nserver: x\r\n"
    cluster.logs["app.kubernetes.io/component=api"] = LOGS
    assert trace.answering(cluster, "https://service.test/api/outing", "service.test") == ("api-1-b", "r-2")
    assert "https://service.test/api/outing" in cluster.commands[0]


def test_an_address_elsewhere_is_refused_and_a_quiet_one_explained(cluster, monkeypatch):
    monkeypatch.setattr(trace.time, "sleep", lambda _: None)
    with pytest.raises(ConfigError, match="is not at"):
        trace.answering(cluster, "https://example.org/", "service.test")
    with pytest.raises(CouldNotVerifyError, match="no id"):
        trace.answering(cluster, "/api/parking", "service.test")
    cluster.headers = "HTTP/2 200\r\nX-Request-ID: r-9\r\n"
    cluster.logs["app.kubernetes.io/component=api"] = LOGS
    with pytest.raises(CouldNotVerifyError, match="probes are not logged"):
        trace.answering(cluster, "/api/livez", "service.test")


def test_what_is_printed_goes_all_the_way_back(cluster, tmp_path):
    remote = DeployRepository(tmp_path)
    released = remote.push(2, "Release cccccccccccc")
    cluster.application = application(released)
    desk = Desk(remote, cluster, tmp_path)
    assert release.show_trace(desk.service, "api-1-a", "service.test", {COMMIT: "Faster screens"}.__getitem__) == 0
    for part in (f"commit   {COMMIT[:12]}  Faster screens", DIGEST, "rollout 7 of api", released[:12], "someone"):
        assert part in desk.text, part
    cluster.objects["pods"] = [pod(runs=f"x@{OTHER}")]
    assert release.show_trace(desk.service, None, "service.test", lambda _: "") == 1
    assert f"but it runs {OTHER}" in desk.text


# --- drift -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drift(monkeypatch) -> ModuleType:
    """The program that runs on the machine."""
    spec = importlib.util.spec_from_file_location("drift", ROOT / "templates/workload/drift.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def live(name: str, *, tracked: bool = True, writers: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    annotations = {"argocd.argoproj.io/tracking-id": "workload:x"} if tracked else {}
    applied = {"kind": "Deployment", "metadata": {"name": name, "annotations": annotations}}
    return {
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": "workload",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(applied)},
            "managedFields": [
                *({"manager": who, "time": when} for who, when in writers),
                {"manager": "some-controller", "time": "2026-11-21T23:00:00Z", "subresource": "status"},
            ],
        },
    }


def resource(name: str, **more: Any) -> dict[str, Any]:
    return {"group": "apps", "version": "v1", "kind": "Deployment", "namespace": "workload", "name": name, **more}


def answers(monkeypatch, drift, resources, objects, diff="", phase="Succeeded"):
    def kubectl(*argv):
        if argv[1] == "applications.argoproj.io":
            return json.dumps({"status": {"resources": resources, "operationState": {"phase": phase}}})
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
diff -u -N /tmp/LIVE-1/apps.v1.Deployment.workload.api /tmp/MERGED-2/apps.v1.Deployment.workload.api
-  replicas: 5
+  replicas: 2
"""


def test_an_object_of_the_core_group_is_found(monkeypatch, drift):
    core = {"version": "v1", "kind": "Service", "namespace": "workload", "name": "api"}
    answers(monkeypatch, drift, [core], {"api": live("api") | {"kind": "Service"}})
    assert drift.compare("workload")["missing"] == []


def test_no_drift(monkeypatch, drift):
    answers(monkeypatch, drift, [resource("api"), resource("migrate", hook=True)], {"api": live("api")})
    assert drift.compare("workload") == {"changed": [], "missing": [], "diff": "", "checked": 1}


def test_an_edited_object_is_named_with_who_and_when(monkeypatch, drift):
    writers = (("argocd-controller", "2026-11-21T12:50:00Z"), ("kubectl-edit", "2026-11-21T12:40:00Z"))
    objects = {"api": live("api", writers=writers), "push": live("push")}
    answers(monkeypatch, drift, [resource("api"), resource("push")], objects, DIFF)
    found = drift.compare("workload")
    assert found["changed"] == [{"name": "Deployment api", "by": "kubectl-edit", "at": "2026-11-21T12:40:00Z"}]
    assert found["diff"] == DIFF


def test_an_object_someone_applied_over_argocd_is_drift(monkeypatch, drift):
    answers(monkeypatch, drift, [resource("api")], {"api": live("api", tracked=False)})
    assert [each["name"] for each in drift.compare("workload")["changed"]] == ["Deployment api"]


def test_a_removed_object_is_drift(monkeypatch, drift):
    answers(monkeypatch, drift, [resource("api"), resource("push")], {"api": live("api")})
    assert drift.compare("workload")["missing"] == ["Deployment push"]


def test_the_metric_is_written_whole_and_readable(monkeypatch, drift, tmp_path, capsys):
    answers(monkeypatch, drift, [resource("api")], {})
    monkeypatch.setattr(drift.sys, "argv", ["drift", "--metrics", str(tmp_path / "drift.prom")])
    assert drift.main() == 0
    text = (tmp_path / "drift.prom").read_text()
    assert "\nminipc_gitops_drift_objects 1\n" in text
    assert "\nminipc_gitops_drift_checked_timestamp_seconds " in text
    assert (tmp_path / "drift.prom").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["drift.prom"]
    assert json.loads(capsys.readouterr().out)["missing"] == ["Deployment api"]


def test_a_sync_under_way_is_no_drift(monkeypatch, drift, tmp_path, capsys):
    answers(monkeypatch, drift, [resource("api")], {}, phase="Running")
    for options in (["--metrics", str(tmp_path / "drift.prom")], ["--count"]):
        monkeypatch.setattr(drift.sys, "argv", ["drift", *options])
        assert drift.main() == 0
        assert capsys.readouterr().out == "0\n"
    assert not list(tmp_path.iterdir())


def test_drift_can_be_counted(monkeypatch, drift, capsys):
    answers(monkeypatch, drift, [resource("api"), resource("push")], {})
    monkeypatch.setattr(drift.sys, "argv", ["drift", "--count"])
    assert drift.main() == 0
    assert capsys.readouterr().out == "2\n"


def test_what_can_not_be_told_is_no_metric(monkeypatch, drift, tmp_path, capsys):
    def kubectl(*argv):
        raise drift.subprocess.CalledProcessError(1, "kubectl", stderr="connection refused")

    monkeypatch.setattr(drift, "kubectl", kubectl)
    monkeypatch.setattr(drift.sys, "argv", ["drift", "--metrics", str(tmp_path / "drift.prom")])
    assert drift.main() == 1
    assert not (tmp_path / "drift.prom").exists()
    assert "connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [
        'error: the server doesn\'t have a resource type "applications"',
        'Error from server (NotFound): applications.argoproj.io "workload" not found',
    ],
)
def test_before_argocd_is_there_nothing_drifts(monkeypatch, drift, tmp_path, capsys, said):
    """Its timer begins with the machine, long before the first sync: that is no failed unit."""

    def kubectl(*argv):
        raise drift.subprocess.CalledProcessError(1, "kubectl", stderr=said)

    monkeypatch.setattr(drift, "kubectl", kubectl)
    monkeypatch.setattr(drift.sys, "argv", ["drift", "--metrics", str(tmp_path / "drift.prom")])
    assert drift.main() == 0
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == "0\n"
