"""Records of drills that a machine did by itself."""

from __future__ import annotations

import json

import pytest

from minipc import config
from minipc.core.environment import PRODUCTION
from minipc.evidence.records import Target as Machine
from minipc.evidence.records import load_all
from minipc.remote.inventory import Target
from playbooks import restore_drill

BEGAN = 1742548205.25


def result(began: float = BEGAN, **changed: object) -> dict[str, object]:
    phase = {"name": "restore", "started": began + 1, "ended": began + 9, "verdict": "pass", "detail": ""}
    check = {"phase": "restore", "name": "canary A is there", "outcome": "passed", "message": ""}
    return {
        "id": "20250321-091005",
        "repo": 2,
        "started": began,
        "ended": began + 10,
        "verdict": "pass",
        "reason": "",
        "phases": [phase],
        "checks": [check],
        "classes": [{"name": "must recover", "rows": 3, "newest": None}],
        "not_exercised": [],
        "rpo_seconds": 12.0,
        "code": {"commit": "3b0fd5d1c2a4e6f8091a2b3c4d5e6f708192a3b4", "dirty": False},
    } | changed


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with results; what it holds is a list that a test fills."""
    held: list[dict[str, object]] = []
    monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path)
    monkeypatch.setattr("minipc.evidence.run.RECORDS", tmp_path / "records")
    monkeypatch.setattr(restore_drill, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(restore_drill, "the_target", lambda *_: Target("minipc", {}, config.load("lab")))
    facts = Machine(backend="hardware", name="minipc", os="", kernel="", cpus=1, memory_mb=1)
    monkeypatch.setattr(restore_drill, "describe", lambda *_: facts)
    monkeypatch.setattr(restore_drill, "on", lambda *_: "\n".join(json.dumps(each) for each in held))
    return held


def test_each_gets_one_record_with_its_own_times_and_commit(machine, tmp_path):
    machine += [result(), result(BEGAN + 86400)]
    made = restore_drill.collect(PRODUCTION)
    assert [record.started.timestamp() for record in made] == [BEGAN, BEGAN + 86400]
    assert [record.seconds for record in made] == [10, 10]
    assert made[0].git.commit.startswith("3b0fd5d1c")
    assert made[0].rpo_seconds == 12
    assert restore_drill.collect(PRODUCTION) == [], "they are known now"
    assert len(load_all(tmp_path / "records", "drill").records) == 2


def test_one_that_failed_is_told_as_it_was(machine):
    check = {"phase": "restore", "name": "canary A is there", "outcome": "failed", "message": "the answer is 0"}
    machine.append(result(checks=[check], verdict="fail", reason="canary A is there: the answer is 0"))
    (record,) = restore_drill.collect(PRODUCTION)
    assert record.verdict == "fail"
    assert "canary A is there" in record.reasons[0]


def test_a_result_of_an_older_version_has_no_commit(machine):
    older = result()
    del older["code"]
    machine.append(older)
    (record,) = restore_drill.collect(PRODUCTION)
    assert record.git.commit == ""
