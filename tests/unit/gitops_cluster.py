"""A cluster and a deploy repository for tests: answers in the shapes that Kubernetes and ArgoCD give."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minipc.errors import CouldNotVerifyError
from minipc.gitops.application import REFRESH

OVERLAY = "workload/overlays/lab"
SMOKE = {"verdict": "pass", "checks": [{"name": "health", "ok": True, "detail": "up for 3 s", "ms": 4.0}]}


def application(revision: str = "", *, history: list[str] | None = None, **status: Any) -> dict[str, Any]:
    """An Application as ArgoCD 3.5 writes it."""
    deployed = history if history is not None else [revision] if revision else []
    return {
        "metadata": {"name": "workload", "namespace": "argocd", "annotations": {}},
        "spec": {
            "source": {"repoURL": "ssh://git@example.org/deploy.git", "path": OVERLAY, "targetRevision": "main"},
            "syncPolicy": {"syncOptions": ["PruneLast=true"]},
        },
        "status": {
            "sync": {"status": "Synced", "revision": revision},
            "health": {"status": "Healthy"},
            "history": [
                {
                    "id": number,
                    "revision": each,
                    "deployedAt": "2026-11-21T12:00:00Z",
                    "initiatedBy": {"username": "me"},
                }
                for number, each in enumerate(deployed)
            ],
            "operationState": operation("Succeeded", deployed[-1], "2026-11-21T12:00:00Z") if deployed else {},
            "resources": [{"kind": "Deployment", "name": "api", "health": {"status": "Healthy"}}],
            **status,
        },
    }


def operation(phase: str, revision: str, started: str, *resources: dict[str, Any], message: str = "") -> dict[str, Any]:
    """What ArgoCD says about a sync."""
    return {
        "phase": phase,
        "message": message,
        "startedAt": started,
        "operation": {"initiatedBy": {"username": "minipc release (me)"}, "sync": {"revision": revision}},
        "syncResult": {"revision": revision, "resources": list(resources)},
    }


def step(kind: str, name: str, phase: str = "Sync", **state: str) -> dict[str, Any]:
    """An object of a sync."""
    return {"kind": kind, "name": name, "syncPhase": phase, **state}


class FakeCluster:
    """Answers what the commands of a release ask; remembers the operations it was asked for."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.application = state
        self.objects: dict[str, list[dict[str, Any]]] = {}
        self.drift: dict[str, Any] = {"changed": [], "missing": [], "diff": "", "checked": 7}
        self.images = "REF TYPE DIGEST SIZE\n"
        self.logs: dict[str, str] = {"job/smoke": json.dumps(SMOKE)}
        self.headers = "HTTP/2 200\r\n"
        self.operations: list[dict[str, Any]] = []
        self.patches: list[dict[str, Any]] = []
        self.commands: list[str] = []
        # What the cluster makes of an operation.
        self.outcome: Callable[[str], dict[str, Any]] = lambda revision: application(revision)

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
        self.commands.append(command)
        argv = shlex.split(command)
        if argv[0] == "bash":
            return _content(stdin, f"{OVERLAY}/objects.yaml")
        if argv[0] == "python3":
            return json.dumps(self.drift)
        if argv[0] == "curl":
            return self.headers
        if argv[:2] == ["k3s", "ctr"]:
            return self.images
        return self._kubectl(argv[2:])

    def _kubectl(self, argv: list[str]) -> str:
        match argv:
            case ["get", "applications.argoproj.io", *_]:
                return json.dumps(self.application)
            case ["annotate", *_]:
                assert f"{REFRESH}=normal" in argv
                return ""
            case ["patch", "applications.argoproj.io", *rest]:
                self.patches.append(json.loads(rest[-1]))
                asked = self.patches[-1]["operation"]
                self.operations.append(asked)
                self.application = self.outcome(asked["sync"]["revision"])
                return ""
            case ["get", "events", *_]:
                return "Failed to pull image"
            case ["get", kind, *_]:
                return json.dumps({"items": self.objects.get(kind, [])})
            case ["logs", *rest]:
                for name, text in self.logs.items():
                    if name in rest:
                        return text
                raise CouldNotVerifyError("there are no logs")
        raise AssertionError(argv)


def _content(tree: bytes, path: str) -> str:
    with tarfile.open(fileobj=io.BytesIO(tree)) as tar:
        found = tar.extractfile(path)
        assert found
        return found.read().decode()


class DeployRepository:
    """A bare repository, as on the off-site machine, and someone's clone that pushes to it."""

    def __init__(self, directory: Path) -> None:
        self.bare, self._work = directory / "deploy.git", directory / "work"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.bare], check=True)
        subprocess.run(["git", "clone", "-q", self.bare, self._work], check=True, capture_output=True)

    def push(self, replicas: int, subject: str = "") -> str:
        """Desired state with so many replicas; returns the commit."""
        overlay = self._work / OVERLAY
        (overlay / "release").mkdir(parents=True, exist_ok=True)
        manifest = {"kind": "Deployment", "metadata": {"name": "api"}, "spec": {"replicas": replicas}}
        (overlay / "objects.yaml").write_text(json.dumps(manifest))
        (overlay / "release/kustomization.yaml").write_text(f"# {replicas}\n")
        self.git("add", ".")
        self.git("commit", "-q", "--allow-empty", "-m", subject or f"replicas {replicas}")
        self.git("push", "-q", "origin", "HEAD:main")
        return self.git("rev-parse", "HEAD")

    def git(self, *argv: str) -> str:
        identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        command = ["git", "-C", str(self._work), *identity, *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def bare_git(self, *argv: str) -> str:
        command = ["git", "-C", str(self.bare), *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
