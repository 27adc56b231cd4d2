"""Drift as metrics: what was found, what could not be found out, and how the last rehearsal went."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from minipc.core.errors import MinipcError
from minipc.core.variables import PLACED_VARIABLE
from minipc.pyinfra_ext.converge import PendingChange
from minipc.remote import queries
from minipc_machine.metrics import text_of
from playbooks import drift
from playbooks.doctor import Finding
from tests.unit.record_samples import small


@pytest.fixture
def told(monkeypatch):
    """What was written onto the machine, by file."""
    files: dict[str, str] = {}
    target = SimpleNamespace(alias="mini", role="mini")
    monkeypatch.setattr(drift, "the_target", lambda environment, alias: target)
    monkeypatch.setattr(drift, "unexpected", lambda target, placed: [])
    monkeypatch.setattr(drift, "load_all", lambda directory, kind: SimpleNamespace(records=[]))
    monkeypatch.setattr(queries, "on", lambda _, command, stdin: files.update({command.rpartition("/")[2]: stdin}))
    needed = [Finding("images", "rebuild", trouble="the token is expired"), Finding("port 80", "up")]
    monkeypatch.setattr(drift.preflight, "preflight", lambda target, moment: needed)
    return files


def planned(monkeypatch, *changes):
    monkeypatch.setattr(drift, "plan", lambda *args, **options: ([PendingChange(*change) for change in changes], ""))


def test_no_drift(monkeypatch, told):
    planned(monkeypatch)
    assert drift.drift("lab") == 0
    assert "minipc_drift_changes 0\n" in told["minipc_drift.prom"]
    assert "minipc_drift_check_success 1\n" in told["minipc_drift.prom"]
    assert 'minipc_preflight_success{check="images"} 0\n' in told["minipc_preflight.prom"]
    assert 'minipc_preflight_success{check="port 80"} 1\n' in told["minipc_preflight.prom"]


def test_drift_is_counted_by_component(monkeypatch, told):
    planned(monkeypatch, ("redis", "configure"), ("redis", "activate"), ("host", "configure SSH"))
    assert drift.drift("lab") == 2
    text = told["minipc_drift.prom"]
    assert "minipc_drift_changes 3\n" in text
    assert 'minipc_drift_component_changes{component="redis"} 2\n' in text


def test_what_nobody_declared_is_drift(monkeypatch, told, capsys):
    def plan(environment, files, limit, env):
        Path(env[PLACED_VARIABLE]).write_text("/etc/a\n/etc/b\n")
        return [], ""

    seen = []
    monkeypatch.setattr(drift, "plan", plan)
    monkeypatch.setattr(drift, "unexpected", lambda target, placed: seen.append(placed) or ["account x has uid 0"])
    assert drift.drift("lab") == 2
    assert seen == [["/etc/a", "/etc/b"]]
    assert "minipc_drift_unexpected 1\n" in told["minipc_drift.prom"]
    assert "unexpected: account x has uid 0" in capsys.readouterr().out


def test_a_plan_that_fails_is_told_and_is_an_error(monkeypatch, told):
    def plan(*args, **options):
        raise MinipcError("unreachable")

    monkeypatch.setattr(drift, "plan", plan)
    with pytest.raises(MinipcError):
        drift.drift("lab")
    assert "minipc_drift_check_success 0\n" in told["minipc_drift.prom"]
    assert "minipc_drift_checked_timestamp_seconds" not in told["minipc_drift.prom"]


def test_the_newest_rehearsal_counts():
    text = text_of(drift.rehearsed([small()]))
    assert "minipc_rehearsal_success " in text
    assert "minipc_rehearsal_ended_timestamp_seconds " in text
    assert drift.rehearsed([]) == []
