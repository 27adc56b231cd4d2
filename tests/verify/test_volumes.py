"""Checks of the services' volumes: owner, backup, and what is measured."""

from __future__ import annotations

import json
import re

import pytest

from minipc.config.offsite import NONE as NO_OFFSITE
from minipc.config.services import volumes_of
from tests.verify.conftest import eventually, not_exercised

METRICS = "/var/lib/prometheus/node-exporter/minipc_volumes.prom"
OUTCOMES = "/var/lib/minipc/backups/outcomes.json"


@pytest.fixture(scope="session")
def volumes(settings):
    found = volumes_of(settings.services.declared)
    if not found:
        not_exercised("no service declares a volume")
    return found


def test_each_volume_belongs_to_its_service_only(sh, volumes):
    """The folder of each volume belongs to the user of its service, and nobody else can enter it."""
    for volume in volumes:
        assert sh(f"stat -c '%u %g %a' {volume.path}") == f"{volume.user} {volume.user} 700", volume.key
        assert sh(f"stat -c '%u %a' {volume.path.parent}") == "0 711", volume.key


def test_each_volume_is_in_a_backup(sh, volumes, settings):
    """The last backup of each volume succeeded."""
    if not settings.has_offsite:
        not_exercised(NO_OFFSITE)
    outcomes = json.loads(sh(f"cat {OUTCOMES}"))
    for volume in volumes:
        assert outcomes.get(volume.tag, {}).get("success"), f"{volume.key}: {outcomes.get(volume.tag)}"


def test_each_volume_is_measured(sh, volumes):
    """Size and limit of each volume are published as metrics."""

    def measured():
        text = sh(f"cat {METRICS} 2>/dev/null || true")
        return set(re.findall(r'^minipc_volume_bytes\{service="(\S+)",volume="(\S+)"\} \d+$', text, re.M))

    expected = {(volume.service, volume.name) for volume in volumes}
    assert eventually(lambda: measured() == expected, 30)
    for volume in volumes:
        assert f"{volume.limit_bytes}" in sh(f"grep volume_limit {METRICS}")


def test_the_timer_runs_and_the_unit_is_confined(units):
    """The timer that measures the volumes is enabled, and its unit has few privileges."""
    assert units("minipc-volumes.timer")["UnitFileState"] == "enabled"
    properties = units("minipc-volumes.service")
    assert (properties["ProtectSystem"], properties["NoNewPrivileges"]) == ("strict", "yes")
    assert properties["CapabilityBoundingSet"] == "cap_dac_read_search"
