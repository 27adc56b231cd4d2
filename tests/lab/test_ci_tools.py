"""The tools in Go that the CI files call, run as they call them: oasdiff and kustomize, at the versions they pin."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from minipc.config.service import Service
from minipc.core.paths import ROOT, cache_dir
from minipc.gitops import deploy_files

CI = ROOT / "gitops/ci"
# The shape of an API, as clients rely on it.
OK: dict[str, Any] = {"description": "fine"}
BODY = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Settings"}}}, "required": True}
SHAPE: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "x", "version": "1"},
    "paths": {
        "/lots": {"get": {"responses": {"200": OK}}},
        "/settings": {"get": {"responses": {"200": OK}}, "put": {"requestBody": BODY, "responses": {"200": OK}}},
        "/events": {"post": {"responses": {"201": OK, "400": OK}}},
    },
    "components": {
        "schemas": {
            "Settings": {
                "type": "object",
                "properties": {"alerts": {"type": "boolean"}, "min_free": {"type": "integer", "maximum": 10000}},
            }
        }
    },
}
pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


def tool(variable: str) -> Path:
    """Return the program that the workflow names, built once by `go install` into the cache."""
    module = yaml.safe_load((CI / "workflows/ci.yml").read_text())["env"][variable]
    directory = cache_dir("go-tools") / module.replace("/", "_")
    if not directory.exists():
        if not shutil.which("go"):
            pytest.skip("NOT EXERCISED: Go is not installed (apt-get install golang-go)")
        scratch = directory.with_name(f".{directory.name}.{os.getpid()}")
        environment = os.environ | {"GOBIN": str(scratch)}
        subprocess.run(["go", "install", module], env=environment, check=True, timeout=600, cwd="/")
        scratch.rename(directory)
    (program,) = directory.iterdir()
    return program


@pytest.fixture(scope="module")
def oasdiff() -> Path:
    return tool("OASDIFF")


@pytest.fixture(scope="module")
def kustomize() -> Path:
    return tool("KUSTOMIZE")


def settings(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]["Settings"]
    return found


PAGE = {"in": "query", "name": "page", "schema": {"type": "integer"}}
BREAKING: dict[str, Callable[[Any], Any]] = {
    "path removed": lambda new: new["paths"].pop("/lots"),
    "method removed": lambda new: new["paths"]["/settings"].pop("put"),
    "field newly required": lambda new: settings(new).update(required=["min_free"]),
    "narrower range": lambda new: settings(new)["properties"]["min_free"].update(maximum=5),
    "another type": lambda new: settings(new)["properties"].update(min_free={"type": "string"}),
    "answer removed": lambda new: new["paths"]["/events"]["post"]["responses"].pop("201"),
    "parameter newly required": lambda new: new["paths"]["/lots"]["get"].update(parameters=[PAGE | {"required": True}]),
}
HARMLESS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda new: None,
    "path added": lambda new: new["paths"].update({"/api/new": {"get": {"responses": {"200": {"description": "x"}}}}}),
    "optional field added": lambda new: settings(new)["properties"].update(note={"type": "string"}),
    "optional parameter added": lambda new: new["paths"]["/lots"]["get"].update(parameters=[PAGE]),
    "wider range": lambda new: settings(new)["properties"]["min_free"].update(maximum=20_000),
    "description": lambda new: settings(new).update(description="better words"),
}


@pytest.mark.parametrize("name", [*BREAKING, *HARMLESS])
def test_only_a_change_that_breaks_clients_fails(oasdiff: Path, tmp_path: Path, name: str) -> None:
    changed = copy.deepcopy(SHAPE)
    (BREAKING | HARMLESS)[name](changed)
    (tmp_path / "old.json").write_text(json.dumps(SHAPE))
    (tmp_path / "new.json").write_text(json.dumps(changed))
    command = [oasdiff, "breaking", "--fail-on", "ERR", tmp_path / "old.json", tmp_path / "new.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if name in BREAKING else 0), done.stdout + done.stderr


def test_a_document_that_is_missing_is_not_a_pass(oasdiff: Path, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(SHAPE))
    command = [oasdiff, "breaking", "--fail-on", "ERR", tmp_path / "old.json", tmp_path / "none.json"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode > 1


def test_kustomize_writes_the_release_into_the_overlay(kustomize: Path, tmp_path: Path) -> None:
    service = Service.model_validate({"name": "shop", "image": "ghcr.io/me/shop", "processes": {"api": {"port": 8000}}})
    files = deploy_files.of_service(service, "production")
    files[deploy_files.release_file("shop", "production")] = deploy_files.release(service, None)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    overlay = tmp_path / "shop/production"
    image, digest, commit = "ghcr.io/me/shop", "sha256:" + "d" * 64, "1" * 40
    annotations = [f"org.opencontainers.image.revision:{commit}", f"minipc.local/image-digest:{digest}"]
    for argv in (["image", f"{image}={image}@{digest}"], ["annotation", *annotations]):
        subprocess.run([kustomize, "edit", "set", *argv], cwd=overlay / "release", check=True, timeout=60)
    built = subprocess.run([kustomize, "build", overlay], check=True, capture_output=True, text=True, timeout=60).stdout
    (api,) = [
        each for each in yaml.safe_load_all(built) if (each["kind"], each["metadata"]["name"]) == ("Deployment", "api")
    ]
    pod = api["spec"]["template"]
    assert pod["spec"]["containers"][0]["image"] == f"{image}@{digest}"
    assert pod["metadata"]["annotations"]["org.opencontainers.image.revision"] == commit
    assert pod["metadata"]["annotations"]["minipc.local/image-digest"] == digest
