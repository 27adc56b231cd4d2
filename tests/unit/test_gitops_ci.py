"""The CI files to copy: what they promise, and their checks, run for real."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from minipc.paths import ROOT
from minipc.workload import image

CI = ROOT / "gitops/ci"
WORKFLOWS = sorted((CI / "workflows").glob("*.yml"))
DEFAULT_BRANCH = "github.event_name == 'push' && github.ref_name == github.event.repository.default_branch"


def workflow(name: str = "ci.yml") -> dict[str, Any]:
    # BaseLoader: `on` stays a word, and nothing becomes a number.
    return yaml.load((CI / "workflows" / name).read_text(), Loader=yaml.BaseLoader)


def steps(job: dict[str, Any]) -> list[dict[str, Any]]:
    return list(job["steps"])


def check(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CI / "checks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CI / "checks" / f"{name}.py", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# --- workflows -------------------------------------------------------------------------------------------------------


def needed(jobs: dict[str, Any], name: str) -> set[str]:
    """The jobs that must have passed before this one, transitively."""
    direct = set(jobs[name].get("needs", []))
    return direct.union(*(needed(jobs, each) for each in direct))


def test_every_branch_is_verified_and_only_the_default_branch_changes_anything():
    ci = workflow()
    assert set(ci["on"]) == {"push", "pull_request"}
    assert not ci["on"]["push"]
    verify = {name for name, job in ci["jobs"].items() if "if" not in job}
    assert verify == {"lint", "test", "locales", "image"}
    for name, job in ci["jobs"].items():
        text = json.dumps(job)
        may_write = "write" in job.get("permissions", {}).values()
        if may_write or "secrets." in text or "docker login" in text or "environment" in job or "git push" in text:
            assert job["if"] == DEFAULT_BRANCH, name
            assert verify <= needed(ci["jobs"], name), name
        else:
            assert name in verify


def test_the_token_may_only_read_unless_a_job_says_otherwise():
    for path in WORKFLOWS:
        assert workflow(path.name)["permissions"] == {"contents": "read"}
    (writer,) = [job for job in workflow()["jobs"].values() if "permissions" in job]
    assert writer["permissions"] == {"contents": "read", "packages": "write", "id-token": "write"}


def test_actions_are_pinned_by_commit_and_every_job_ends():
    for path in WORKFLOWS:
        for name, job in workflow(path.name)["jobs"].items():
            assert "timeout-minutes" in job, name
            for step in steps(job):
                if "uses" in step:
                    assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert re.search(r"# v\d+\.\d+\.\d+$", line), line


def test_text_from_outside_never_becomes_a_command():
    """A branch or a message may be called anything: it reaches a script only through an environment variable."""
    trusted = {"github.sha", "github.event.repository.name"}
    for path in WORKFLOWS:
        for job in workflow(path.name)["jobs"].values():
            for step in steps(job):
                found = set(re.findall(r"\$\{\{\s*([\w.-]+)", step.get("run", "")))
                assert found <= trusted, step["run"]


def test_scripts_are_valid_shell():
    for path in WORKFLOWS:
        for job in workflow(path.name)["jobs"].values():
            for step in steps(job):
                script = re.sub(r"\$\{\{.*?\}\}", "x", step.get("run", "true"))
                done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10)
                assert done.returncode == 0, done.stderr


def test_the_stages_are_there():
    jobs = workflow()["jobs"]
    text = json.dumps(jobs)
    for stage in (
        "ruff check",
        "pytest",
        "check_locales.py",
        "check_api.py",
        "check_manifests.py",
        "docker build",
        "anchore/sbom-action",
        "anchore/scan-action",
        "cosign sign",
        "cosign attest",
        "set_release.py",
    ):
        assert stage in text, stage
    assert set(jobs["test"]["services"]) == {"postgres", "redis"}
    # An image is signed by what it is, not by a name that someone can move.
    assert 'cosign sign --yes \\"$IMAGE@$DIGEST\\"' in text
    # CI commits; a person syncs.
    assert not re.search(r"argocd|kubectl (apply|patch)|minipc release", text)


def test_every_file_it_calls_is_among_those_to_copy():
    text = "".join(path.read_text() for path in WORKFLOWS)
    called = set(re.findall(r"ci/(?:checks/)?(\w+\.py)", text))
    assert called == {path.name for path in (CI / "checks").glob("*.py")}


def test_tools_are_those_that_this_repository_is_tested_with():
    text = "".join(path.read_text() for path in WORKFLOWS)
    lock = (ROOT / "requirements.lock").read_text()
    for name, version in re.findall(r"(ruff|kubernetes-validate)==([\d.]+)", text):
        assert f"\n{name}=={version} " in f"\n{lock}"
    (minor,) = set(re.findall(r'KUBERNETES: "(.+)"', text))
    pinned = tomllib.loads((ROOT / "artifacts.toml").read_text())["artifacts"]["k3s"]["version"]
    assert pinned.startswith(f"v{minor}.")


def test_the_container_file_makes_what_minipc_makes():
    text = (CI / "Containerfile").read_text()
    code = image.Source("t" * 40, "c" * 40, 0, ())
    config = image._config(code, "")
    assert f"USER {config['User']}\n" in text
    assert f"WORKDIR {config['WorkingDir']}\n" in text
    assert f"ENTRYPOINT {json.dumps(config['Entrypoint'])}\n" in text
    assert f"CMD {json.dumps(config['Cmd'])}\n" in text
    assert f"CMD {json.dumps(config['Healthcheck']['Test'][1:])}\n" in text
    for setting in config["Env"]:
        if not setting.startswith(("PATH=", "VERSION=")):
            assert f" {setting}" in text, setting


# --- checks ----------------------------------------------------------------------------------------------------------

ENGLISH = {"parking": {"title": "Parking", "free": "{count} free of {all}"}}


@pytest.mark.parametrize(
    ("german", "complaint"),
    [
        ({"parking": {"title": "Parken", "free": "{count} von {all} frei"}}, ""),
        ({"parking": {"title": "Parken"}}, "de: parking.free is missing"),
        ({"parking": ENGLISH["parking"] | {"more": "x"}}, "de: parking.more is not in en"),
        ({"parking": {"title": " ", "free": "{count} {all}"}}, "de: parking.title is empty"),
        ({"parking": {"title": "x", "free": "{count} frei"}}, "de: parking.free has the placeholders ['{count}']"),
    ],
)
def test_a_language_says_everything_that_english_does(tmp_path, german, complaint):
    for name, texts in (("en", ENGLISH), ("de", german)):
        (tmp_path / f"{name}.json").write_text(json.dumps(texts))
    done = run("check_locales", tmp_path)
    assert done.returncode == (1 if complaint else 0)
    assert complaint in done.stderr


def test_without_the_reference_nothing_can_be_said(tmp_path):
    assert run("check_locales", tmp_path).returncode == 2


def api() -> dict[str, Any]:
    return json.loads((CI / "openapi.json").read_text())


def test_the_committed_shape_does_not_break_itself(tmp_path):
    (tmp_path / "new.json").write_text(json.dumps(api()))
    assert run("check_api", CI / "openapi.json", tmp_path / "new.json").returncode == 0


def test_it_is_the_shape_of_the_reference_workload():
    paths = api()["paths"]
    routes = re.findall(r'@router\.(\w+)\("([^"]+)"', (ROOT / "workload/minipc_workload/api.py").read_text())
    assert {(method, path) for path, each in paths.items() for method in each} == set(routes)


def changed(change) -> list[str]:
    new = copy.deepcopy(api())
    change(new)
    return list(check("check_api").breaks(api(), new))


def settings(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]["NotificationSettings"]
    return found


BREAKING = {
    "GET /api/parking is gone": lambda new: new["paths"].pop("/api/parking"),
    "PUT /api/settings/{user} is gone": lambda new: new["paths"]["/api/settings/{user}"].pop("put"),
    "min_free_spaces is newly required": lambda new: settings(new).update(required=["min_free_spaces"]),
    "min_free_spaces is refused now": lambda new: settings(new)["properties"].pop("min_free_spaces"),
    "maximum was 10000.0, is 5": lambda new: settings(new)["properties"]["min_free_spaces"].update(maximum=5),
    "min_free_spaces was integer, is string": lambda new: settings(new)["properties"].update(
        min_free_spaces={"type": "string"}
    ),
    "the answer 201 is gone": lambda new: new["paths"]["/api/events"]["post"]["responses"].pop("201"),
    "the query parameter page is newly required": lambda new: new["paths"]["/api/parking"]["get"].update(
        parameters=[{"in": "query", "name": "page", "required": True, "schema": {"type": "integer"}}]
    ),
    "must match ^x$": lambda new: new["components"]["schemas"]["Event"]["properties"]["kind"].update(pattern="^x$"),
}


@pytest.mark.parametrize("complaint", BREAKING)
def test_a_breaking_change_fails(complaint):
    found = changed(BREAKING[complaint])
    assert [each for each in found if complaint in each], found


HARMLESS = {
    "a path": lambda new: new["paths"].update({"/api/new": {"get": {"responses": {"200": {}}}}}),
    "an optional field": lambda new: settings(new)["properties"].update(note={"type": "string"}),
    "an optional parameter": lambda new: new["paths"]["/api/parking"]["get"].update(
        parameters=[{"in": "query", "name": "page", "schema": {"type": "integer"}}]
    ),
    "a wider range": lambda new: settings(new)["properties"]["min_free_spaces"].update(maximum=20_000),
    "an answer": lambda new: new["paths"]["/api/events"]["post"]["responses"].update({"202": {}}),
    "a description": lambda new: settings(new).update(description="better words"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_addition_passes(name):
    assert changed(HARMLESS[name]) == []


def answer(fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": required}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Row"}}}
    return {
        "components": {"schemas": {"Row": schema}},
        "paths": {"/x": {"get": {"responses": {"200": {"content": content}}}}},
    }


@pytest.mark.parametrize(
    ("fields", "required", "complaint"),
    [
        ({"id": {"type": "integer"}, "more": {}}, ["id"], None),
        ({}, [], "id is gone"),
        ({"id": {"type": "integer"}}, [], "id may be missing now"),
        ({"id": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, ["id"], "id was integer, is integer or null"),
        ({"id": {"type": "string"}}, ["id"], "id was integer, is string"),
    ],
)
def test_answers_keep_their_promises(fields, required, complaint):
    old = answer({"id": {"type": "integer"}}, ["id"])
    found = list(check("check_api").breaks(old, answer(fields, required)))
    assert (complaint is None and not found) or (len(found) == 1 and complaint in found[0]), found


def test_a_type_that_contains_itself_ends():
    tree = answer({"child": {"$ref": "#/components/schemas/Row"}}, [])
    assert list(check("check_api").breaks(tree, tree)) == []


def test_wrong_usage_is_not_a_pass(tmp_path):
    assert run("check_api").returncode == 2
    assert run("check_api", CI / "openapi.json", tmp_path / "none.json").returncode == 2


def test_the_manifests_of_the_deploy_repository_pass_and_wrong_ones_fail(tmp_path):
    if not (shutil.which("kustomize") or shutil.which("kubectl")):
        pytest.skip("NOT EXERCISED: neither kustomize nor kubectl is installed (apt-get install kustomize)")
    (tmp_path / "kustomization.yaml").write_text("resources: [service.yaml]\n")
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    (tmp_path / "service.yaml").write_text(json.dumps(service))
    production, lab = ROOT / "gitops/workload/overlays/production", ROOT / "gitops/root/lab"
    done = run("check_manifests", "--kubernetes", "1.36", production, tmp_path, lab, tmp_path / "none")
    assert done.returncode == 1
    assert "production: 8 objects" in done.stdout
    assert "AppProject workload: not a kind of Kubernetes" in done.stdout
    (service_line, missing) = done.stderr.strip().splitlines()
    assert "Service x" in service_line
    assert "prots" in service_line
    assert "none" in missing
    assert run("check_manifests", "--kubernetes", "1.36", production).returncode == 0


RELEASE = {"--image": "ghcr.io/me/workload", "--digest": "sha256:" + "d" * 64, "--commit": "c" * 40}


def test_the_release_file_is_the_one_that_the_overlays_have(tmp_path: Path):
    argv = [word for pair in RELEASE.items() for word in pair]
    by_digest = yaml.safe_load(run("set_release", *argv).stdout)
    assert by_digest["images"] == [{"name": "workload", "newName": RELEASE["--image"], "digest": RELEASE["--digest"]}]
    zeros = {"--image": "minipc.local/workload", "--digest": "sha256:" + "0" * 64, "--commit": "0" * 40}
    argv = [word for pair in (zeros | {"--tag": "0" * 40}).items() for word in pair]
    for environment in ("lab", "production"):
        path = ROOT / f"gitops/workload/overlays/{environment}/release/kustomization.yaml"
        assert run("set_release", *argv).stdout == path.read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [("--digest", "latest"), ("--commit", "main"), ("--image", "x\n  y: z"), ("--image", "Ghcr.io/x")],
)
def test_a_release_of_something_else_is_refused(name, value):
    argv = [word for pair in (RELEASE | {name: value}).items() for word in pair]
    done = run("set_release", *argv)
    assert done.returncode == 2
    assert done.stdout == ""
