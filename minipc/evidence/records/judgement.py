"""The verdict of a run: derived from its parts, in words, and as an exit code."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from minipc.core.errors import EXIT_COULD_NOT_VERIFY, EXIT_FAIL, EXIT_PASS
from minipc.core.formatting import count, first_line, one_line, within
from minipc.core.verdicts import Verdict
from minipc.evidence.records.schema import Check, Draft, Name, PortState


class Record(Draft):
    """One run with its verdict."""

    verdict: Verdict
    reasons: list[Name] = Field(description="Why it is not a pass, most important first; empty for a pass.")

    @model_validator(mode="after")
    def _is_honest(self) -> Self:
        deserved, _ = _judgement(self)
        if self.verdict != deserved:
            raise ValueError(f"the verdict is {self.verdict}, but its parts give {deserved}")
        if (self.verdict == "pass") == bool(self.reasons):
            raise ValueError("a pass has no reasons, and anything else has at least one")
        return self


def conclude(draft: Draft) -> Record:
    """Return the record, with the verdict and reasons derived from its parts.

    Any failed operation, check, data class, port, gate, phase or component is a fail. Otherwise anything that could not
    be verified, or a rehearsal or rebuild in which no check passed, is could-not-verify.
    """
    verdict, reasons = _judgement(draft)
    return Record(**dict(draft), verdict=verdict, reasons=reasons)


def headline(record: Record) -> str:
    """Return the verdict in one line: `PASS, 14 of 17 exercised`, `FAIL: <first reason>`, `COULD NOT VERIFY: …`."""
    if record.verdict != "pass":
        more = f" (and {len(record.reasons) - 1} more)" if len(record.reasons) > 1 else ""
        return f"{record.verdict.replace('-', ' ').upper()}: {record.reasons[0]}{more}"
    if not record.exercised.total:
        return "PASS"
    return f"PASS, {record.exercised.done} of {record.exercised.total} exercised"


def shown_as(record: Record) -> Verdict | Literal["not-exercised"]:
    """Return how to show the verdict: a pass that did not exercise everything is never shown in green."""
    if record.verdict == "pass" and record.exercised.not_exercised:
        return "not-exercised"
    return record.verdict


def exit_code(record: Record, *, strict: bool = False) -> int:
    """Return the exit code of a record. `strict`: a pass that did not exercise everything is could-not-verify."""
    if record.verdict == "fail":
        return EXIT_FAIL
    if record.verdict == "could-not-verify" or (strict and record.exercised.not_exercised):
        return EXIT_COULD_NOT_VERIFY
    return EXIT_PASS


def _judgement(draft: Draft) -> tuple[Verdict, list[str]]:
    failures = _failures(draft)
    if failures:
        return "fail", failures
    doubts = _doubts(draft)
    return ("could-not-verify", doubts) if doubts else ("pass", [])


def _failures(draft: Draft) -> list[str]:
    """Return one sentence for each failure; a phase or component only if no part of it explains the failure."""
    operations = [operation for operation in draft.operations if not operation.ok]
    checks = [check for check in draft.checks if check.outcome == "failed"]
    explained = {operation.component for operation in operations} | {check.component for check in checks}

    reasons = [
        f"{operation.component}: operation failed: {within(operation.component, operation.name)}"
        for operation in operations
    ]
    reasons += _failed_checks(checks)
    reasons += [
        f"data class {item.title}: {item.detail or f'{item.rows_found} of {item.rows_expected} rows'}"
        for item in draft.data_classes
        if item.verdict == "fail"
    ]
    reasons += _wrong_ports(draft.exposure)
    reasons += [gate.reason for gate in draft.all_gates if gate.verdict == "fail"]
    reasons += [
        f"{component.name}: {component.reason}"
        for component in draft.components
        if component.verdict == "fail" and component.name not in explained
    ]
    for phase in draft.phases:
        if phase.verdict == "fail" and (phase.detail or not reasons):
            reasons.append(f"{phase.name}: {phase.detail or 'failed'}")
    return [one_line(reason) for reason in reasons]


def _wrong_ports(ports: list[PortState]) -> list[str]:
    """Return one sentence with the number of wrong ports and the first of them."""
    wrong = [port for port in ports if not port.ok]
    return [f"{count(len(wrong), 'port')} not as expected: {wrong[0].reason}"] if wrong else []


def _failed_checks(checks: list[Check]) -> list[str]:
    """Return one sentence for each component: the number of failed checks and the first of them."""
    by_component: dict[str, list[Check]] = {}
    for check in checks:
        by_component.setdefault(check.component, []).append(check)
    reasons = []
    for component, failed in by_component.items():
        first = failed[0]
        message = f": {first_line(first.message)}" if first.message.strip() else ""
        reasons.append(f"{component}: {count(len(failed), 'check')} failed: {first.name}{message}")
    return reasons


def _doubts(draft: Draft) -> list[str]:
    """Return one sentence for each thing that could not be verified."""
    doubts = [
        f"{phase.name}: {phase.detail or 'could not be verified'}"
        for phase in draft.phases
        if phase.verdict == "could-not-verify"
    ]
    doubts += [
        f"{component.name}: {component.reason}"
        for component in draft.components
        if component.verdict == "could-not-verify"
    ]
    doubts += [
        f"data class {item.title}: {item.detail or 'could not be verified'}"
        for item in draft.data_classes
        if item.verdict == "could-not-verify"
    ]
    doubts += [gate.reason for gate in draft.all_gates if gate.verdict == "could-not-verify"]
    if draft.exercised.total and not draft.exercised.done:
        doubts.append("nothing was exercised")
    if draft.kind in ("rehearsal", "rebuild") and not any(c.outcome == "passed" for c in draft.checks):
        doubts.append("no check was run")
    return [one_line(doubt) for doubt in doubts]
