"""Checks of the backup repositories and of the programs that read them."""

from __future__ import annotations

import json

import pytest

from minipc.config.offsite import NONE as NO_OFFSITE
from minipc.config.offsite import ONLY_A_HOST, not_provided
from tests.verify.conftest import not_exercised

PROGRAMS = ["stanza", "backup", "restore"]
BIN = "/usr/local/lib/minipc"


@pytest.fixture(params=[1, 2], ids=["repo1", "repo2"])
def repo(request, settings):
    if request.param == 2 and not settings.has_offsite:
        not_exercised(NO_OFFSITE)
    return request.param


def test_a_repository_can_be_read(sh, repo):
    """The backup repository can be read and is encrypted."""
    info = json.loads(sh(f"cd / && runuser -u postgres -- pgbackrest --stanza=main --repo={repo} --output=json info"))
    assert [each["status"] for each in info[0]["repo"]] == [{"code": 0, "message": "ok"}]
    assert info[0]["cipher"] == "aes-256-cbc"


def test_the_machine_can_learn_that_it_was_replaced(sh, settings):
    """The off-site host tells a machine that asks whether it was replaced, and this one was not."""
    if settings.backups.offsite is None:
        not_exercised("there is no off-site host: backups_offsite is None")
    call = "r.revoked_keys(schema.load(r.ReplacedSettings, r.SETTINGS))"
    asking = f"from minipc_machine import replaced as r, schema; print({call})"
    shown = sh(f"cd /; PYTHONPATH={BIN} PYTHONDONTWRITEBYTECODE=1 python3 -c '{asking}'")
    assert "Permission denied (publickey)" in shown
    assert sh("[ ! -e /var/lib/minipc/replaced ] && systemctl is-enabled minipc-replaced.timer").strip() == "enabled"


@pytest.fixture(scope="module")
def bucket(sh, settings):
    """Return what the mini PC's own program says about the bucket."""
    if not settings.offsite.s3:
        not_exercised("the off-site side is not a bucket")
    return sh(f"{BIN}/bucket 2>&1")


def test_the_bucket_can_be_used(bucket):
    """The mini PC's key can list, write, read and delete in the bucket, and nothing else uses it."""
    assert bucket.startswith("the bucket "), bucket


def test_the_bucket_keeps_what_is_deleted(bucket):
    """The bucket has versioning, so that deleted backups can be restored."""
    if "NO VERSIONING" in bucket:
        not_exercised(bucket)
    assert "versioning" in bucket


def test_the_storage_box_can_be_used(sh, settings):
    """The storage box is the pinned one, has space left, and its folder can be read, written and cleaned up."""
    if not settings.offsite.sftp:
        not_exercised("the off-site side is not a storage box")
    shown = sh(f"{BIN}/storage-box 2>&1")
    assert shown.startswith("the storage box can be used"), shown


@pytest.mark.parametrize("what", ONLY_A_HOST)
def test_what_only_an_off_site_host_provides(settings, what):
    """An off-site host provides what a bucket or a storage box cannot."""
    lacking = not_provided(settings)
    if what in lacking:
        not_exercised(f"{what}: {lacking[what]}")
    if not settings.has_offsite:
        not_exercised(NO_OFFSITE)


def test_the_programs_are_roots(sh):
    """Only root can change the backup programs."""
    modes = sh(f"cd {BIN} && stat -c '%a %U %n' {' '.join(PROGRAMS)}").splitlines()
    assert modes == [f"755 root {program}" for program in PROGRAMS]


def test_only_root_and_the_database_read_the_keys(sh):
    """Only root and the database account can read the backup keys."""
    readable = sh(
        "find /etc/pgbackrest /etc/minipc/backups -type f -perm /o=r ! -name known_hosts ! -name '*.crt' | sort"
    )
    assert [path for path in readable.splitlines() if not path.endswith((".json",))] == []


def test_a_database_that_is_there_is_never_overwritten(sh):
    """A restore refuses to overwrite an existing database.

    The restore program is started while the database is running.
    """
    done = sh(f"{BIN}/restore restore 2>&1; echo $?")
    assert "is not empty, and is never overwritten" in done
    assert done.endswith("3")
