"""Repositories: they can be read with what is on this machine, only by root and the database, and never ignored."""

from __future__ import annotations

import json

import pytest

from tests.verify.conftest import not_exercised

PROGRAMS = ["stanza", "backup", "restore"]
BIN = "/usr/local/lib/minipc"


@pytest.fixture(params=[1, 2], ids=["repo1", "repo2"])
def repo(request, settings):
    if request.param == 2 and settings.backups.offsite is None:
        not_exercised("there is no off-site machine: backups_offsite is None")
    return request.param


def test_a_repository_can_be_read(sh, repo):
    told = json.loads(sh(f"cd / && runuser -u postgres -- pgbackrest --stanza=main --repo={repo} --output=json info"))
    assert [each["status"] for each in told[0]["repo"]] == [{"code": 0, "message": "ok"}]
    assert told[0]["cipher"] == "aes-256-cbc"


def test_the_programs_are_roots(sh):
    modes = sh(f"cd {BIN} && stat -c '%a %U %n' {' '.join(PROGRAMS)}").splitlines()
    assert modes == [f"755 root {program}" for program in PROGRAMS]


def test_only_root_and_the_database_read_the_keys(sh):
    readable = sh(
        "find /etc/pgbackrest /etc/minipc/backups -type f -perm /o=r ! -name known_hosts ! -name '*.crt' | sort"
    )
    assert [path for path in readable.splitlines() if not path.endswith((".json",))] == []


def test_a_database_that_is_there_is_never_overwritten(sh):
    """The program that restores, asked to restore over the living database."""
    done = sh(f"{BIN}/restore restore 2>&1; echo $?")
    assert "is not empty; it is never overwritten" in done
    assert done.endswith("3")
