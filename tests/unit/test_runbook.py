"""The runbook: rendered from the phases that the rebuild goes by and from records, and kept in step with them."""

from __future__ import annotations

import re
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest

from minipc.core.environment import PRODUCTION
from minipc.core.paths import ROOT
from minipc.evidence import records
from minipc.remote.inventory import Target
from minipc.remote.sides import Side
from playbooks import dns_cutover, phases, rebuild, runbook
from playbooks.restored_data import Restored
from tests.unit.record_samples import START, draft_fields

COMMITTED = (ROOT / "docs/runbook.md").read_text()
CHANGELOG = "## Changelog"


def a_run(kind: str, **changed: Any) -> records.Record:
    return records.conclude(records.Draft(**(draft_fields() | {"kind": kind} | changed)))


def procedure(page: str) -> str:
    return page.split(CHANGELOG)[0]


def changelog(page: str) -> list[str]:
    return re.findall(r"^\| \d.*$", page.split(CHANGELOG)[1], re.M)


def test_the_committed_page_has_the_phases_as_they_are():
    assert procedure(COMMITTED) == procedure(runbook.render([])), "`minipc runbook --write` renders it anew"


def test_the_committed_changelog_is_one_that_was_rendered():
    lines = changelog(COMMITTED)
    assert lines
    assert changelog(runbook.render([], COMMITTED)) == lines


def test_a_rebuild_goes_through_the_phases_of_the_runbook(monkeypatch, tmp_path, capsys):
    """Each phase that the playbook begins, with the components it converges, is the next one of the list."""
    done: list[tuple[str, list[str]]] = []
    target = _target()
    monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path)
    monkeypatch.setattr("minipc.evidence.run.RECORDS", tmp_path / "records")
    run_phase = rebuild.Run.phase

    def phase(self, name, detail=""):
        done.append((name, []))
        return run_phase(self, name, detail)

    def converge(environment, files, **_):
        done[-1][1].extend(files)

    monkeypatch.setattr(rebuild.Run, "phase", phase)
    for name, stub in {
        "converge": converge,
        "adopt": lambda *_: None,
        "held": lambda *_: nullcontext(),
        "the_target": lambda *_: target,
        "offsite_target": lambda *_: target,
        "preflight": lambda *_: [],
        "renew": lambda *_: None,
        "restored": lambda *_, **__: Restored([], [], 60.0, None, None),
        "open_provider": lambda *_: None,
        "wanted_records": lambda *_: [],
        "versions": lambda _: {},
        "on": lambda *_, **__: "",
        "_public_key": lambda _: "",
        "bring_up": lambda *_: "",
        "describe": lambda *_: _machine(),
        "smoke": lambda *_, **__: type("Verified", (), {"demand": lambda self: self, "summary": ""})(),
        "verify": lambda *_, **__: type("Verified", (), {"demand": lambda self: self, "summary": ""})(),
    }.items():
        monkeypatch.setattr(rebuild, name, stub)
    for name in ("lower", "cutover"):
        monkeypatch.setattr(dns_cutover, name, lambda *_: [])
    rebuild.rebuild(PRODUCTION, ("minipc", {}), "SHA256:x")
    assert done == [(each.name, each.files) for each in phases.PHASES]
    assert "COMMIT AND PUSH secrets/production.age" in capsys.readouterr().out


class Answering(Side):
    """A side where the service answers."""

    def http_status(self, domain: str, path: str, **_: Any) -> str:
        return "200"


def _machine() -> records.Target:
    return records.Target(backend="hardware", name="minipc", os="", kernel="", cpus=1, memory_mb=1)


def _target() -> Target:
    from minipc import config

    dns = {"dns_provider": "cloudflare", "dns_zone": "example.org", "dns_ipv4": "203.0.113.7"}
    settings = config.load("lab", services_runtime="k3s", dns_records=[{"name": "example.org", "type": "A"}], **dns)
    return Target("minipc", {"machine_identity": "1", "sides": {"public": Answering("public", "")}}, settings)


@pytest.mark.parametrize("phase", phases.PHASES, ids=lambda phase: phase.name)
def test_each_phase_has_a_command_and_an_end(phase):
    assert phase.commands
    assert phase.done_when
    assert not phase.done_when.endswith(".")


def test_what_is_converged_is_what_a_person_types():
    assert phases.DATA.commands[0] == (
        "pyinfra --limit HOST --data postgres_from_backup=restore inventory/production.py "
        "deploys/repositories.py deploys/volumes.py deploys/postgres.py"
    )
    assert "--data" not in phases.FENCE.commands[1]


def test_rehearsals_rebuilds_and_drills_are_told_newest_first():
    later = START + timedelta(days=1)
    runs = [
        a_run("rehearsal", rto_seconds=125.0, rto_budget_seconds=14400.0, rpo_seconds=4.0, rpo_budget_seconds=86400.0),
        a_run("converge"),
        a_run("drill", **{key: value for key, value in draft_fields(later).items() if key != "kind"}),
    ]
    first, second = changelog(runbook.render(runs))
    assert "| drill |" in first
    assert "| 2 min 05 s | 4.0 s | `3b0fd5d1c` |" in second


def test_a_failed_run_stays_and_says_why():
    failed = a_run("drill", gates=[records.Gate.judge("a *gate* | with signs", budget=0, seen=1, unit="x")])
    (line,) = changelog(runbook.render([failed]))
    assert r"✗ fail: a \*gate\* / with signs" in line
    assert line.count("|") == 9


def test_lines_of_other_controllers_stay_and_known_ones_are_rendered_anew():
    one, two = a_run("rehearsal"), a_run("drill", id=f"{START:%Y%m%d-%H%M%S}-11111111")
    page = runbook.render([one, two])
    assert changelog(runbook.render([two], page)) == changelog(page)
    assert changelog(runbook.render([two], page.replace("| drill |", "| drivel |"))) == changelog(page)
