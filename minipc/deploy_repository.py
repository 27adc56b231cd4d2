"""The deploy repository where the off-site machine hosts it: its address for ArgoCD and for the operator, its content.

ArgoCD reads it with a key that can do nothing else; the operator writes it over the operator's own SSH.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from minipc import ssh
from minipc.addresses import bracketed
from minipc.argocd.manifest import PATH as ARGOCD_PATH
from minipc.errors import MinipcError
from minipc.inventory import Target
from minipc.paths import ROOT
from minipc.wording import first_line
from minipc.workload.oci import Image

HOME = "/srv/minipc-offsite/git"
PATH = f"{HOME}/deploy.git"
ACCOUNT = "git"
BRANCH = "main"
RELEASE = "workload/overlays/lab/release/kustomization.yaml"
# What gitops/ has in place of the repository's own address, in the lab's overlay.
PLACEHOLDER = "ssh://git@offsite.minipc.test/deploy.git"


@dataclass(frozen=True)
class Remote:
    """How the operator reaches the repository.

    Attributes:
        url: for git.
        environment: variables that git needs for it.
    """

    url: str
    environment: Mapping[str, str]


def hosted_url(address: str, port: int) -> str:
    """Where ArgoCD reads the repository on the off-site machine."""
    return f"ssh://{ACCOUNT}@{bracketed(address)}:{port}/deploy.git"


def literal_address(repository: str | None, offsite: str | None, port: int) -> list[tuple[int, str, int]]:
    """IP version, address and port of the deploy repository, as firewall rules need them; none for a name.

    Args:
        repository: its address where it is elsewhere; None: the off-site machine has it.
        offsite: address of that one.
        port: of its SFTP server.
    """
    host = offsite
    if repository:
        parts = urlsplit(repository)
        host, port = parts.hostname, parts.port or 22
    try:
        return [(ip_address(host or "").version, host or "", port)]
    except ValueError:
        return []


def operator_remote(offsite: Target) -> Remote:
    """Where the operator writes it: as root, over the operator's SSH, with the pinned host key."""
    config = ssh.write_config([(offsite.alias, offsite.data)])
    return Remote(f"ssh://{offsite.alias}{PATH}", {"GIT_SSH_COMMAND": f"ssh -F {shlex.quote(str(config))}"})


def commit_tree(remote: Remote, files: Mapping[str, bytes], message: str) -> str:
    """Has the branch hold exactly these files; returns its newest commit. Nothing is committed when it does already.

    Raises:
        MinipcError: git failed.
    """
    with _clone(remote) as directory:
        for tracked in _git(directory, remote, "ls-files").splitlines():
            (directory / tracked).unlink()
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        _git(directory, remote, "add", "--all")
        if _git(directory, remote, "status", "--porcelain"):
            who = ("-c", "user.name=minipc", "-c", "user.email=minipc@localhost")
            _git(directory, remote, *who, "commit", "--quiet", "--message", message)
            _git(directory, remote, "push", "--quiet", "origin", f"HEAD:{BRANCH}")
        return _git(directory, remote, "rev-parse", "HEAD")


def starting_point(repository: str, manifest: bytes, image: Image) -> dict[str, bytes]:
    """The files of the lab's deploy repository: gitops/ with the repository's address, ArgoCD itself, and a release.

    Args:
        repository: its address for ArgoCD.
        manifest: what `minipc.argocd.manifest.render` made.
        image: of the service.
    """
    source = ROOT / "gitops"
    files = {
        str(path.relative_to(source)): path.read_bytes().replace(PLACEHOLDER.encode(), repository.encode())
        for path in sorted(source.rglob("*"))
        if path.is_file()
    }
    return {**files, ARGOCD_PATH: manifest, RELEASE: release(image)}


def release(image: Image) -> bytes:
    """The file that says which image runs; see `gitops/workload/overlays/lab/release`."""
    name, _, tag = image.reference.rpartition(":")
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "images": [{"name": "workload", "newName": name, "newTag": tag}],
        "commonAnnotations": {
            "org.opencontainers.image.revision": image.labels.get("org.opencontainers.image.revision", tag),
            "minipc.local/image-digest": image.digest,
        },
    }
    text: str = yaml.safe_dump(content, sort_keys=False)
    return text.encode()


@contextmanager
def _clone(remote: Remote) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="minipc-deploy-") as name:
        directory = Path(name)
        _git(directory, remote, "init", "--quiet", f"--initial-branch={BRANCH}")
        _git(directory, remote, "remote", "add", "origin", remote.url)
        _git(directory, remote, "fetch", "--quiet", "origin")
        if _git(directory, remote, "branch", "--remotes", "--list", f"origin/{BRANCH}"):
            _git(directory, remote, "reset", "--quiet", "--hard", f"origin/{BRANCH}")
        yield directory


def _git(directory: Path, remote: Remote, *argv: str) -> str:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", **remote.environment}
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *argv],
            capture_output=True,
            timeout=120,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MinipcError(f"git {argv[0]}: {error}", "`minipc doctor` says what this controller lacks") from error
    if done.returncode:
        reason = first_line(done.stderr.decode(errors="replace")) or "failed"
        raise MinipcError(
            f"deploy repository {remote.url}: git {argv[0]}: {reason}",
            "is that machine up, and was it converged with offsite_deploy_repository = True?",
        )
    return done.stdout.decode(errors="replace").strip()
