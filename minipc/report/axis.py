"""Round steps for a time axis, and the words beside its ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True)
class Tick:
    """One mark: where it is (in the chart's units) and what stands beside it."""

    position: float
    label: str


def step_for(span: float, most: int) -> float:
    """The smallest round step, in seconds, that divides the span into at most so many parts."""
    for step in _STEPS:
        if span / step <= most:
            return step
    return math.ceil(span / most / _STEPS[-1]) * _STEPS[-1]


def tick_label(seconds: float, span: float) -> str:
    """`20 s` on an axis shorter than a minute, else `m:ss` up to an hour, else `h:mm`; see `unit_of`."""
    if span < 60:
        return f"{seconds:g} s"
    whole = round(seconds)
    if span < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}"


def unit_of(span: float) -> str:
    """How to read the labels of an axis of so many seconds."""
    if span < 60:
        return "seconds"
    return "minutes:seconds" if span < 3600 else "hours:minutes"


def ticks(span: float, length: float, *, most: int) -> list[Tick]:
    """Ticks from 0 to the span (seconds), placed along the length."""
    step = step_for(span, most)
    marks = [index * step for index in range(int(span / step + 1e-9) + 1)]
    return [Tick(mark / span * length, tick_label(mark, span)) for mark in marks]
