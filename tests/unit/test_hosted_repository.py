"""The deploy repository: addresses, commits that change nothing are not made."""

from __future__ import annotations

import pytest

from minipc.gitops import signing
from minipc.gitops.hosted_repository import hosted_url, literal_address
from tests.unit.gitops_cluster import DeployRepository


@pytest.fixture
def remote(tmp_path, monkeypatch):
    made = DeployRepository(tmp_path)
    monkeypatch.setattr(signing, "signing_key", lambda environment: made.key)
    return made


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


def test_the_branch_holds_exactly_what_was_given_and_every_commit_is_signed(remote):
    repository = remote.clone()
    first = repository.replace({"a": b"1", "b/c": b"2"}, "Start")
    assert remote.bare_git("ls-tree", "-r", "--name-only", "main").split() == ["a", "b/c"]
    assert repository.replace({"a": b"1", "b/c": b"2"}, "Again") == first
    second = repository.replace({"a": b"1"}, "Less")
    assert remote.bare_git("ls-tree", "-r", "--name-only", "main").split() == ["a"]
    remote.approve(first)
    repository.admit(second)
    assert repository.admit_approved("root") == first
