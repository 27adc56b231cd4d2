"""Test the rehearsal without machines: interruptions, data loss, former names in old records."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from minipc import config
from minipc.artifacts.store import OFFLINE_VARIABLE
from minipc.cli.main import cli
from minipc.core.errors import MinipcError
from minipc.evidence import records
from minipc.evidence.run import Run
from minipc.remote.inventory import Target
from playbooks import phases
from rehearsal import data_loss, machines, rehearse
from rehearsal.cli import prove
from rehearsal.load_generator import Write
from tests.unit.record_samples import draft_fields

LOST_AT = 1_000_000.0


@pytest.fixture
def reports(monkeypatch, tmp_path):
    monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path)
    monkeypatch.setattr("minipc.evidence.run.RECORDS", tmp_path / "records")
    return tmp_path


@pytest.fixture
def no_lab(monkeypatch):
    """Return a function that sets what the first step of a rehearsal does, without any machine."""
    monkeypatch.setattr(rehearse.lab, "down", lambda _: [])
    return lambda action: monkeypatch.setattr(rehearse.lab, "ensure_backend", lambda _: action())


def test_an_offline_rehearsal_downloads_no_upstream_file(monkeypatch):
    """Each process of it reads the variable: converges, the preflight, the rebuild from the second controller."""
    seen = []
    monkeypatch.setenv(OFFLINE_VARIABLE, "")
    monkeypatch.setattr(rehearse, "rehearse", lambda _: seen.append(os.environ[OFFLINE_VARIABLE]) or ["a record"])
    monkeypatch.setattr(records, "exit_code", lambda *_, **__: 0)
    for words in ([], ["--offline"]):
        done = CliRunner().invoke(cli, ["rehearse", "--runtime", "podman", *words])
        assert done.exit_code == 0, done.output
    assert seen == ["", "1"]


def interrupt():
    raise KeyboardInterrupt


def the_record(reports: Path) -> records.Record:
    (path,) = (reports / "records").iterdir()
    return records.load(path)


def test_an_interrupted_rehearsal_leaves_a_record_that_is_not_a_pass(reports, no_lab):
    no_lab(interrupt)
    with pytest.raises(KeyboardInterrupt):
        rehearse.rehearse(machines.Options())
    record = the_record(reports)
    assert record.verdict == "could-not-verify"
    assert record.reasons[0] == "prepare: interrupted"


def test_a_terminated_rehearsal_leaves_a_record_that_is_not_a_pass(reports, no_lab):
    before = signal.getsignal(signal.SIGTERM)
    no_lab(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        rehearse.rehearse(machines.Options())
    assert the_record(reports).verdict == "could-not-verify"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_between_two_phases_is_not_a_pass(reports):
    run = Run("rehearsal")
    with run.phase("prepare"):
        pass
    machines.note_interruption(run)
    seen = records.observe(rehearse.read(run.events), ended=run.started)
    assert [phase.verdict for phase in seen.phases] == ["pass", "could-not-verify"]


# --- data loss ------------------------------------------------------------------------------------------------------


def acknowledged(count: int, later_s: float = 0) -> data_loss.AcknowledgedWrites:
    """Return one write per second until the loss, alternating between the classes."""
    (service,) = config.load("lab").services.declared
    assert service.rehearsal
    classes = [each.data_class for each in service.rehearsal.writes]
    writes = [Write(service.name, n % 2, classes[n % 2], n, LOST_AT - count + n - 1) for n in range(1, count + 1)]
    return data_loss.AcknowledgedWrites("the-run", writes, LOST_AT + later_s)


@pytest.fixture
def measure(monkeypatch, reports):
    """Return a function that measures the data loss when these write numbers were restored, and returns the run."""

    def measure(restored: set[int], writes: data_loss.AcknowledgedWrites) -> Run:
        users = "\n".join(f"rehearsal-the-run-{n}" for n in sorted(restored)) + "\nrehearsal-another-7\n"
        monkeypatch.setattr(data_loss, "query", lambda *_: users)
        run = Run("rehearsal")
        data_loss.measure_data_loss(run, Target("mini", {}, config.load("lab")), writes)
        return run

    return measure


def test_the_rpo_is_the_age_of_the_newest_restored_write(measure):
    run = measure(set(range(1, 8)), acknowledged(10))
    assert run.rpo_seconds == 4.0
    assert [each.verdict for each in run.data_classes] == ["pass", "pass"]
    assert run.gates[0].verdict == "pass"


def test_a_gap_in_the_middle_fails_its_data_class(measure):
    run = measure(set(range(1, 11)) - {5}, acknowledged(10))
    assert [(each.name.partition(": ")[2], each.verdict) for each in run.data_classes] == [
        ("must recover", "pass"),
        ("evidence", "fail"),
    ]


def test_no_restored_write_is_an_error(measure):
    with pytest.raises(MinipcError, match="none of the users' writes was restored"):
        measure(set(), acknowledged(4))


def test_an_rpo_above_the_archive_timeout_fails_the_gate(measure):
    run = measure({1, 2, 3, 4}, acknowledged(4, later_s=25 * 3600))
    assert run.gates[0].verdict == "fail"
    assert run.rpo_seconds > run.rpo_budget_seconds


# --- former names ---------------------------------------------------------------------------------------------------


def test_records_with_former_phase_names_are_still_read(tmp_path):
    fields = draft_fields()
    moment = {"started": fields["started"], "ended": fields["started"], "verdict": "pass", "detail": ""}
    names = ["separation", "public door", "weigh"]
    fields |= {"kind": "exposure", "phases": [{"name": name} | moment for name in names]}
    fields |= {"operations": [], "components": []}
    path = records.save(records.conclude(records.Draft(**fields)), tmp_path)
    content = json.loads(path.read_text())
    del content["exposure"]
    path.write_text(json.dumps(content | {"schema_version": 1, "kind": "separation", "doors": []}))
    read = records.load(path)
    assert read.kind == "exposure"
    assert [phase.name for phase in read.phases] == names


def test_until_accepts_the_former_name_of_a_phase():
    assert phases.named("public door") is phases.named("public ingress") is phases.INGRESS


def test_the_former_name_of_the_exposure_proof_is_a_hidden_command():
    former, current = (prove.commands[name] for name in ("separation", "exposure"))
    assert former.hidden
    assert former.callback is current.callback
    assert former.params == current.params
