"""What a record consists of. Strict: unknown fields, wrong types and contradictions are refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    model_validator,
)

from minipc.verdicts import Outcome, Verdict
from minipc.wording import quantity

Kind = Literal["rehearsal", "drill", "rebuild", "converge", "benchmark", "test-long", "separation", "fault", "faults"]


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset():
        raise ValueError("must be in UTC")
    return moment


Utc = Annotated[AwareDatetime, AfterValidator(_utc)]
Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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
    """The machine it was done to."""

    backend: str = Field(description="nspawn, qemu, or hardware.")
    name: str
    os: str
    kernel: str
    cpus: NonNegativeInt
    memory_mb: NonNegativeInt


class Override(_Part):
    """A production value that this run replaced, because it ran somewhere else."""

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
        """How long it took."""
        return (self.ended - self.started).total_seconds()


class Phase(_Span):
    """One step of the procedure."""

    name: Name
    verdict: Verdict
    detail: str = ""


class Operation(_Part):
    """One pyinfra operation."""

    phase: str = Field(description="The phase it ran in; empty when outside any.")
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
    """What became of one component: its converge and its verification, summed up."""

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
    reason: str = Field("", description="Why the verdict is anything else than pass.")

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
    """Something this run could not try. Loud, counted, never green."""

    what: Name
    why: Name
    component: str = ""


class Exercised(_Part):
    """How much of what there is to try was tried."""

    done: NonNegativeInt
    total: NonNegativeInt
    not_exercised: list[NotExercised] = []

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.done + len(self.not_exercised) != self.total:
            skipped = len(self.not_exercised)
            raise ValueError(f"{self.done} exercised and {skipped} not exercised don't add up to {self.total}")
        return self

    @property
    def reasons(self) -> list[tuple[str, str, list[str]]]:
        """For people: component, reason, all that was not exercised there for it; in the order of the first ones."""
        found: dict[tuple[str, str], list[str]] = {}
        for gap in self.not_exercised:
            found.setdefault((gap.component, gap.why), []).append(gap.what)
        return [(component, why, whats) for (component, why), whats in found.items()]


class Gate(_Part):
    """A figure with a budget. Made by `Gate.judge`."""

    name: Name
    budget: float
    unit: str = Field(description="`s` for seconds, else a word such as `changes`; empty for a bare number.")
    bound: Literal["at-most", "at-least"] = "at-most"
    seen: float | None = Field(description="null when it could not be measured.")
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
        """The gate with its verdict: the budget itself still passes; None could not be verified."""
        verdict = _judge(budget, seen, bound)
        return cls(name=name, budget=budget, unit=unit, bound=bound, seen=seen, verdict=verdict)

    @property
    def reason(self) -> str:
        """One sentence on why it is not a pass; empty when it is."""
        if self.verdict == "pass":
            return ""
        seen = "could not be measured" if self.seen is None else quantity(self.seen, self.unit)
        return f"{self.name}: {seen}, the budget is {self.limit}"

    @property
    def limit(self) -> str:
        """The budget in words: `at most 4 h 00 min`."""
        return f"{self.bound.replace('-', ' ')} {quantity(self.budget, self.unit)}"


def _judge(budget: float, seen: float | None, bound: str) -> Verdict:
    if seen is None:
        return "could-not-verify"
    return "pass" if (seen <= budget if bound == "at-most" else seen >= budget) else "fail"


class DataClassResult(_Part):
    """What came back of one class of data."""

    name: Name
    verdict: Verdict
    rows_expected: NonNegativeInt
    rows_found: NonNegativeInt
    detail: str = ""


class Door(_Part):
    """A port of the machine as one side saw it, at one moment: `minipc prove separation`."""

    moment: Name = Field(description="Such as `during a converge`, `after a reboot`.")
    side: Literal["public", "operator", "vpn", "machine"]
    families: str = Field(description="`IPv4`, `IPv6`, or both.")
    port: Name = Field(description="Such as `22/tcp`, `51820/udp`, or words for many.")
    what: Name = Field(description="What is behind it, or what was tried.")
    expected: Name = Field(description="`open`, `silent`, …")
    seen: Name
    ok: bool

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.ok != (self.expected == self.seen):
            raise ValueError(f"door {self.port}: expected {self.expected}, seen {self.seen}, ok {self.ok}")
        return self

    @property
    def reason(self) -> str:
        """One sentence on what is wrong."""
        side = {"machine": "on the machine", "vpn": "through the VPN"}.get(self.side, f"from the {self.side} side")
        return f"{self.port} ({self.what}) {side}, {self.moment}: expected {self.expected}, seen {self.seen}"


class Artifact(_Part):
    """An upstream file that was used, or that could not be had."""

    name: Name
    version: str
    sha256: str | None = Field(pattern="^[0-9a-f]{64}$")
    origin: Literal["locked", "local", "missing"] = Field(
        description="locked: as in artifacts.lock. local: put in by hand. missing: could not be had."
    )


class Draft(_Span):
    """One run, before judgement: all of a record but its verdict. `conclude` makes the record."""

    schema_version: Literal[1] = 1
    id: str = Field(pattern="^[0-9]{8}-[0-9]{6}-[0-9a-f]{8}$", description="UTC time of the start, and chance.")
    kind: Kind
    git: Git
    controller: Controller
    target: Target
    group: Literal["lab", "production"] = Field(description="Whose group_data was used.")
    runtime: Literal["k3s", "stand-in"] | None = Field(
        None, description="What ran the workload; null when nothing did."
    )
    overrides: list[Override] = []
    phases: list[Phase]
    components: list[Component] = []
    operations: list[Operation] = []
    checks: list[Check] = []
    exercised: Exercised
    gates: list[Gate] = []
    rto_seconds: NonNegativeFloat | None = Field(
        None, description="From the destruction until the public name answers through the edge again."
    )
    rto_budget_seconds: NonNegativeFloat | None = None
    rpo_seconds: NonNegativeFloat | None = Field(
        None, description="From the last committed write that came back until the destruction."
    )
    rpo_budget_seconds: NonNegativeFloat | None = None
    data_classes: list[DataClassResult] = []
    doors: list[Door] = Field([], description="What each side reached; empty when that was not proven.")
    versions: dict[str, str] = Field({}, description="Package or program, and its version.")
    artifacts: list[Artifact] = []

    @model_validator(mode="after")
    def _id_tells_the_time(self) -> Self:
        if not self.id.startswith(f"{self.started:%Y%m%d-%H%M%S}-"):
            raise ValueError(f"id {self.id} doesn't begin with the time of the start, {self.started}")
        return self

    @model_validator(mode="after")
    def _counts_what_was_left_out(self) -> Self:
        counted = {item.component for item in self.exercised.not_exercised}
        skipped = [component.name for component in self.components if not component.exercised]
        skipped += [check.component for check in self.checks if check.outcome == "not-exercised"]
        for name in skipped:
            if name not in counted:
                raise ValueError(f"{name} was not exercised, but exercised.not_exercised doesn't say so")
        if any(item.origin == "missing" for item in self.artifacts) and not self.exercised.not_exercised:
            raise ValueError("an artifact is missing, but exercised.not_exercised is empty")
        return self

    @property
    def all_gates(self) -> list[Gate]:
        """`gates`, with RTO and RPO in front when they have a budget."""
        objectives = [
            Gate.judge(name, budget=budget, seen=seen, unit="s")
            for name, seen, budget in (
                ("RTO", self.rto_seconds, self.rto_budget_seconds),
                ("RPO", self.rpo_seconds, self.rpo_budget_seconds),
            )
            if budget is not None
        ]
        return objectives + self.gates
