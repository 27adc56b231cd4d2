"""Checks of Loki: it stores, finds and deletes logs, and is reachable from the machine only."""

from __future__ import annotations

import json
import secrets as random
from functools import partial

import pytest

from tests.verify.conftest import eventually
from tests.verify.logs import UNIT, loki_there


@pytest.fixture(scope="session", autouse=True)
def loki(sh, settings):
    return loki_there(sh, settings.loki.port)


@pytest.fixture(scope="session")
def loki_config(loki):
    return loki.request("/config")[1]


def test_it_finds_what_it_was_given_by_text_and_by_request(loki):
    """Loki finds a log line by its text and by its request id."""
    mark = random.token_hex(8)
    code, said = loki.push(f"verify {mark}", request_id=mark)
    assert code == 204, said
    for logql in (f'{{service="minipc-verify"}} |= "{mark}"', f'{{service="minipc-verify"}} | request_id="{mark}"'):
        found = eventually(partial(loki.find, logql), within_s=10)
        assert [line.text for line in found] == [f"verify {mark}"], logql


def test_it_adds_no_labels_of_its_own(loki):
    """Loki has no labels except service, process and level."""
    code, answer = loki.request("/loki/api/v1/labels")
    assert code == 200
    assert set(json.loads(answer).get("data", [])) <= {"service", "process", "level"}


def test_what_is_too_old_is_deleted(loki_config, settings):
    """Loki is configured to delete logs after the configured time.

    That the compactor really deletes them is tested by tests/lab/test_loki.py, which can wait for it.
    """
    lines = {line.strip() for line in loki_config.splitlines()}
    assert "retention_enabled: true" in lines
    days = settings.loki.days
    assert f"retention_period: {_duration(days)}" in lines
    assert days >= 30


def _duration(days):
    """Return days as Prometheus writes them: in the largest unit that divides them."""
    return next(f"{days // size}{unit}" for unit, size in (("y", 365), ("w", 7), ("d", 1)) if days % size == 0)


def test_the_disk_bound_is_looked_at(sh, units, settings):
    """Loki's disk usage is within its limit and checked regularly."""
    timer = units("minipc-loki-bound.timer")
    assert (timer["ActiveState"], timer["UnitFileState"]) == ("active", "enabled")
    used = int(sh("du -sm /var/lib/loki").split()[0])
    assert used <= settings.loki.max_disk_mb


def test_only_the_machine_itself_reaches_it(listeners, settings, public, operator):
    """Loki is reachable from the machine itself only."""
    ports = {settings.loki.port, settings.loki.grpc_port}
    assert {(address, port) for address, port, program in listeners if port in ports or program == "loki"} == {
        ("127.0.0.1", port) for port in ports
    }
    for side in (public, operator):
        done = side.run("curl", "-s", "--max-time", "2", f"http://{side.ipv4}:{settings.loki.port}/ready")
        assert done.returncode != 0, side.name


def test_its_files_are_its_own(sh):
    """Only Loki's own account can read its files."""
    assert sh("stat -c '%U %a' /var/lib/loki") == "loki 700"


def test_the_unit_is_bounded_and_confined(units, exposure, settings):
    """Loki has a memory limit and runs with few privileges."""
    properties = units(UNIT)
    assert (properties["UnitFileState"], properties["Restart"]) == ("enabled", "always")
    assert int(properties["MemoryHigh"]) == settings.loki.memory_mb * 1024**2
    assert int(properties["MemoryMax"]) == settings.loki.memory_mb * 1024**2 * 3 // 2
    assert exposure(UNIT) < 2.5


def test_killed_it_comes_back_with_what_it_was_given(disturb, loki):
    """Loki restarts after a crash and has lost no log line."""
    mark = random.token_hex(8)
    assert loki.push(mark)[0] == 204
    disturb(f"systemctl kill -s KILL {UNIT}")
    found = eventually(lambda: loki.find(f'{{service="minipc-verify"}} |= "{mark}"'), within_s=60, every_s=0.5)
    assert found, "not back with the message within 60 s"
