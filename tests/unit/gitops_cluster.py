"""A cluster and a deploy repository for tests: answers in the shapes that Kubernetes and ArgoCD give."""

from __future__ import annotations

import functools
import io
import json
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from minipc.config.service import Service
from minipc.core import yaml_text
from minipc.core.environment import LAB
from minipc.core.errors import CouldNotVerifyError
from minipc.gitops import signing
from minipc.gitops.application import REFRESH
from minipc.gitops.approvals import Approvals
from minipc.gitops.cluster import COMPONENT
from minipc.gitops.repository import Repository, Trust
from minipc.secrets import Secret
from minipc.secrets.ed25519 import public_key
from minipc.secrets.generate import ssh_private_key
from minipc.services import manifests

NAME = "shop"
OVERLAY = f"{NAME}/lab"
DIGEST = "sha256:" + "d" * 64
SHOP = Service.model_validate(
    {
        "name": NAME,
        "image": "registry.example/shop",
        "ingress": {"domains": ["service.test"], "node_port": 30090},
        "processes": {"api": {"port": 8000, "replicas": 2}},
        "health": {"live": "/healthz", "ready": "/healthz"},
        "smoke": [{"name": "the shop is open", "request": {"path": "/open", "contains": "yes"}}],
    }
)


def manifests_of(service: Service = SHOP, replicas: int = 2, version: str = "v1") -> list[dict[str, Any]]:
    """The objects of a service, as they are in the deploy repository once kustomize has set the version."""
    processes = {name: each.model_copy(update={"replicas": replicas}) for name, each in service.processes.items()}
    changed = service.model_copy(update={"processes": processes})
    return manifests.objects(changed, "lab", manifests.Image(f"{service.image}:{version}", version, DIGEST))


def live(name: str = "api", replicas: int = 2, available: int | None = None, **status: Any) -> dict[str, Any]:
    """A Deployment of which all pods are new and ready, unless said otherwise."""
    found = replicas if available is None else available
    template = {"metadata": {"labels": {"app.kubernetes.io/component": name}}}
    return {
        "metadata": {"name": name, "generation": 1, "labels": {"app.kubernetes.io/component": name}},
        "spec": {"replicas": replicas, "template": template},
        "status": {
            "observedGeneration": 1,
            "replicas": replicas,
            "updatedReplicas": replicas,
            "availableReplicas": found,
            **status,
        },
    }


def application(
    revision: str = "", *, history: list[str] | None = None, path: str = OVERLAY, **status: Any
) -> dict[str, Any]:
    """An Application as ArgoCD 3.5 writes it."""
    deployed = history if history is not None else [revision] if revision else []
    return {
        "metadata": {"name": NAME, "namespace": "argocd", "annotations": {}},
        "spec": {
            "source": {"repoURL": "ssh://git@example.org/deploy.git", "path": path, "targetRevision": "main"},
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
        self.objects: dict[str, list[dict[str, Any]]] = {"deployments.apps": [live()]}
        # Pods and jobs that are created, with the status that they get.
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.job_status: dict[str, Any] = {"conditions": [{"type": "Complete", "status": "True"}]}
        self.pod_status: dict[str, Any] = {"podIP": "10.42.0.9", "conditions": [{"type": "Ready", "status": "True"}]}
        self.refusal = ""
        self.imported: list[bytes] = []
        # Archives that a release left on the machine.
        self.kept: list[bytes] = []
        self.events: list[dict[str, Any]] = []
        # Answers to smoke requests, by what is in the URL: status and body.
        self.answers: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.drift: dict[str, Any] = {"changed": [], "missing": [], "diff": "", "checked": 7}
        self.images = "REF TYPE DIGEST SIZE\n"
        self.logs: dict[str, str] = {}
        self.headers = "HTTP/2 200\r\n"
        self.operations: list[dict[str, Any]] = []
        self.patches: list[dict[str, Any]] = []
        self.commands: list[str] = []
        # What the cluster makes of an operation.
        self.outcome: Callable[[str], dict[str, Any]] = lambda revision: application(revision)

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60) -> str:
        self.commands.append(command)
        argv = shlex.split(command)
        if argv[0] == "systemd-run":
            return self.build(stdin, argv[-1])
        if argv[0] == "python3":
            return json.dumps(self.drift)
        if argv[:2] == ["curl", "--silent"]:
            return self.answer(next(word for word in argv if word.startswith("http://")))
        if argv[0] == "curl":
            return self.headers
        if argv[0] == "sh":
            if stdin:
                self.kept.append(stdin)
            return ""
        if argv[:2] == ["k3s", "ctr"]:
            if "import" in argv:
                self.imported.append(stdin)
            return self.images
        return self._kubectl(argv[2:], stdin)

    def answer(self, url: str) -> str:
        """What curl prints for a smoke request."""
        self.asked.append(url)
        for part, (status, body) in self.answers.items():
            if part in url:
                return f"HTTP/1.1 {status} x\r\n\r\n{body}"
        return "HTTP/1.1 200 OK\r\n\r\nyes"

    def build(self, tree: bytes, script: str) -> str:
        """What kustomize would make of a folder with files as its only resources."""
        folder = script.split()[-1].removeprefix("/tmp/tree/")
        resources = yaml.safe_load(_content(tree, f"{folder}/kustomization.yaml"))["resources"]
        return "\n---\n".join(_content(tree, f"{folder}/{name}") for name in resources)

    def _kubectl(self, argv: list[str], stdin: bytes) -> str:
        match argv:
            case ["get", "applications.argoproj.io", *_]:
                return json.dumps(self.application)
            case ["annotate", *_]:
                assert f"{REFRESH}=normal" in argv
                return ""
            case ["patch", "applications.argoproj.io", *rest]:
                self.patches.append(json.loads(rest[-1]))
                asked = self.patches[-1].get("operation")
                if asked is None:
                    self.application["status"]["operationState"] |= {"phase": "Failed", "message": "terminated"}
                    return ""
                self.operations.append(asked)
                self.application = self.outcome(asked["sync"]["revision"])
                return ""
            case ["create", *_]:
                self.create(json.loads(stdin))
                return ""
            case ["delete", *rest]:
                for word in rest:
                    kind, _, name = word.partition("/")
                    if name:
                        self.deleted.append(word)
                        listed = self.objects.get({"pod": "pods", "job": "jobs.batch"}[kind], [])
                        listed[:] = [each for each in listed if each["metadata"]["name"] != name]
                return ""
            case ["get", "events", *_]:
                return json.dumps({"items": self.events})
            case ["get", kind, *rest]:
                found = self.objects.get(kind, [])
                wanted = dict(word.split("=", 1) for word in rest[rest.index("-l") + 1].split(","))
                part = wanted.get("app.kubernetes.io/component")
                if part:
                    found = [each for each in found if each["metadata"]["labels"].get(COMPONENT) == part]
                if "job-name" in wanted:
                    found = [each for each in found if each["metadata"]["name"].startswith(wanted["job-name"])]
                return json.dumps({"items": found})
            case ["logs", *rest]:
                for name, text in self.logs.items():
                    if name in rest:
                        return text
                raise CouldNotVerifyError("there are no logs")
        raise AssertionError(argv)

    def create(self, manifest: dict[str, Any]) -> None:
        """What the cluster makes of a pod or a job: it has a status at once."""
        self.created.append(manifest)
        pod = manifest["kind"] == "Pod"
        status = json.loads(json.dumps(self.pod_status if pod else self.job_status))
        if self.refusal:
            raise CouldNotVerifyError(f"mini: `kubectl create` failed: {self.refusal}")
        made = manifest | {"status": ({"phase": "Running"} if pod else {}) | status}
        self.objects.setdefault("pods" if pod else "jobs.batch", []).append(made)


def _content(tree: bytes, path: str) -> str:
    with tarfile.open(fileobj=io.BytesIO(tree)) as tar:
        found = tar.extractfile(path)
        assert found
        return found.read().decode()


def new_key(name: str = "release.signing_key") -> Secret:
    return Secret(name, ssh_private_key())


@functools.cache
def _empty() -> tempfile.TemporaryDirectory[str]:
    """Make the two empty repositories once. They share their objects, so a push only updates a branch."""
    made = tempfile.TemporaryDirectory(prefix="minipc-tests-")
    bare, work = Path(made.name) / "deploy.git", Path(made.name) / "work"
    for options, directory in ((["--bare"], bare), ([], work)):
        subprocess.run(["git", "init", "-q", "--template=", "-b", "main", *options, directory], check=True)
    for setting in (("remote.origin.url", "../deploy.git"), ("gc.auto", "0"), ("maintenance.auto", "false")):
        subprocess.run(["git", "-C", work, "config", *setting], check=True)
    shutil.rmtree(work / ".git/objects")
    (bare / "hooks").mkdir()
    (work / ".git/objects").symlink_to("../../deploy.git/objects")
    return made


class DeployRepository:
    """A bare repository, as on the off-site machine, and someone's clone that pushes to it, signed."""

    def __init__(self, directory: Path) -> None:
        self.bare, self.work = directory / "deploy.git", directory / "work"
        self._directory = directory
        self.key = new_key()
        self.signers = directory / "allowed_signers"
        self.signers.write_text(signing.signer_line(self.key) + "\n")
        self.approvals = Approvals(directory / "approved.json", "deploy")
        shutil.copytree(_empty().name, directory, symlinks=True, dirs_exist_ok=True)

    @property
    def trust(self) -> Trust:
        return Trust(LAB, self.signers, self.approvals)

    def clone(self, name: str = "clone") -> Repository:
        """What minipc works with."""
        return Repository(str(self.bare), self._directory / name, "main", self.trust)

    def allow(self, key: Secret, principal: str = "ci", options: str = "") -> None:
        """Lets somebody else sign."""
        with self.signers.open("a") as file:
            file.write(f'{principal} namespaces="git"{options} {public_key(key)}\n')

    def approve(self, commit: str, *names: str) -> None:
        self.approvals.approve(names or ("argocd", "root", NAME), commit)

    def push(self, replicas: int, subject: str = "", service: Service = SHOP, **how: Any) -> str:
        """Desired state with so many replicas; returns the commit."""
        files = {
            f"{OVERLAY}/objects.yaml": yaml.dump_all(manifests_of(service, replicas), Dumper=yaml_text.DUMPER),
            f"{OVERLAY}/release/kustomization.yaml": f"images: [{{name: shop, newTag: '{replicas}'}}]\n",
        }
        return self.push_files(files, subject or f"replicas {replicas}", **how)

    def push_objects(self, objects: list[dict[str, Any]], subject: str) -> str:
        """Desired state with these objects; returns the commit."""
        return self.push_files({f"{OVERLAY}/objects.yaml": yaml.dump_all(objects, Dumper=yaml_text.DUMPER)}, subject)

    def push_files(self, files: dict[str, str], subject: str, *, key: Secret | None = None, sign: bool = True) -> str:
        """A commit with these files; `key` signs it, else the one that is allowed."""
        for path, text in files.items():
            (self.work / path).parent.mkdir(parents=True, exist_ok=True)
            (self.work / path).write_text(text)
        self.git("add", "--all", "--force", ".")
        message = ["--allow-empty", "-m", subject]
        if sign:
            with signing.key_file(key or self.key) as file:
                self.git("-c", "gpg.format=ssh", "-c", f"user.signingKey={file}", "commit", "-q", "-S", *message)
        else:
            self.git("commit", "-q", "--no-gpg-sign", *message)
        made = self.git("rev-parse", "HEAD")
        self.bare_git("update-ref", "refs/heads/main", made)
        return made

    def git(self, *argv: str) -> str:
        identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        command = ["git", "-C", str(self.work), *identity, *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def bare_git(self, *argv: str) -> str:
        command = ["git", "-C", str(self.bare), *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
