"""Schema of `playbooks/checks.yaml` and of a service's own questions. The files explain the fields to their editors."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from minipc.core.strict import Strict

Priority = Literal["P1", "P2", "P3"]
Layer = Literal["edge", "runtime", "data", "collection", "client", "machine", "recovery"]
Subjects = Literal["ingress", "public", "page", "process", "metrics", "cron", "volume", "queue"]
"""What a question is asked about in every service: see `minipc.checks.subjects`."""
Unit = Literal["boolean", "seconds", "ratio", "count", "per minute"]

OWN_SECTION = "own-questions"
"""Anchor in the triage chapter of the questions and alerts from services' own files."""
_THRESHOLD = re.compile(r"^(==|!=|>=|<=|>|<) (-?\d+(?:\.\d+)?)$")
_DURATION = re.compile(r"^(\d+)([smhd])$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    """Return a duration such as `90s`, `5m`, `2h` or `35d` in seconds.

    Raises:
        ValueError: the text is not a duration.
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


class Check(Strict):
    """One question.

    Attributes:
        id: identifier: label `check` of the alert, anchor in the runbook.
        question: the question for people; "yes" is good.
        layer: the part of the system that is broken if the answer is no.
        expression: PromQL with one series for each measured thing. None: only `direct` can answer.
        each: the label that distinguishes the series; None if there is only one.
        per: asked for each of these in every service; the expression keeps the label `service`. None: about the
            machine.
        bad_when: comparison that makes the answer a no.
        lasting: how long the answer must be no before the alert fires.
        unit: unit of the value.
        alert: name of the alert.
        priority: how soon somebody must react (see `Checks.sla`).
        within: time from the fault to the alert, including probing and waiting.
        meaning: the effect on users or data, one sentence.
        next: the first command and what to look for; `{each}` is the thing that fails, `{service}` its service.
        direct: shell code that answers on the machine without Prometheus: lines `VALUE` or `NAME VALUE`.
        asked_from: where `direct` runs: on the machine, or outside, where users are.
        explained_by: checks whose failure makes this one fail: its alert is then suppressed and triage names them.
        no_data_after: time after which missing data is an alert; None: missing data is normal.
        owner: the service whose own file has the question; empty: playbooks/checks.yaml.
    """

    id: Slug
    question: Annotated[str, Field(pattern=r"\?$")]
    layer: Layer
    expression: Text | None
    each: Annotated[str, Field(pattern=r"^[a-z_]+$")] | None = None
    per: Subjects | None = None
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
    explained_by: list[Slug] = Field(default_factory=list)
    no_data_after: Duration | None = "10m"
    owner: str = ""

    @model_validator(mode="after")
    def _an_alert_needs_an_expression(self) -> Self:
        if (self.alert is None) != (self.expression is None):
            raise ValueError("`alert` and `expression` go together: give both or set both to null")
        if self.alert and not self.within:
            raise ValueError("an alert needs `within`: the time from the fault to the alert")
        if self.expression is None and self.direct is None:
            raise ValueError("neither `expression` nor `direct` is set: nothing can answer the question")
        return self

    @model_validator(mode="after")
    def _a_service_is_named(self) -> Self:
        if self.per and self.each != ("service" if self.per in ("ingress", "public", "queue") else "part"):
            raise ValueError("with `per`, `each` is the label service (ingress, public, queue) or part (SERVICE/NAME)")
        return self

    @property
    def runbook(self) -> str:
        """Return the anchor of its section in the triage chapter."""
        return OWN_SECTION if self.owner else self.id

    @property
    def of_services(self) -> bool:
        """Return True if each answer is about one service."""
        return bool(self.per or self.owner)

    def service_of(self, name: str) -> str:
        """Return the service that a reading of that name is about; empty if it is about the machine."""
        return self.owner or (name.split("/")[0].split(" ")[0] if self.per else "")

    def name_of(self, name: str) -> str:
        """Return the name of what a reading is about, with its service."""
        return "/".join(part for part in (self.owner, name) if part)

    @property
    def placeholder(self) -> str:
        """Return a placeholder for the thing that fails, for texts about no particular fault."""
        if self.each == "part":
            return "SERVICE/NAME"
        name = (self.each or "name").upper()
        return f"/{name}" if self.each in ("path", "mountpoint") else name

    @property
    def operator(self) -> str:
        """Return the comparison operator of `bad_when`."""
        return self.bad_when.split()[0]

    @property
    def threshold(self) -> float:
        """Return the number of `bad_when`."""
        return float(self.bad_when.split()[1])

    def is_bad(self, value: float) -> bool:
        """Return True if this value makes the answer a no."""
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


class OwnChecks(Strict):
    """The questions in a service's own file (`alerts.checks`)."""

    checks: Annotated[list[Check], Field(min_length=1)]

    @model_validator(mode="after")
    def _they_are_about_the_service(self) -> Self:
        for check in self.checks:
            if check.per or check.owner or check.asked_from == "outside":
                raise ValueError(f"{check.id}: per, owner and asked_from are for playbooks/checks.yaml only")
        return self


class Checks(Strict):
    """All questions, in the order in which they are asked.

    Attributes:
        sla: for each priority, how soon somebody must react.
    """

    sla: dict[Priority, Text]
    checks: Annotated[list[Check], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique_and_known(self) -> Self:
        for kind in ("id", "alert"):
            # Alerts of two services may have the same name; the label `service` distinguishes them.
            names = [f"{check.owner} {name}".strip() for check in self.checks if (name := getattr(check, kind))]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{kind} {', '.join(sorted(twice))} is used twice")
        known = [check.id for check in self.checks]
        for check in self.checks:
            unknown = [name for name in check.explained_by if name not in known]
            if unknown:
                raise ValueError(f"{check.id}: explained_by {', '.join(unknown)}: there is no such check")
            if self._explains_itself(check.id):
                raise ValueError(f"{check.id}: explained_by is circular")
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
        """Return the check with this id. Raise KeyError if there is none."""
        for check in self.checks:
            if check.id == name:
                return check
        raise KeyError(name)

    def explanations(self, name: str) -> set[str]:
        """Return the ids of all checks that explain this one, directly or through others."""
        found: set[str] = set()
        todo = [name]
        while todo:
            new = set(self.named(todo.pop()).explained_by) - found
            found |= new
            todo += new
        return found
