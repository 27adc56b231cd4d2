"""What a question in `playbooks/checks.yaml` may say. The file itself explains the fields to whoever edits it."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Priority = Literal["P1", "P2", "P3"]
Layer = Literal["edge", "runtime", "data", "collection", "client", "machine", "recovery"]
Unit = Literal["boolean", "seconds", "ratio", "count", "per minute"]

_THRESHOLD = re.compile(r"^(==|!=|>=|<=|>|<) (-?\d+(?:\.\d+)?)$")
_DURATION = re.compile(r"^(\d+)([smhd])$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    """`90s`, `5m`, `2h`, `35d` in seconds.

    Raises:
        ValueError: it is none of these.
    """
    found = _DURATION.match(duration)
    if not found:
        raise ValueError("not a duration; allowed: a whole number and one of s, m, h, d, such as 5m")
    return int(found[1]) * _SECONDS[found[2]]


def _duration(value: str) -> str:
    seconds(value)
    return value


Duration = Annotated[str, AfterValidator(_duration)]
Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")]
Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Check(Strict):
    """One question.

    Attributes:
        id: its name everywhere: label `check` of the alert, anchor in the runbook.
        question: as a person asks it; "yes" is good.
        layer: where it is broken when the answer is no.
        expression: PromQL; one series for each thing that is asked about. None: only `direct` can answer.
        each: the label that tells the series apart; None when there is only one.
        bad_when: comparison that makes the answer a no.
        lasting: for how long, before it is an alert.
        unit: of the value.
        alert: name of the alert.
        priority: how soon somebody must look (see `Checks.sla`).
        within: a fault is an alert after this time, probing and waiting included.
        meaning: what users or data suffer, one sentence.
        next: the first command, and what to look for; `{each}` is the thing that fails.
        direct: shell that answers on the machine without Prometheus: lines `VALUE` or `NAME VALUE`.
        asked_from: where `direct` runs: on the machine, or outside, where users are.
        explained_by: checks that make this one fail: it is then silent, and triage blames them.
        no_data_after: an expression without any series is an alert after this time; None: that is fine.
        runbook: anchor in the triage chapter.
    """

    id: Slug
    question: Annotated[str, Field(pattern=r"\?$")]
    layer: Layer
    expression: Text | None
    each: Annotated[str, Field(pattern=r"^[a-z_]+$")] | None = None
    bad_when: Annotated[str, Field(pattern=_THRESHOLD.pattern)]
    lasting: Duration = "0s"
    unit: Unit
    alert: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]+$")] | None
    priority: Priority
    within: Duration | None = None
    meaning: Text
    next: Text
    direct: Text | None = None
    asked_from: Literal["machine", "outside"] = "machine"
    explained_by: list[Slug] = []
    no_data_after: Duration | None = "10m"

    @model_validator(mode="after")
    def _an_alert_needs_an_expression(self) -> Self:
        if (self.alert is None) != (self.expression is None):
            raise ValueError("`alert` and `expression` go together: give both or set both to null")
        if self.alert and not self.within:
            raise ValueError("an alert needs `within`: how soon after the fault it fires")
        if self.expression is None and self.direct is None:
            raise ValueError("neither `expression` nor `direct`: nothing can answer it")
        return self

    @property
    def runbook(self) -> str:
        """Anchor of its section in the triage chapter."""
        return self.id

    @property
    def placeholder(self) -> str:
        """Stands for the thing that fails where nothing has."""
        name = (self.each or "name").upper()
        return f"/{name}" if self.each in ("path", "mountpoint") else name

    @property
    def operator(self) -> str:
        """The comparison of `bad_when`."""
        return self.bad_when.split()[0]

    @property
    def threshold(self) -> float:
        """The number of `bad_when`."""
        return float(self.bad_when.split()[1])

    def is_bad(self, value: float) -> bool:
        """Whether this value makes the answer a no."""
        match self.operator:
            case "==":
                return value == self.threshold
            case "!=":
                return value != self.threshold
            case ">":
                return value > self.threshold
            case ">=":
                return value >= self.threshold
            case "<":
                return value < self.threshold
            case _:
                return value <= self.threshold


class Checks(Strict):
    """All questions, in the order of asking.

    Attributes:
        sla: priority -> by when somebody looks.
    """

    sla: dict[Priority, Text]
    checks: Annotated[list[Check], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique_and_known(self) -> Self:
        for kind in ("id", "alert"):
            names = [name for check in self.checks if (name := getattr(check, kind))]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{kind} {', '.join(sorted(twice))} is used twice")
        known = [check.id for check in self.checks]
        for check in self.checks:
            unknown = [name for name in check.explained_by if name not in known]
            if unknown:
                raise ValueError(f"{check.id}: explained_by {', '.join(unknown)}: there is no such check")
            if self._explains_itself(check.id):
                raise ValueError(f"{check.id}: explained_by goes in a circle")
        missing = {"P1", "P2", "P3"} - set(self.sla)
        if missing:
            raise ValueError(f"sla lacks {', '.join(sorted(missing))}")
        return self

    def _explains_itself(self, start: str) -> bool:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in self.named(todo.pop()).explained_by:
                if name == start:
                    return True
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        return False

    def named(self, name: str) -> Check:
        """The check of that id. Raises KeyError."""
        for check in self.checks:
            if check.id == name:
                return check
        raise KeyError(name)

    def explanations(self, name: str) -> set[str]:
        """Everything that explains a check, directly or through others."""
        found: set[str] = set()
        todo = [name]
        while todo:
            new = set(self.named(todo.pop()).explained_by) - found
            found |= new
            todo += new
        return found
