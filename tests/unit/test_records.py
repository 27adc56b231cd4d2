"""Records: the verdict follows from the parts, nothing is overwritten, and what isn't a record is named."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from minipc.core.paths import ROOT
from minipc.evidence import event_stream, records
from minipc.evidence.records import (
    Artifact,
    Check,
    Component,
    DataClassResult,
    Draft,
    Exercised,
    Gate,
    NotExercised,
    Operation,
    Phase,
    Record,
)
from minipc.evidence.report import render
from tests.unit.record_samples import START, big, draft_fields, small

FAILED_CHECK = Check(
    component="redis", name="refuses a stranger", outcome="failed", seconds=1, message="\n got +OK \nsecond line"
)
PASSED_CHECK = Check(component="redis", name="a full cache evicts", outcome="passed", seconds=1)
GAP = NotExercised(what="clock", why="shared with the controller", component="host")


def phase(**changes: Any) -> Phase:
    fields = {"name": "verify", "started": START, "ended": START + timedelta(seconds=9), "verdict": "pass"}
    return Phase(**(fields | changes))


def operation(**changes: Any) -> Operation:
    fields = {
        "phase": "converge",
        "component": "redis",
        "name": "redis: activate",
        "started": START,
        "seconds": 2,
        "changed": True,
        "ok": True,
    }
    return Operation(**(fields | changes))


def component(**changes: Any) -> Component:
    fields = {
        "name": "redis",
        "data_class": "cache",
        "deploy": "deploys/redis.py",
        "operations": 1,
        "changed": 1,
        "seconds_converge": 2,
        "checks_passed": 1,
        "checks_failed": 0,
        "seconds_verify": 1,
        "verdict": "pass",
        "exercised": True,
    }
    return Component(**(fields | changes))


# --- verdict, headline, exit code ---


def test_everything_passed() -> None:
    record = small()
    assert (record.verdict, record.reasons) == ("pass", [])
    assert records.headline(record) == "PASS, 1 of 1 exercised"
    assert records.shown_as(record) == "pass"
    assert records.exit_code(record) == 0
    assert records.exit_code(record, strict=True) == 0


def test_a_gap_is_never_green_and_fails_strict() -> None:
    record = small(exercised=Exercised(done=2, total=3, not_exercised=[GAP]))
    assert record.verdict == "pass"
    assert records.headline(record) == "PASS, 2 of 3 exercised"
    assert records.shown_as(record) == "not-exercised"
    assert records.exit_code(record) == 0
    assert records.exit_code(record, strict=True) == 4


def test_without_a_count_the_headline_has_none() -> None:
    assert records.headline(small(kind="converge", exercised=Exercised(done=0, total=0))) == "PASS"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"operations": [operation(ok=False)]}, "redis: operation failed: activate"),
        ({"checks": [PASSED_CHECK, FAILED_CHECK]}, "redis: 1 check failed: refuses a stranger: got +OK"),
        (
            {"checks": [FAILED_CHECK, FAILED_CHECK]},
            "redis: 2 checks failed: refuses a stranger: got +OK",
        ),
        ({"phases": [phase(verdict="fail")]}, "verify: failed"),
        ({"phases": [phase(verdict="fail", detail="no route")]}, "verify: no route"),
        ({"components": [component(verdict="fail", reason="stopped")]}, "redis: stopped"),
        (
            {"gates": [Gate.judge("second converge", budget=0, seen=2, unit="changes")]},
            "second converge: 2 changes, the budget is at most 0 changes",
        ),
        (
            {"rto_seconds": 18180.0, "rto_budget_seconds": 14400.0},
            "RTO: 5 h 03 min, the budget is at most 4 h",
        ),
        (
            {"rpo_seconds": 61.0, "rpo_budget_seconds": 60.0},
            "RPO: 1 min 01 s, the budget is at most 1 min",
        ),
        (
            {"data_classes": [DataClassResult(name="evidence", verdict="fail", rows_expected=9, rows_found=7)]},
            "data class evidence: 7 of 9 rows",
        ),
    ],
)
def test_any_failed_part_fails_the_record(changes: dict[str, Any], reason: str) -> None:
    record = small(**changes)
    assert record.verdict == "fail"
    assert record.reasons == [reason]
    assert records.headline(record) == f"FAIL: {reason}"
    assert records.exit_code(record) == records.exit_code(record, strict=True) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"phases": [phase(verdict="could-not-verify", detail="interrupted")]}, "verify: interrupted"),
        (
            {"components": [component(verdict="could-not-verify", reason="no check was run")]},
            "redis: no check was run",
        ),
        (
            {"gates": [Gate.judge("second converge", budget=0, seen=None, unit="changes")]},
            "second converge: could not be measured, the budget is at most 0 changes",
        ),
        ({"rpo_budget_seconds": 60.0}, "RPO: could not be measured, the budget is at most 1 min"),
        ({"exercised": Exercised(done=0, total=1, not_exercised=[GAP])}, "nothing was exercised"),
        ({"checks": []}, "no check was run"),
        (
            {
                "data_classes": [
                    DataClassResult(name="evidence", verdict="could-not-verify", rows_expected=9, rows_found=0)
                ]
            },
            "data class evidence: could not be verified",
        ),
    ],
)
def test_doubt_is_neither_pass_nor_fail(changes: dict[str, Any], reason: str) -> None:
    record = small(**changes)
    assert record.verdict == "could-not-verify"
    assert record.reasons == [reason]
    assert records.headline(record) == f"COULD NOT VERIFY: {reason}"
    assert records.exit_code(record) == records.exit_code(record, strict=True) == 4


def test_a_failure_outweighs_doubt_and_comes_first() -> None:
    record = small(
        phases=[
            phase(name="machine", verdict="could-not-verify", detail="interrupted"),
            phase(verdict="fail", detail="1 of 2 checks failed"),
        ],
        checks=[FAILED_CHECK, PASSED_CHECK],
    )
    assert record.verdict == "fail"
    assert record.reasons == [
        "redis: 1 check failed: refuses a stranger: got +OK",
        "verify: 1 of 2 checks failed",
    ]
    assert records.headline(record).endswith("got +OK (and 1 more)")


def test_the_budget_itself_still_passes() -> None:
    assert Gate.judge("changes", budget=0, seen=0).verdict == "pass"
    assert Gate.judge("changes", budget=0, seen=1).verdict == "fail"
    assert Gate.judge("ratio", budget=10, seen=10, bound="at-least").verdict == "pass"
    assert Gate.judge("ratio", budget=10, seen=9.99, bound="at-least").verdict == "fail"


def test_rto_and_rpo_come_first_among_the_gates() -> None:
    assert [gate.name for gate in big().all_gates][:3] == ["RTO", "RPO", "second converge"]
    assert [gate.name for gate in small().all_gates] == ["second converge"]


# --- contradictions ---


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        ({"checks": [FAILED_CHECK.model_dump()]}, "the verdict is pass, but its parts give fail"),
        ({"verdict": "fail", "reasons": ["because"]}, "the verdict is fail, but its parts give pass"),
        ({"reasons": ["because"]}, "a pass has no reasons"),
        ({"extra": 1}, "Extra inputs are not permitted"),
        ({"kind": "party"}, "Input should be 'rehearsal'"),
        ({"exercised": {"done": 1, "total": 2}}, "1 exercised and 0 not exercised do not add up to 2"),
        ({"ended": "2025-03-21T09:10:04Z"}, "before it started"),
        ({"started": "2025-03-21T09:10:05+01:00"}, "must be in UTC"),
        ({"started": "2025-03-21T09:10:05"}, "should have timezone info"),
        ({"id": "../../etc/passwd"}, "String should match pattern"),
        ({"id": "20250321-091006-00c0ffee"}, "does not begin with the time of the start"),
        ({"rto_seconds": "12"}, "Input should be a valid number"),
        ({"rto_seconds": -1}, "greater than or equal to 0"),
        (
            {"checks": [PASSED_CHECK.model_dump(), PASSED_CHECK.model_dump() | {"outcome": "not-exercised"}]},
            "redis was not exercised, but is missing in exercised.not_exercised",
        ),
        (
            {"artifacts": [{"name": "k3s", "version": "1", "sha256": None, "origin": "missing"}]},
            "an artifact is missing, but exercised.not_exercised is empty",
        ),
        (
            {"artifacts": [{"name": "k3s", "version": "1", "sha256": "abc", "origin": "locked"}]},
            "String should match pattern",
        ),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path: Path, tamper: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "tampered.json"
    path.write_text(json.dumps(small().model_dump(mode="json") | tamper))
    with pytest.raises(records.RecordError, match=re.escape(complaint)) as caught:
        records.load(path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "not-exercised", "reason": "x"},
        {"exercised": False},
        {"checks_failed": 1},
        {"verdict": "fail"},
    ],
)
def test_a_component_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        component(**changes)


def test_a_gate_cannot_lie() -> None:
    with pytest.raises(ValidationError, match="is not pass"):
        Gate(name="RTO", budget=10, unit="s", seen=11, verdict="pass")


def test_a_component_left_out_must_be_counted() -> None:
    left_out = component(verdict="not-exercised", exercised=False, reason="no artifact")
    with pytest.raises(ValidationError, match="redis was not exercised"):
        small(components=[left_out])
    gap = NotExercised(what="redis", why="no artifact", component="redis")
    record = small(components=[left_out], exercised=Exercised(done=1, total=2, not_exercised=[gap]))
    assert record.verdict == "pass"


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        small().verdict = "fail"  # type: ignore[misc]


def test_infinity_is_no_figure() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Draft(**(draft_fields() | {"rto_seconds": float("inf")}))


# --- from events ---


def test_events_become_the_parts_of_a_record() -> None:
    def at(seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    t = START.timestamp()
    observed = records.observe(
        [
            event_stream.NotExercised(t=t, what="clock", why="shared", component="host"),
            event_stream.PhaseStart(t=t, phase="converge"),
            event_stream.Plan(t=t, operations=1),
            event_stream.OperationStart(t=t + 1, component="redis", name="redis: install"),
            event_stream.OperationEnd(
                t=t + 4, component="redis", name="redis: install", changed=True, ok=True, seconds=2.5
            ),
            event_stream.PhaseEnd(t=t + 5, phase="converge", verdict="pass", detail="1 change"),
            event_stream.PhaseStart(t=t + 6, phase="verify"),
            event_stream.CheckEnd(
                t=t + 7, component="redis", name="evicts", outcome="failed", seconds=0.5, message="no"
            ),
        ],
        ended=at(10),
    )
    assert observed.phases == [
        Phase(name="converge", started=at(0), ended=at(5), verdict="pass", detail="1 change"),
        Phase(name="verify", started=at(6), ended=at(10), verdict="could-not-verify", detail="interrupted"),
    ]
    assert observed.operations == [operation(phase="converge", name="redis: install", started=at(1.5), seconds=2.5)]
    assert observed.checks == [Check(component="redis", name="evicts", outcome="failed", seconds=0.5, message="no")]
    assert observed.not_exercised == [NotExercised(what="clock", why="shared", component="host")]


def test_a_clock_set_back_does_not_make_a_phase_negative() -> None:
    t = START.timestamp()
    observed = records.observe(
        [
            event_stream.PhaseStart(t=t, phase="converge"),
            event_stream.PhaseEnd(t=t - 5, phase="converge", verdict="pass"),
        ],
        ended=START,
    )
    assert [phase.seconds for phase in observed.phases] == [0.0]


def sum_up(**changes: Any) -> Component:
    fields: dict[str, Any] = {
        "data_class": "cache",
        "deploy": "deploys/redis.py",
        "operations": [
            operation(seconds=2),
            operation(seconds=3, changed=False),
            operation(component="edge", seconds=50),
        ],
        "checks": [PASSED_CHECK, Check(component="edge", name="x", outcome="failed", seconds=50)],
    }
    return records.sum_up("redis", **(fields | changes))


def test_a_component_is_summed_up_from_its_own_parts() -> None:
    row = sum_up()
    assert (row.operations, row.changed, row.seconds_converge) == (2, 1, 5)
    assert (row.checks_passed, row.checks_failed, row.seconds_verify) == (1, 0, 1)
    assert (row.verdict, row.exercised, row.reason) == ("pass", True, "")


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({"checks": [PASSED_CHECK, FAILED_CHECK]}, "fail", "1 check failed"),
        ({"operations": [operation(ok=False)]}, "fail", "operation failed: activate"),
        ({"not_exercised": "no artifact"}, "not-exercised", "no artifact"),
        ({"not_exercised": "no artifact", "checks": [FAILED_CHECK]}, "fail", "1 check failed"),
        ({"checks": []}, "could-not-verify", "no check was run"),
    ],
)
def test_the_verdict_of_a_component(changes: dict[str, Any], verdict: str, reason: str) -> None:
    row = sum_up(**changes)
    assert (row.verdict, row.reason) == (verdict, reason)
    assert row.exercised == (verdict != "not-exercised")


# --- on disk ---


def test_a_saved_record_comes_back_the_same(tmp_path: Path) -> None:
    record = big()
    path = records.save(record, tmp_path / "made" / "when-missing")
    assert path.name == "20250321-091005-00000007-rehearsal.json"
    assert records.load(path) == record
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_record_is_world_readable_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = records.save(small(), tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    path = records.save(small(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(records.RecordError, match="never overwritten"):
        records.save(small(group="production"), tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_verdict_is_at_the_top_of_the_file(tmp_path: Path) -> None:
    text = records.save(small(), tmp_path).read_text()
    assert list(json.loads(text))[:5] == ["schema_version", "id", "kind", "verdict", "reasons"]
    assert text.endswith("}\n")


def test_names_sort_by_time(tmp_path: Path) -> None:
    moments = [START + timedelta(days=days) for days in (300, 0, 20)]
    names = [records.file_name(small(moment)) for moment in moments]
    assert sorted(names) == [names[1], names[2], names[0]]


def test_ids_tell_the_time_and_differ() -> None:
    moment = datetime(2025, 3, 21, 10, 10, 5, tzinfo=timezone(timedelta(hours=1)))
    ids = {records.new_id(moment) for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"20250321-091005-[0-9a-f]{8}", one) for one in ids)
    assert small(id=ids.pop()).started == moment.astimezone(UTC)


def test_history_is_read_in_order_by_kind_and_a_broken_file_is_named(tmp_path: Path) -> None:
    later, earlier = small(START + timedelta(days=1)), small(START)
    converge = small(START + timedelta(days=2), kind="converge")
    for record in (later, earlier, converge):
        records.save(record, tmp_path)
    (tmp_path / "20250101-000000-00000000-rehearsal.json").write_text('{"schema_version": 1}')
    (tmp_path / "20250101-000001-00000000-rehearsal.json").write_text("not json")
    (tmp_path / ".half-written.json").write_text("{")

    loaded = records.load_all(tmp_path, "rehearsal")
    assert list(loaded.records) == [earlier, later]
    assert [broken.path.name[:15] for broken in loaded.broken] == ["20250101-000000", "20250101-000001"]
    assert all(str(broken.path) in broken.reason for broken in loaded.broken)

    everything = records.load_all(tmp_path)
    assert list(everything.records) == [earlier, later, converge]
    assert records.load_all(tmp_path / "nowhere").records == []


def test_a_record_from_the_future_says_so(tmp_path: Path) -> None:
    path = tmp_path / "20300101-000000-00000000-drill.json"
    path.write_text(json.dumps({"schema_version": 3, "shape": "unknown"}))
    with pytest.raises(records.RecordError) as caught:
        records.load(path)
    assert "schema_version 3; this minipc reads versions up to 2" in caught.value.what
    assert "update this one" in caught.value.next_step
    assert "schema_version 3" in records.load_all(tmp_path).broken[0].reason


def test_a_record_of_version_1_is_read_and_its_report_made() -> None:
    """As minipc wrote it before `doors` became `exposure`, `separation` `exposure`, and `stand-in` `systemd`."""
    (record,) = records.load_all(ROOT / "tests/unit/records", "exposure").records
    assert (record.schema_version, record.kind, record.runtime, record.verdict) == (2, "exposure", "systemd", "fail")
    assert [(port.port, port.seen, port.ok) for port in record.exposure] == [
        ("22/tcp", "silent", True),
        ("22/tcp", "silent", False),
    ]
    assert "1 door not as expected" in render(record, [])


# --- schema and its documentation ---


def test_the_committed_schema_is_current() -> None:
    committed = (ROOT / "docs/reference/record.schema.json").read_text()
    assert committed == records.schema_json(), (
        "regenerate it: python -c 'from minipc.evidence.records import schema_json; print(schema_json(), end=\"\")'"
        " > docs/reference/record.schema.json"
    )


def test_every_field_is_documented() -> None:
    text = (ROOT / "docs/reference/record.md").read_text()
    documented = set(re.findall(r"`([a-z0-9_]+)`", text))
    models: set[type[BaseModel]] = {Record, Artifact}
    models |= {Check, Component, DataClassResult, Exercised, Gate, NotExercised, Operation, Phase}
    models |= {records.Git, records.Controller, records.Target, records.Override, records.PortState}
    fields = [f"{model.__name__}.{name}" for model in models for name in model.model_fields]
    assert [field for field in fields if field.split(".")[1] not in documented] == []
