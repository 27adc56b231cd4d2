"""The CI files to copy: what they promise, and their checks. Tools in Go: tests/lab/test_ci_tools.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from minipc.core.paths import ROOT

CI = ROOT / "gitops/ci"
WORKFLOWS = sorted((CI / "workflows").glob("*.yml"))
DEFAULT_BRANCH = "github.event_name == 'push' && github.ref_name == github.event.repository.default_branch"


def workflow(name: str = "ci.yml") -> dict[str, Any]:
    # BaseLoader: `on` stays a word, and nothing becomes a number.
    return yaml.load((CI / "workflows" / name).read_text(), Loader=yaml.BaseLoader)


def steps(job: dict[str, Any]) -> list[dict[str, Any]]:
    return list(job["steps"])


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
        'OASDIFF\\" breaking --fail-on ERR',
        "kubernetes-validate --strict",
        "docker build",
        "anchore/sbom-action",
        "anchore/scan-action",
        "cosign sign",
        "cosign attest",
        "edit set image",
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


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [({"ports": [{"port": 80}]}, ""), ({"prots": []}, "prots"), ({"ports": [{"port": "http"}]}, "http")],
)
def test_the_manifest_check_refuses_what_kubernetes_would(tmp_path, spec, complaint):
    """As the workflows call it; the manifests of the deploy repository are in test_gitops.py."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": spec}
    (tmp_path / "rendered.yaml").write_text(json.dumps(service))
    (minor,) = {workflow(path.name)["env"]["KUBERNETES"] for path in WORKFLOWS}
    program = Path(sys.executable).with_name("kubernetes-validate")
    command = [program, "--strict", "--kubernetes-version", minor, tmp_path / "rendered.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == bool(complaint)
    assert complaint in done.stdout + done.stderr
