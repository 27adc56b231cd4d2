"""The deploy repository to start from: builds, is valid, and keeps its promises."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from minipc import artifacts
from minipc.config.load import group_data
from minipc.paths import ROOT
from minipc.yaml_text import LOADER

KUBERNETES = "1.36"
ENVIRONMENTS = ["lab", "production"]


@cache
def rendered(path: str) -> list[dict[str, Any]]:
    """The objects of a kustomization of the deploy repository, as ArgoCD would build them."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("NOT EXERCISED: neither kustomize nor kubectl is installed (apt-get install kustomize)")
    done = subprocess.run([*command, ROOT / "gitops" / path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@pytest.fixture(params=ENVIRONMENTS)
def environment(request) -> str:
    return str(request.param)


@pytest.fixture
def workload(environment) -> list[dict[str, Any]]:
    return rendered(f"workload/overlays/{environment}")


@pytest.fixture
def root(environment) -> list[dict[str, Any]]:
    return rendered(f"root/{environment}")


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def templates(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each["spec"]["template"] for each in objects if "template" in each["spec"]}


def phase(each: dict[str, Any]) -> str:
    annotations = each["metadata"].get("annotations", {})
    return annotations.get("argocd.argoproj.io/hook") or annotations.get("argocd.argoproj.io/sync-wave", "0")


def test_every_object_is_valid_for_the_pinned_minor(workload):
    assert len(workload) >= 8
    for each in workload:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_a_wrong_field_would_be_noticed(workload):
    wrong = json.loads(json.dumps(workload[0])) | {"bogus": 1}
    with pytest.raises(kubernetes_validate.ValidationError, match="bogus"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_the_schemas_are_those_of_the_pinned_k3s():
    pinned = artifacts.default_store(lambda: pytest.fail("nothing is fetched")).catalogue.item("k3s", "amd64").version
    assert pinned.startswith(f"v{KUBERNETES}.")


@cache
def argocd_schemas() -> dict[str, Any]:
    """The schemas of ArgoCD's own kinds, by kind."""
    manifest = artifacts.resolve("argocd-manifest", "amd64", fetch=False)
    if manifest.path is None:
        pytest.skip(f"NOT EXERCISED: ArgoCD's own schemas: {manifest.why_missing}")
    schemas = {}
    for part in manifest.path.read_text().split("\n---\n"):
        kind = re.search(r"^    kind: (\w+)$", part, re.M)
        # Only these are parsed: the whole manifest takes seconds.
        if "kind: CustomResourceDefinition" in part and kind and kind[1] in ("Application", "AppProject"):
            definition = yaml.load(part, Loader=LOADER)
            schemas[kind[1]] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schemas


def test_applications_are_what_argocd_accepts(root):
    assert {each["kind"] for each in root} == set(argocd_schemas())
    for each in root:
        jsonschema.validate(each, argocd_schemas()[each["kind"]])


def test_phases_go_migrate_core_workers_smoke(workload):
    assert {each["metadata"]["name"]: phase(each) for each in workload if "template" in each["spec"]} == {
        "migrate": "PreSync",
        "api": "1",
        "ingest": "2",
        "forecast": "2",
        "push": "2",
        "smoke": "PostSync",
    }


def test_nothing_that_a_hook_needs_is_applied_after_it(workload):
    """A PreSync hook runs before Git's own objects exist: what it refers to must be the machine's."""
    names = {each["metadata"]["name"] for each in workload}
    pod = templates(workload)["migrate"]["spec"]
    volumes = {volume["secret"]["secretName"] for volume in pod["volumes"]}
    sources = {source["secretRef"]["name"] for source in pod["containers"][0].get("envFrom", [])}
    assert volumes | sources == {"workload"}
    assert "workload" not in names
    assert not pod.get("serviceAccountName")


def test_pods_are_restricted(workload):
    """Pod Security Standard `restricted`, and what it doesn't ask for: a read-only root, no token."""
    for name, template in templates(workload).items():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert all(set(volume) - {"name"} <= {"secret", "emptyDir", "configMap"} for volume in pod["volumes"]), name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


def test_pods_say_what_they_need(workload):
    for name, template in templates(workload).items():
        for container in template["spec"]["containers"]:
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name


def test_the_api_is_replaced_without_a_gap(workload):
    api = one(workload, "Deployment", "api")["spec"]
    assert api["replicas"] >= 2
    assert api["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert api["progressDeadlineSeconds"] == 30
    pod = api["template"]["spec"]
    (container,) = pod["containers"]
    stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    # The API finishes requests for at most 15 s after SIGTERM.
    assert pod["terminationGracePeriodSeconds"] > stop + 15
    # Whoever asks every two seconds has noticed long before the pod stops listening.
    probe = container["readinessProbe"]
    assert stop > probe["periodSeconds"] * 2
    assert container["startupProbe"]["httpGet"]["path"] == "/api/readyz"
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] > 30
    assert {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")} == {"/api/livez"}
    budget = one(workload, "PodDisruptionBudget", "api")["spec"]
    assert budget["minAvailable"] < api["replicas"]
    assert budget["selector"] == api["selector"]


def test_workers_never_run_twice(workload):
    for name in ("ingest", "forecast", "push"):
        worker = one(workload, "Deployment", name)["spec"]
        assert (worker["replicas"], worker["strategy"]["type"]) == (1, "Recreate")
        assert worker["template"]["spec"]["containers"][0]["args"] == ["worker", name]


def test_selectors_find_their_pods_and_no_others(workload):
    selectors = {
        each["metadata"]["name"]: each["spec"]["selector"]["matchLabels"]
        for each in workload
        if each["kind"] == "Deployment"
    }
    selectors["api service"] = one(workload, "Service", "api")["spec"]["selector"]
    for name, selector in selectors.items():
        found = [
            each for each, pod in templates(workload).items() if selector.items() <= pod["metadata"]["labels"].items()
        ]
        assert found == [name.split()[0]]
        # A selector can't be changed: nothing in it may differ from release to release.
        assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/component"}


def test_one_release_is_written_in_one_place(workload, environment):
    directory = ROOT / f"gitops/workload/overlays/{environment}/release"
    assert [path.name for path in directory.iterdir()] == ["kustomization.yaml"]
    release = yaml.safe_load((directory / "kustomization.yaml").read_text())
    image = release["images"][0]
    for name, template in templates(workload).items():
        assert template["spec"]["containers"][0]["image"] == f"{image['newName']}:{image['newTag']}", name
        assert release["commonAnnotations"].items() <= template["metadata"]["annotations"].items(), name
    assert set(release["commonAnnotations"]) == {"org.opencontainers.image.revision", "minipc.local/image-digest"}


def test_settings_are_those_of_the_machine(workload, environment):
    values = group_data(environment)
    (port,) = one(workload, "Service", "api")["spec"]["ports"]
    assert port["nodePort"] == values["workload_port"]
    assert values["edge_upstream"] is None, "the door follows workload_port"
    for name, worker_port in values["workload_metrics_ports"].items():
        (container,) = templates(workload)[name]["spec"]["containers"]
        assert container["ports"][0]["containerPort"] == worker_port
    for template in templates(workload).values():
        names = [each["name"] for each in template["spec"]["containers"][0]["env"]]
        assert len(names) == len(set(names))


def test_no_secret_is_in_git_and_argocd_may_not_put_one(root, workload):
    assert not [each for each in [*root, *workload] if each["kind"] == "Secret"]
    project = one(root, "AppProject", "workload")["spec"]
    assert {"group": "", "kind": "Secret"} in project["namespaceResourceBlacklist"]
    assert project["clusterResourceWhitelist"] == []
    assert [each["namespace"] for each in project["destinations"]] == ["workload"]


def test_a_release_is_synced_by_a_person(root, environment):
    application = one(root, "Application", "workload")["spec"]
    assert "automated" not in application["syncPolicy"]
    assert application["source"]["path"] == f"workload/overlays/{environment}"
    assert application["source"]["repoURL"] in one(root, "AppProject", "workload")["spec"]["sourceRepos"]
    assert (ROOT / "gitops" / application["source"]["path"]).is_dir()
