"""From the event stream of a run to the parts of its record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from minipc import timeline
from minipc.records.schema import Artifact, Check, Component, NotExercised, Operation, Phase
from minipc.verdicts import Verdict
from minipc.wording import count, within


@dataclass(frozen=True)
class Observed:
    """What the event stream of a run says, in the record's terms."""

    phases: list[Phase] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    not_exercised: list[NotExercised] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)


def observe(events: Iterable[timeline.Event], *, ended: datetime) -> Observed:
    """The phases, operations, checks and gaps of a run from its events.

    Args:
        ended: when the run ended, UTC. A phase that never ended ends then, and could not be verified.
    """
    observed = Observed()
    running: timeline.PhaseStart | None = None
    for event in events:
        match event:
            case timeline.PhaseStart():
                running = event
            case timeline.PhaseEnd():
                started = running.t if running and running.phase == event.phase else event.t
                observed.phases.append(_phase(event.phase, started, event.t, event.verdict, event.detail))
                running = None
            case timeline.OperationEnd():
                observed.operations.append(_operation(event, running.phase if running else ""))
            case timeline.CheckEnd():
                observed.checks.append(
                    Check(
                        component=event.component,
                        name=event.name,
                        outcome=event.outcome,
                        seconds=event.seconds,
                        message=event.message,
                    )
                )
            case timeline.NotExercised():
                observed.not_exercised.append(NotExercised(what=event.what, why=event.why, component=event.component))
            case timeline.ArtifactUsed():
                used = Artifact(name=event.name, version=event.version, sha256=event.sha256, origin=event.origin)
                # Each converge of a run says it anew.
                if used not in observed.artifacts:
                    observed.artifacts.append(used)
    if running:
        observed.phases.append(_phase(running.phase, running.t, ended.timestamp(), "could-not-verify", "interrupted"))
    return observed


def _phase(name: str, started: float, ended: float, verdict: Verdict, detail: str) -> Phase:
    begin = datetime.fromtimestamp(started, UTC)
    # The controller's clock may be set back during a run; a phase is never shorter than nothing.
    end = max(begin, datetime.fromtimestamp(ended, UTC))
    return Phase(name=name, started=begin, ended=end, verdict=verdict, detail=detail)


def _operation(event: timeline.OperationEnd, phase: str) -> Operation:
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
    """The row of one component from the operations and checks of the run.

    Args:
        operations: those of the phase that is reported, of any component.
        checks: those of the run, of any component.
        not_exercised: why the component as a whole was not exercised; empty when it was.
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
