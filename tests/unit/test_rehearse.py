"""What a rehearsal does without a machine: when it is interrupted, and what it makes of users' promises."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from minipc import config, records
from minipc.errors import MinipcError
from minipc.inventory import Target
from minipc.run import Run
from playbooks import rehearse
from playbooks.users import EVIDENCE, MUST_RECOVER, Acknowledged

LOST_AT = 1_000_000.0


@pytest.fixture
def reports(monkeypatch, tmp_path):
    monkeypatch.setattr("minipc.run.REPORTS", tmp_path)
    monkeypatch.setattr("minipc.run.RECORDS", tmp_path / "records")
    return tmp_path


@pytest.fixture
def no_lab(monkeypatch):
    """Sets what the first step does; the machines that are removed at the end are kept in a list."""
    removed: list[str] = []
    monkeypatch.setattr(rehearse.lab, "down", removed.extend)

    def first_step(action):
        monkeypatch.setattr(rehearse.lab, "ensure_backend", lambda _: action())
        return removed

    return first_step


def interrupt():
    raise KeyboardInterrupt


def the_record(reports: Path) -> records.Record:
    (path,) = (reports / "records").iterdir()
    return records.load(path)


def test_an_interrupted_one_leaves_a_record_that_is_no_pass(reports, no_lab):
    no_lab(interrupt)
    with pytest.raises(KeyboardInterrupt):
        rehearse.rehearse(rehearse.Options())
    record = the_record(reports)
    assert record.verdict == "could-not-verify"
    assert record.reasons[0] == "prepare: interrupted"


def test_a_terminated_one_does_too(reports, no_lab):
    before = signal.getsignal(signal.SIGTERM)
    no_lab(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        rehearse.rehearse(rehearse.Options())
    assert the_record(reports).verdict == "could-not-verify"
    assert signal.getsignal(signal.SIGTERM) is before


def test_between_two_phases_as_well(reports):
    run = Run("rehearsal")
    with run.phase("prepare"):
        pass
    rehearse.say_interrupted(run)
    seen = records.observe(rehearse.read(run.events), ended=run.started)
    assert [phase.verdict for phase in seen.phases] == ["pass", "could-not-verify"]


# --- promises -------------------------------------------------------------------------------------------------------


def promises(numbers: int) -> rehearse.Promises:
    """Writes each second until the loss, in turn of each class."""
    classes = (EVIDENCE, MUST_RECOVER)
    writes = [Acknowledged(classes[n % 2], n, LOST_AT - numbers + n - 1) for n in range(1, numbers + 1)]
    return rehearse.Promises("the-run", writes, LOST_AT)


@pytest.fixture
def weigh(monkeypatch, reports):
    """Weighs the promises when these numbers came back; returns the run."""

    def run(came_back: set[int], given: rehearse.Promises) -> Run:
        users = "\n".join(f"rehearsal-the-run-{n}" for n in sorted(came_back)) + "\nrehearsal-another-7\n"
        monkeypatch.setattr(rehearse, "query", lambda *_: users)
        run = Run("rehearsal")
        rehearse.weigh(run, Target("mini", {}, config.load("lab")), given)
        return run

    return run


def test_what_was_lost_at_the_end_is_the_rpo(weigh):
    run = weigh(set(range(1, 8)), promises(10))
    assert run.rpo_seconds == 4.0
    assert [each.verdict for each in run.data_classes] == ["pass", "pass"]
    assert run.gates[0].verdict == "pass"


def test_a_hole_in_the_middle_fails_its_class(weigh):
    run = weigh(set(range(1, 11)) - {5}, promises(10))
    assert {each.name: each.verdict for each in run.data_classes} == {MUST_RECOVER: "fail", EVIDENCE: "pass"}


def test_nothing_back_is_told(weigh):
    with pytest.raises(MinipcError, match="none of the users' writes came back"):
        weigh(set(), promises(4))


def test_more_than_the_archive_may_be_behind_fails_the_gate(weigh):
    late = promises(4)
    run = weigh({1, 2, 3, 4}, rehearse.Promises(late.run, late.acknowledged, LOST_AT + 25 * 3600))
    assert run.gates[0].verdict == "fail"
    assert run.rpo_seconds > run.rpo_budget_seconds
