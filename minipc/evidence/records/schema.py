"""The parts of a record. Unknown fields, wrong types and contradictions are refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    model_validator,
)

from minipc.core.formatting import quantity
from minipc.core.strict import Strict
from minipc.core.verdicts import Outcome, Verdict

Kind = Literal["rehearsal", "drill", "rebuild", "converge", "benchmark", "test-long", "exposure", "fault", "faults"]
SCHEMA_VERSION: Final = 2


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset():
        raise ValueError("must be in UTC")
    return moment


def _current_runtime(name: object) -> object:
    return "systemd" if name == "stand-in" else name


Runtime = Annotated[Literal["k3s", "podman", "systemd"], BeforeValidator(_current_runtime)]
Utc = Annotated[AwareDatetime, AfterValidator(_utc)]
Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = Strict.model_config | ConfigDict(allow_inf_nan=False)


class Git(_Part):
    """The code that ran."""

    commit: str = Field(description="Full commit hash; empty when not in a git work tree.")
    dirty: bool = Field(description="Uncommitted changes were present.")


class Controller(_Part):
    """The machine that ran the command, and its software."""

    os: str
    python: str
    pyinfra: str
    minipc: str


class Target(_Part):
    """The machine on which the run worked."""

    backend: str = Field(description="nspawn, qemu, or hardware.")
    name: str
    os: str
    kernel: str
    cpus: NonNegativeInt
    memory_mb: NonNegativeInt


class Override(_Part):
    """A production value that this run replaced, because it ran on another machine."""

    key: Name
    production_value: str
    used_value: str
    why: Name


class _Span(_Part):
    started: Utc
    ended: Utc

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.ended < self.started:
            raise ValueError(f"ended ({self.ended}) before it started ({self.started})")
        return self

    @property
    def seconds(self) -> float:
        """Return the duration in seconds."""
        return (self.ended - self.started).total_seconds()


class Phase(_Span):
    """One step of the procedure."""

    name: Name
    verdict: Verdict
    detail: str = ""


class Operation(_Part):
    """One pyinfra operation."""

    phase: str = Field(description="The phase it ran in; empty if none.")
    component: str
    name: Name
    started: Utc
    seconds: NonNegativeFloat
    changed: bool
    ok: bool


class Check(_Part):
    """One check of the verification."""

    component: str
    name: Name
    outcome: Outcome
    seconds: NonNegativeFloat
    message: str = Field("", description="Why it failed or was not exercised.")


class Component(_Part):
    """The result of one component: its converge and its verification."""

    name: Name
    data_class: str
    deploy: str = Field(description="Path of the deploy file in the repository.")
    operations: NonNegativeInt
    changed: NonNegativeInt
    seconds_converge: NonNegativeFloat
    checks_passed: NonNegativeInt
    checks_failed: NonNegativeInt
    seconds_verify: NonNegativeFloat
    verdict: Verdict | Literal["not-exercised"]
    exercised: bool
    reason: str = Field("", description="Why the verdict is not pass.")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.exercised == (self.verdict == "not-exercised"):
            raise ValueError(f"component {self.name}: exercised and verdict contradict each other")
        if self.checks_failed and self.verdict != "fail":
            raise ValueError(f"component {self.name}: {self.checks_failed} failed checks, yet {self.verdict}")
        if self.verdict != "pass" and not self.reason:
            raise ValueError(f"component {self.name}: {self.verdict} needs a reason")
        return self


class NotExercised(_Part):
    """Something that this run could not exercise. It is counted and never shown in green."""

    what: Name
    why: Name
    component: str = ""


class Exercised(_Part):
    """How many of the possible checks were exercised."""

    done: NonNegativeInt
    total: NonNegativeInt
    not_exercised: list[NotExercised] = []

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.done + len(self.not_exercised) != self.total:
            skipped = len(self.not_exercised)
            raise ValueError(f"{self.done} exercised and {skipped} not exercised do not add up to {self.total}")
        return self

    @property
    def reasons(self) -> list[tuple[str, str, list[str]]]:
        """Return component, reason, and everything that was not exercised there for that reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for gap in self.not_exercised:
            found.setdefault((gap.component, gap.why), []).append(gap.what)
        return [(component, why, whats) for (component, why), whats in found.items()]


class Gate(_Part):
    """A measured value with a budget. `Gate.judge` creates it."""

    name: Name
    budget: float
    unit: str = Field(description="`s` for seconds, else a word such as `changes`; empty for a plain number.")
    bound: Literal["at-most", "at-least"] = "at-most"
    seen: float | None = Field(description="null if it could not be measured.")
    verdict: Verdict

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.verdict != _judge(self.budget, self.seen, self.bound):
            raise ValueError(f"gate {self.name}: {self.seen} against {self.budget} is not {self.verdict}")
        return self

    @classmethod
    def judge(
        cls,
        name: str,
        *,
        budget: float,
        seen: float | None,
        unit: str = "",
        bound: Literal["at-most", "at-least"] = "at-most",
    ) -> Gate:
        """Return the gate with its verdict. The budget itself still passes; None cannot be verified."""
        verdict = _judge(budget, seen, bound)
        return cls(name=name, budget=budget, unit=unit, bound=bound, seen=seen, verdict=verdict)

    @property
    def reason(self) -> str:
        """Return one sentence on why it is not a pass; empty if it is."""
        if self.verdict == "pass":
            return ""
        seen = "could not be measured" if self.seen is None else quantity(self.seen, self.unit)
        return f"{self.name}: {seen}, the budget is {self.limit}"

    @property
    def limit(self) -> str:
        """Return the budget in words: `at most 4 h`."""
        return f"{self.bound.replace('-', ' ')} {quantity(self.budget, self.unit)}"


def _judge(budget: float, seen: float | None, bound: str) -> Verdict:
    if seen is None:
        return "could-not-verify"
    return "pass" if (seen <= budget if bound == "at-most" else seen >= budget) else "fail"


class DataClassResult(_Part):
    """What was recovered of one data class of a service, in rows, or of one volume, in files."""

    name: Name
    service: str = Field(default="", description="Name of the service; empty in records of earlier versions.")
    verdict: Verdict
    rows_expected: NonNegativeInt
    rows_found: NonNegativeInt
    detail: str = ""

    @property
    def title(self) -> str:
        """Return service and data class, for a person."""
        return f"{self.service}: {self.name}" if self.service else self.name


class PortState(_Part):
    """The state of a port of the machine, seen from one side at one moment: `rehearsal/exposure.py`."""

    moment: Name = Field(description="Such as `during a converge`, `after a reboot`.")
    side: Literal["public", "operator", "vpn", "machine"]
    families: str = Field(description="`IPv4`, `IPv6`, or both.")
    port: Name = Field(description="Such as `22/tcp`, `51820/udp`, or words for many.")
    what: Name = Field(description="The service behind it, or what was tried.")
    expected: Name = Field(description="`open`, `silent`, …")
    seen: Name
    ok: bool

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.ok != (self.expected == self.seen):
            raise ValueError(f"port {self.port}: expected {self.expected}, seen {self.seen}, ok {self.ok}")
        return self

    @property
    def reason(self) -> str:
        """Return one sentence on what is wrong."""
        side = {"machine": "on the machine", "vpn": "through the VPN"}.get(self.side, f"from the {self.side} side")
        return f"{self.port} ({self.what}) {side}, {self.moment}: expected {self.expected}, seen {self.seen}"


class Artifact(_Part):
    """An upstream file that was used, or that was missing."""

    name: Name
    version: str
    sha256: str | None = Field(pattern="^[0-9a-f]{64}$")
    origin: Literal["locked", "local", "missing"] = Field(
        description="locked: as in artifacts.lock. local: added manually. missing: not available."
    )


class Draft(_Span):
    """One run without its verdict. `conclude` turns it into a record."""

    schema_version: Literal[2] = SCHEMA_VERSION
    id: str = Field(pattern="^[0-9]{8}-[0-9]{6}-[0-9a-f]{8}$", description="UTC time of the start, and random digits.")
    kind: Kind
    git: Git
    controller: Controller
    target: Target
    group: Literal["lab", "production"] = Field(description="Which group_data was used.")
    runtime: Runtime | None = Field(None, description="What ran the service; null if nothing did.")
    overrides: list[Override] = []
    phases: list[Phase]
    components: list[Component] = []
    operations: list[Operation] = []
    checks: list[Check] = []
    exercised: Exercised
    gates: list[Gate] = []
    rto_seconds: NonNegativeFloat | None = Field(
        None, description="From the destruction until the public name answers through the ingress again."
    )
    rto_budget_seconds: NonNegativeFloat | None = None
    rpo_seconds: NonNegativeFloat | None = Field(
        None, description="From the last committed write that was recovered until the destruction."
    )
    rpo_budget_seconds: NonNegativeFloat | None = None
    data_classes: list[DataClassResult] = []
    exposure: list[PortState] = Field(default=[], description="What each side reached; empty if that was not tested.")
    versions: dict[str, str] = Field({}, description="Package or program, and its version.")
    artifacts: list[Artifact] = []

    @model_validator(mode="after")
    def _id_tells_the_time(self) -> Self:
        if not self.id.startswith(f"{self.started:%Y%m%d-%H%M%S}-"):
            raise ValueError(f"id {self.id} does not begin with the time of the start, {self.started}")
        return self

    @model_validator(mode="after")
    def _counts_what_was_left_out(self) -> Self:
        counted = {item.component for item in self.exercised.not_exercised}
        skipped = [component.name for component in self.components if not component.exercised]
        skipped += [check.component for check in self.checks if check.outcome == "not-exercised"]
        for name in skipped:
            if name not in counted:
                raise ValueError(f"{name} was not exercised, but is missing in exercised.not_exercised")
        if any(item.origin == "missing" for item in self.artifacts) and not self.exercised.not_exercised:
            raise ValueError("an artifact is missing, but exercised.not_exercised is empty")
        return self

    @property
    def all_gates(self) -> list[Gate]:
        """Return `gates`, with RTO and RPO in front if they have a budget."""
        objectives = [
            Gate.judge(name, budget=budget, seen=seen, unit="s")
            for name, seen, budget in (
                ("RTO", self.rto_seconds, self.rto_budget_seconds),
                ("RPO", self.rpo_seconds, self.rpo_budget_seconds),
            )
            if budget is not None
        ]
        return objectives + self.gates
