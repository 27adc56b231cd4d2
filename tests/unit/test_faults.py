"""Test the table of faults: it is documented, and a fault that goes otherwise than expected fails."""

from __future__ import annotations

import re
from typing import Any

import pytest
from click.testing import CliRunner

from minipc.cli.main import cli
from minipc.core.errors import ConfigError, MinipcError
from minipc.core.paths import ROOT
from minipc.evidence import records
from playbooks import phases
from rehearsal import faults
from tests.unit.record_samples import draft_fields

PAGE = (ROOT / "docs/reference/faults.md").read_text()


def named(name: str) -> faults.Fault:
    return next(fault for fault in faults.FAULTS if fault.name == name)


def record(*phases: tuple[str, str, str]) -> records.Record:
    """Return a record of these phases: name, verdict, detail."""
    fields: dict[str, Any] = draft_fields() | {"kind": "fault", "components": [], "checks": [], "gates": []}
    moment = {"started": fields["started"], "ended": fields["started"]}
    fields["phases"] = [
        {"name": name, "verdict": verdict, "detail": detail} | moment for name, verdict, detail in phases
    ]
    fields |= {"operations": [], "data_classes": [], "exercised": records.Exercised(done=0, total=0)}
    return records.conclude(records.Draft(**fields))


def test_the_documentation_lists_each_fault():
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \| (fails|survived) \|$", PAGE, re.M)
    assert rows == [(each.name, each.summary, each.expected) for each in faults.FAULTS]


def test_the_command_lists_each_fault():
    listed = CliRunner().invoke(cli, ["rehearse", "--list-faults"])
    assert [line.split()[0] for line in listed.output.splitlines()] == [each.name for each in faults.FAULTS]


def test_faults_on_the_live_machine_come_first():
    """The others need the machine to be lost."""
    live = [bool(fault.live) for fault in faults.FAULTS]
    assert live == sorted(live, reverse=True)


def test_faults_run_in_the_order_of_the_table():
    assert [each.name for each in faults.chosen(["repo1-lost", "missing-wal"])] == ["missing-wal", "repo1-lost"]
    assert faults.chosen(["all"]) == list(faults.FAULTS)


def test_an_unknown_fault_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match="no such fault: earthquake") as error:
        faults.chosen(["missing-wal", "earthquake"])
    assert "old-backup" in error.value.next_step


@pytest.mark.parametrize("words", [["--as", "production"], ["--runtime", "k3s"]])
def test_unsupported_options_are_refused(words):
    done = CliRunner().invoke(cli, ["rehearse", "--fault", "all", *words])
    assert isinstance(done.exception, ConfigError)


def test_a_failure_for_the_expected_reason_is_accepted():
    failed = record(("data", "fail", f"WAL segment {'0' * 24} is missing in every repository (1 of 4)"))
    assert faults._judge(named("missing-wal"), failed).startswith("failed as expected: data: WAL segment")


def test_a_failure_for_another_reason_is_not_accepted():
    failed = record(("data", "fail", "the off-site machine is on fire"))
    with pytest.raises(MinipcError, match=r"not with .*on fire"):
        faults._judge(named("missing-wal"), failed)


def test_a_pass_is_not_accepted_where_a_failure_is_expected():
    with pytest.raises(MinipcError, match="expected a failure, but it passed"):
        faults._judge(named("missing-wal"), record(("data", "pass", "")))


def test_a_fault_that_must_be_survived_must_pass():
    fault = named("rebuild-crash")
    assert faults._judge(fault, record(("data", "pass", ""))) == "survived"
    with pytest.raises(MinipcError, match="expected a pass, but it failed: smoke: 1 failed"):
        faults._judge(fault, record(("smoke", "fail", "1 failed")))


@pytest.mark.parametrize("fault", [each for each in faults.FAULTS if not each.reason], ids=lambda each: each.name)
def test_a_survived_fault_is_checked_by_the_smoke_list_or_a_separate_check(fault):
    assert fault.until is phases.SMOKE or fault.after_rebuild


def test_a_rebuild_that_fails_without_a_reason_is_not_a_pass(monkeypatch, tmp_path):
    monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path)
    run = faults.Run("fault")
    with run.phase("adopt"):
        pass
    with pytest.raises(faults.PhaseFailedError, match="ended with 1 and no reason"):
        faults._require_reason(run, 1)
    faults._require_reason(faults.Run("fault"), 0)
