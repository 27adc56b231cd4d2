"""The deploy repository: addresses, what it starts from, commits that change nothing are not made."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from minipc import deploy_repository
from minipc.deploy_repository import Remote, commit_tree, hosted_url, literal_address, starting_point
from minipc.errors import MinipcError
from minipc.paths import ROOT
from minipc.workload.oci import Image


@pytest.fixture
def remote(tmp_path):
    path = tmp_path / "deploy.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", path], check=True)
    return Remote(f"file://{path}", {})


def listed(remote: Remote) -> list[str]:
    git = ["git", "--git-dir", remote.url.removeprefix("file://")]
    done = subprocess.run([*git, "ls-tree", "-r", "--name-only", "main"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_addresses():
    assert hosted_url("198.51.100.1", 2222) == "ssh://git@198.51.100.1:2222/deploy.git"
    assert hosted_url("fd00::1", 2222) == "ssh://git@[fd00::1]:2222/deploy.git"


@pytest.mark.parametrize(
    ("repository", "offsite", "found"),
    [
        (None, "198.51.100.1", [(4, "198.51.100.1", 2222)]),
        (None, "fd00::1", [(6, "fd00::1", 2222)]),
        (None, "backup.example.org", []),
        (None, None, []),
        ("ssh://git@192.168.1.5/me/deploy.git", "198.51.100.1", [(4, "192.168.1.5", 22)]),
        ("ssh://git@[fd00::5]:2200/me/deploy.git", None, [(6, "fd00::5", 2200)]),
        ("ssh://git@example.org/me/deploy.git", None, []),
    ],
)
def test_the_address_that_rules_need(repository, offsite, found):
    assert literal_address(repository, offsite, 2222) == found


def test_the_branch_holds_exactly_what_was_given(remote):
    first = commit_tree(remote, {"a": b"1", "b/c": b"2"}, "Start")
    assert listed(remote) == ["a", "b/c"]
    assert commit_tree(remote, {"a": b"1", "b/c": b"2"}, "Again") == first
    assert commit_tree(remote, {"a": b"1"}, "Less") != first
    assert listed(remote) == ["a"]


def test_a_repository_that_is_not_there_is_an_error_with_its_address(tmp_path):
    with pytest.raises(MinipcError, match="nowhere"):
        commit_tree(Remote(f"file://{tmp_path}/nowhere", {}), {"a": b""}, "x")


def test_it_starts_from_gitops_with_its_own_address_in_the_labs_overlay():
    image = Image("minipc.local/workload:abc", "sha256:1", "sha256:2", {"org.opencontainers.image.revision": "abcdef"})
    files = starting_point("ssh://git@10.0.0.1:2222/deploy.git", b"manifest", image)
    release = yaml.safe_load(files["workload/overlays/lab/release/kustomization.yaml"])
    template = yaml.safe_load((ROOT / "gitops/workload/overlays/lab/release/kustomization.yaml").read_text())
    assert set(release) == set(template)
    assert release["images"] == [{"name": "workload", "newName": "minipc.local/workload", "newTag": "abc"}]
    assert set(release["commonAnnotations"]) == set(template["commonAnnotations"])
    assert files["argocd/install.yaml"] == b"manifest"
    assert not [name for name, content in files.items() if deploy_repository.PLACEHOLDER.encode() in content]
    assert b"ssh://git@10.0.0.1:2222/deploy.git" in files["root/lab/repository.yaml"]
