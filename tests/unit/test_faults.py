"""The table of faults: complete, documented, and a judge that can say no."""

from __future__ import annotations

import re
from typing import Any

import pytest
from click.testing import CliRunner

from minipc import records
from minipc.cli import cli
from minipc.errors import ConfigError, MinipcError
from minipc.paths import ROOT
from playbooks import faults, phases
from tests.unit.record_samples import draft_fields

PAGE = (ROOT / "docs/reference/faults.md").read_text()


def named(name: str) -> faults.Fault:
    return next(fault for fault in faults.FAULTS if fault.name == name)


def record(*phases: tuple[str, str, str]) -> records.Record:
    """A record of these phases: name, verdict, detail."""
    fields: dict[str, Any] = draft_fields() | {"kind": "fault", "components": [], "checks": [], "gates": []}
    moment = {"started": fields["started"], "ended": fields["started"]}
    fields["phases"] = [
        {"name": name, "verdict": verdict, "detail": detail} | moment for name, verdict, detail in phases
    ]
    fields |= {"operations": [], "data_classes": [], "exercised": records.Exercised(done=0, total=0)}
    return records.conclude(records.Draft(**fields))


def test_each_is_in_the_page_as_it_is():
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \| (goes red|survived) \|$", PAGE, re.M)
    assert rows == [(each.name, each.summary, "goes red" if each.reason else "survived") for each in faults.FAULTS]


def test_the_command_lists_them():
    listed = CliRunner().invoke(cli, ["rehearse", "--list-faults"])
    assert [line.split()[0] for line in listed.output.splitlines()] == [each.name for each in faults.FAULTS]


def test_those_on_the_living_machine_come_first():
    """The others need it lost."""
    living = [bool(fault.live) for fault in faults.FAULTS]
    assert living == sorted(living, reverse=True)


def test_they_are_played_in_the_tables_order():
    assert [each.name for each in faults.chosen(["repo1-lost", "missing-wal"])] == ["missing-wal", "repo1-lost"]
    assert faults.chosen(["all"]) == list(faults.FAULTS)


def test_an_unknown_one_is_told():
    with pytest.raises(ConfigError, match="no such fault: earthquake") as told:
        faults.chosen(["missing-wal", "earthquake"])
    assert "old-backup" in told.value.next_step


@pytest.mark.parametrize("words", [["--as", "production"], ["--runtime", "k3s"]])
def test_options_that_would_be_ignored_are_refused(words):
    done = CliRunner().invoke(cli, ["rehearse", "--fault", "all", *words])
    assert isinstance(done.exception, ConfigError)


def test_red_for_its_reason_is_as_expected():
    seen = record(("data", "fail", f"WAL segment {'0' * 24} is missing in every repository (1 of 4)"))
    assert faults._judge(named("missing-wal"), seen).startswith("red: data: WAL segment")


def test_red_for_another_reason_is_not():
    seen = record(("data", "fail", "the off-site machine is on fire"))
    with pytest.raises(MinipcError, match=r"not for .*on fire"):
        faults._judge(named("missing-wal"), seen)


def test_green_where_it_should_be_red_is_not_as_expected():
    with pytest.raises(MinipcError, match="should have gone red, but passed"):
        faults._judge(named("missing-wal"), record(("data", "pass", "")))


def test_what_should_be_survived_must_be_green():
    fault = named("rebuild-crash")
    assert faults._judge(fault, record(("data", "pass", ""))) == "survived"
    with pytest.raises(MinipcError, match="should have been survived, but: smoke: 1 failed"):
        faults._judge(fault, record(("smoke", "fail", "1 failed")))


@pytest.mark.parametrize("fault", [each for each in faults.FAULTS if not each.reason], ids=lambda each: each.name)
def test_what_is_survived_is_looked_at(fault):
    """As far as the smoke list, or by a look of its own."""
    assert fault.until is phases.SMOKE or fault.after is not faults._nothing


def test_a_rebuild_that_ends_without_a_reason_is_no_pass(monkeypatch, tmp_path):
    monkeypatch.setattr("minipc.run.REPORTS", tmp_path)
    run = faults.Run("fault")
    with run.phase("adopt"):
        pass
    with pytest.raises(faults.PhaseFailedError, match="ended with 1 and no reason"):
        faults._demand_a_reason(run, 1)
    faults._demand_a_reason(faults.Run("fault"), 0)
