"""Volumes are backed up before a new version may change them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minipc.config.service import Service
from minipc.core.errors import MinipcError
from minipc_machine.backup_state import Outcome
from playbooks import backup


def service(**volumes):
    return Service.model_validate({"name": "odd", "image": "x", "processes": {"web": {}}, "volumes": volumes})


FILES = {"mount": "/data", "size_gb": 1, "data_class": "must recover"}
GOOD, BAD = Outcome(success=True, seconds=1, ended=1), Outcome(success=False, seconds=1, ended=1, error="disk full")


def target(offsite="offsite"):
    return SimpleNamespace(settings=SimpleNamespace(has_offsite=offsite is not None))


@pytest.fixture
def started(monkeypatch):
    """The units that were started, with the outcomes that they leave."""
    units: list[str] = []

    def run(outcomes):
        monkeypatch.setattr(backup, "_run", lambda _, names: units.extend(names) or outcomes)
        return units

    return run


def test_only_the_volumes_are_backed_up(started):
    units = started({"volume:odd/files": GOOD, "volume:other/files": BAD, "repo1": BAD})
    assert backup.before_release(target(), service(files=FILES)) == "backed up: volume:odd/files"
    assert units == ["minipc-backup@volumes.service"]


@pytest.mark.parametrize(("outcomes", "why"), [({"volume:odd/files": BAD}, "disk full"), ({}, "no backup was taken")])
def test_a_backup_that_failed_ends_the_release(started, outcomes, why):
    started(outcomes)
    with pytest.raises(MinipcError, match=f"volume:odd/files: {why}; nothing was changed"):
        backup.before_release(target(), service(files=FILES))


def test_a_service_without_volumes_is_not_kept_waiting(started):
    assert (backup.before_release(target(), service()), started({})) == ("", [])


def test_without_an_off_site_host_the_release_says_so():
    assert "NOT EXERCISED" in backup.before_release(target(None), service(files=FILES))
