"""The deploy repository that is rendered from service files: builds, is valid, and keeps its promises."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from minipc import artifacts
from minipc.cli import service_render
from minipc.core.yaml_text import LOADER
from minipc.gitops import contract, deploy_files, policy
from minipc.gitops.deploy_files import Version
from minipc.gitops.tree import Tree
from tests.unit.gitops_cluster import SHOP
from tests.unit.service_files import BOOKINGS, TINY, service, settings

KUBERNETES = "1.36"
ENVIRONMENT = "production"
ADDRESS = "ssh://git@example.org/deploy.git"
DIGEST = "sha256:" + "e" * 64
BOOKED, SMALL = service(BOOKINGS), service(TINY)
SERVICES = (BOOKED, SHOP, SMALL)
VERSIONS = {
    "bookings": Version("ghcr.io/you/bookings", "", DIGEST, "v2.2.9"),
    "shop": Version("minipc.local/shop", "abc", DIGEST, "abc"),
    "tiny": Version("registry.example/tiny", "1", DIGEST, "1"),
}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return deploy_files.whole(SERVICES, ENVIRONMENT, ADDRESS, "main", VERSIONS, {"argocd/install.yaml": b"x: 1\n"})


@pytest.fixture(scope="module")
def built(files, tmp_path_factory):
    """Return a function that builds a folder of the deploy repository as ArgoCD would."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("NOT EXERCISED: neither kustomize nor kubectl is installed (apt-get install kustomize)")
    root = tmp_path_factory.mktemp("deploy")
    write(root, files)

    @cache
    def build(path: str) -> list[dict[str, Any]]:
        done = subprocess.run([*command, root / path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "deprecated" not in done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return build


def write(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


@pytest.fixture(params=[each.name for each in SERVICES])
def name(request) -> str:
    return str(request.param)


@pytest.fixture
def objects(built, name) -> list[dict[str, Any]]:
    return built(f"{name}/{ENVIRONMENT}")


def templates(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for each in objects:
        spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
        if "template" in spec:
            found[each["metadata"]["name"]] = spec["template"]
    return found


def test_every_object_is_valid_for_the_pinned_minor(objects):
    assert objects
    for each in objects:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_a_wrong_field_would_be_noticed(objects):
    wrong = json.loads(json.dumps(objects[0])) | {"bogus": 1}
    with pytest.raises(kubernetes_validate.ValidationError, match="bogus"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_the_schemas_are_those_of_the_pinned_k3s():
    pinned = artifacts.default_store().catalogue.find("k3s", "amd64").version
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


def test_applications_are_what_argocd_accepts(built):
    root = built(f"root/{ENVIRONMENT}")
    assert {each["kind"] for each in root} == set(argocd_schemas())
    for each in root:
        jsonschema.validate(each, argocd_schemas()[each["kind"]])


def test_what_is_rendered_is_allowed_and_keeps_the_contract(built):
    assert list(policy.violations("root", built(f"root/{ENVIRONMENT}"), ADDRESS)) == []
    for each in SERVICES:
        found = built(f"{each.name}/{ENVIRONMENT}")
        assert list(policy.violations(each.name, found, ADDRESS)) == []
        assert list(contract.violations(each, found)) == []


def test_the_repository_is_closed(files):
    assert Tree(dict.fromkeys(files, "100644"), files).problems() == []


def test_each_service_has_a_project_and_an_application_that_a_person_syncs(built):
    root = built(f"root/{ENVIRONMENT}")
    found = {each["metadata"]["name"]: each["spec"] for each in root if each["kind"] == "Application"}
    assert set(found) == {each.name for each in SERVICES}
    for name, spec in found.items():
        assert "automated" not in spec["syncPolicy"]
        assert spec["source"]["path"] == f"{name}/{ENVIRONMENT}"


def test_one_release_is_written_in_one_place(objects, name):
    version = VERSIONS[name]
    wanted = f"{version.repository}:{version.tag}" if version.tag else f"{version.repository}@{version.digest}"
    for template in templates(objects).values():
        assert template["spec"]["containers"][0]["image"] == wanted
        annotations = template["metadata"]["annotations"]
        assert annotations["org.opencontainers.image.revision"] == version.name
        assert annotations["minipc.local/image-digest"] == DIGEST


def test_no_secret_is_in_git(built):
    for each in SERVICES:
        assert not [found for found in built(f"{each.name}/{ENVIRONMENT}") if found["kind"] == "Secret"]


def test_a_service_that_was_never_released_is_not_synced(files):
    version = yaml.safe_load(deploy_files.release(BOOKED, None))
    assert version["images"] == [{"name": "ghcr.io/you/bookings", "newTag": "not-released"}]


def test_without_services_there_is_a_folder_for_argocd():
    found = deploy_files.whole((), ENVIRONMENT, ADDRESS, "main", {}, {})
    assert list(found) == [f"root/{ENVIRONMENT}/README.md"]


def test_own_manifests_are_not_written():
    own = BOOKED.model_copy(update={"manifests": "own"})
    assert deploy_files.of_service(own, ENVIRONMENT) == {}


# --- minipc service render -------------------------------------------------------------------------------------------


@pytest.fixture
def render(monkeypatch):
    def run(*argv: str, services=SERVICES) -> str:
        found = settings(*services)
        values = found.model_dump()
        values["argocd"] |= {"repository": ADDRESS, "known_hosts": ["example.org ssh-ed25519 AAAA"]}
        target = type("Target", (), {"settings": type(found).model_validate(values), "alias": "mini"})()
        monkeypatch.setattr(service_render, "the_target", lambda *_: target)
        monkeypatch.setattr(service_render, "offsite_target", lambda *_: None)
        done = CliRunner().invoke(service_render.render, [*argv], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_it_writes_into_a_clone_what_differs_and_only_that(render, tmp_path):
    first = render("--into", str(tmp_path))
    assert "written  bookings/production/web.yaml" in first
    assert "written  root/production/tiny.application.yaml" in first
    assert "nothing to do" in render("--into", str(tmp_path))


def test_the_version_that_runs_is_not_touched(render, tmp_path):
    render("--into", str(tmp_path))
    path = tmp_path / "bookings/production/release/kustomization.yaml"
    path.write_bytes(deploy_files.release(BOOKED, VERSIONS["bookings"]))
    (tmp_path / "bookings/production/web.yaml").unlink()
    assert render("--into", str(tmp_path)) == "written  bookings/production/web.yaml\n"
    assert b"v2.2.9" in path.read_bytes()


def test_what_is_gone_from_the_service_files_is_removed(render, tmp_path):
    render("--into", str(tmp_path))
    processes = {name: each for name, each in BOOKED.processes.items() if name != "worker"}
    said = render("--into", str(tmp_path), services=(BOOKED.model_copy(update={"processes": processes}), SMALL))
    assert "removed  bookings/production/worker.yaml" in said
    assert "removed  root/production/shop.application.yaml" in said
    assert not [path for path in (tmp_path / "shop").rglob("*") if path.is_file()], "its manifests go, too"
    assert "written  root/production/kustomization.yaml" in said


def test_without_a_folder_it_prints_the_manifests(render):
    text = render("tiny")
    assert [each["kind"] for each in yaml.safe_load_all(text)] == ["Kustomization", "Deployment"]
