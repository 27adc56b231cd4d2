"""Convert the event stream of a run into the parts of its record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from minipc.core.formatting import count, within
from minipc.core.verdicts import Verdict
from minipc.evidence import event_stream
from minipc.evidence.records.schema import Artifact, Check, Component, NotExercised, Operation, Phase


@dataclass(frozen=True)
class Observed:
    """The parts of a record that come from the event stream."""

    phases: list[Phase] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    not_exercised: list[NotExercised] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)


def observe(events: Iterable[event_stream.Event], *, ended: datetime) -> Observed:
    """Return phases, operations, checks, artifacts and what was not exercised.

    Args:
        ended: when the run ended, UTC. A phase without an end gets this one and could not be verified.
    """
    observed = Observed()
    running: event_stream.PhaseStart | None = None
    for event in events:
        match event:
            case event_stream.PhaseStart():
                running = event
            case event_stream.PhaseEnd():
                started = running.t if running and running.phase == event.phase else event.t
                observed.phases.append(_phase(event.phase, started, event.t, event.verdict, event.detail))
                running = None
            case event_stream.OperationEnd():
                observed.operations.append(_operation(event, running.phase if running else ""))
            case event_stream.CheckEnd():
                observed.checks.append(Check(**_fields(event)))
            case event_stream.NotExercised():
                observed.not_exercised.append(NotExercised(**_fields(event)))
            case event_stream.ArtifactUsed():
                used = Artifact(**_fields(event))
                # Each converge of a run reports it again.
                if used not in observed.artifacts:
                    observed.artifacts.append(used)
    if running:
        observed.phases.append(_phase(running.phase, running.t, ended.timestamp(), "could-not-verify", "interrupted"))
    return observed


def _fields(event: event_stream.Event) -> dict[str, Any]:
    """Return the fields of an event that the record takes over unchanged."""
    return {name: value for name, value in asdict(event).items() if name != "t"}


def _phase(name: str, started: float, ended: float, verdict: Verdict, detail: str) -> Phase:
    begin = datetime.fromtimestamp(started, UTC)
    # The controller's clock may be set back during a run; a duration is never negative.
    end = max(begin, datetime.fromtimestamp(ended, UTC))
    return Phase(name=name, started=begin, ended=end, verdict=verdict, detail=detail)


def _operation(event: event_stream.OperationEnd, phase: str) -> Operation:
    return Operation(
        phase=phase,
        component=event.component,
        name=event.name,
        started=datetime.fromtimestamp(event.t, UTC) - timedelta(seconds=event.seconds),
        seconds=event.seconds,
        changed=event.changed,
        ok=event.ok,
    )


def sum_up(
    name: str,
    *,
    data_class: str,
    deploy: str,
    operations: Iterable[Operation],
    checks: Iterable[Check],
    not_exercised: str = "",
) -> Component:
    """Return the row of one component.

    Args:
        operations: operations of the reported phase, of any component.
        checks: checks of the run, of any component.
        not_exercised: why the component as a whole was not exercised; empty if it was.
    """
    own_operations = [operation for operation in operations if operation.component == name]
    own_checks = [check for check in checks if check.component == name]
    passed = sum(check.outcome == "passed" for check in own_checks)
    failed = sum(check.outcome == "failed" for check in own_checks)
    broken = next((within(name, operation.name) for operation in own_operations if not operation.ok), None)

    verdict: Verdict | Literal["not-exercised"] = "pass"
    reason = ""
    if broken or failed:
        verdict = "fail"
        reason = f"operation failed: {broken}" if broken else f"{count(failed, 'check')} failed"
    elif not_exercised:
        verdict, reason = "not-exercised", not_exercised
    elif not passed:
        verdict, reason = "could-not-verify", "no check was run"
    return Component(
        name=name,
        data_class=data_class,
        deploy=deploy,
        operations=len(own_operations),
        changed=sum(operation.changed for operation in own_operations),
        seconds_converge=sum(operation.seconds for operation in own_operations),
        checks_passed=passed,
        checks_failed=failed,
        seconds_verify=sum(check.seconds for check in own_checks),
        verdict=verdict,
        exercised=verdict != "not-exercised",
        reason=reason,
    )
