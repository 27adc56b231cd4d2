"""Where everything goes in the trend charts: time per phase of past runs, stacked, and their RTO.

Geometry only, in SVG user units; how it looks is up to templates/report/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minipc.records import Record, shown_as
from minipc.report.axis import Tick, ticks, unit_of
from minipc.verdicts import SIGNS, words
from minipc.wording import duration

WIDTH = 1040.0
LEFT = 56.0
RIGHT = 12.0
TOP = 42.0
PLOT = 190.0
BELOW = 34.0
MOST_RUNS = 20
MOST_COLOURS = 7  # phases beyond these share the colour of "other"
WIDEST_COLUMN = 44.0


@dataclass(frozen=True)
class Block:
    """One phase of one run. `colour` is an index: the CSS class `cN`, and the order in the legend."""

    y: float
    height: float
    colour: int
    title: str


@dataclass(frozen=True)
class Column:
    """One run."""

    x: float
    width: float
    top: float
    blocks: list[Block]
    sign: str
    look: str
    date: str
    title: str

    @property
    def middle(self) -> float:
        """Where its labels are centred."""
        return self.x + self.width / 2


@dataclass(frozen=True)
class Point:
    """The RTO of one run."""

    x: float
    y: float
    label: str
    date: str
    title: str


@dataclass(frozen=True)
class TrendChart:
    """A chart, ready to be drawn: columns, or points joined by a line, or neither when there is nothing."""

    width: float
    height: float
    left: float
    right: float
    base: float
    unit: str
    ticks: list[Tick]
    columns: list[Column]
    legend: list[str]
    points: list[Point]
    budget_y: float | None
    summary: str


def runs_to_show(record: Record, history: Sequence[Record]) -> list[Record]:
    """The record and the ones of its kind before it, oldest first; the latest twenty."""
    earlier = {
        other.id: other
        for other in history
        if other.kind == record.kind and other.id != record.id and other.started <= record.started
    }
    ordered = sorted(earlier.values(), key=lambda other: (other.started, other.id))
    return [*ordered, record][-MOST_RUNS:]


def phases_chart(runs: Sequence[Record]) -> TrendChart:
    """Columns of stacked phases, one per run, the last one being the current run."""
    legend = _legend(runs)
    most = max(max(run.seconds, 0.001) for run in runs)
    columns = [_column(run, index, runs, legend, most) for index, run in enumerate(runs)]
    return _chart(
        most,
        columns=columns,
        legend=legend,
        summary=f"Time of the last {len(runs)} runs, from {duration(min(run.seconds for run in runs))} "
        f"to {duration(most)}; this one took {duration(runs[-1].seconds)}.",
    )


def rto_chart(runs: Sequence[Record]) -> TrendChart | None:
    """RTO per run, and the budget where it is near enough to be seen; None when fewer than two were measured."""
    measured = [(index, run, run.rto_seconds) for index, run in enumerate(runs) if run.rto_seconds is not None]
    if len(measured) < 2:
        return None
    most = max(max(rto, 0.001) for _, _, rto in measured)
    budget = runs[-1].rto_budget_seconds
    near = budget is not None and budget <= 3 * most
    if budget is not None and near:
        most = max(most, budget * 1.05)
    points = []
    for index, run, rto in measured:
        x, width = _slot(index, len(runs))
        title = f"{_date(run)}: RTO {duration(rto)}"
        points.append(Point(x + width / 2, _y(rto, most), duration(rto), _date_label(runs, index), title))
    return _chart(
        most,
        points=points,
        budget_y=_y(budget, most) if budget is not None and near else None,
        summary=f"RTO of the last {len(points)} runs that measured it; this budget is "
        f"{duration(budget) if budget is not None else 'not set'}.",
    )


def _chart(
    most: float,
    *,
    summary: str,
    columns: Sequence[Column] = (),
    legend: Sequence[str] = (),
    points: Sequence[Point] = (),
    budget_y: float | None = None,
) -> TrendChart:
    return TrendChart(
        width=WIDTH,
        height=TOP + PLOT + BELOW,
        left=LEFT,
        right=WIDTH - RIGHT,
        base=TOP + PLOT,
        unit=unit_of(most),
        ticks=[Tick(TOP + PLOT - tick.position, tick.label) for tick in ticks(most, PLOT, most=5)],
        columns=list(columns),
        legend=list(legend),
        points=list(points),
        budget_y=budget_y,
        summary=summary,
    )


def _legend(runs: Sequence[Record]) -> list[str]:
    """Phase names in order of appearance, the current run's first; the shortest ones become `other`."""
    names = list(dict.fromkeys(phase.name for run in reversed(runs) for phase in run.phases))
    if len(names) <= MOST_COLOURS:
        return names
    longest = {
        name: max((phase.seconds for run in runs for phase in run.phases if phase.name == name), default=0.0)
        for name in names
    }
    kept = set(sorted(names, key=lambda name: longest[name], reverse=True)[: MOST_COLOURS - 1])
    return [name for name in names if name in kept] + ["other"]


def _column(run: Record, index: int, runs: Sequence[Record], legend: Sequence[str], most: float) -> Column:
    seconds = dict.fromkeys(legend, 0.0)
    for phase in run.phases:
        seconds[phase.name if phase.name in seconds else "other"] += phase.seconds
    blocks = []
    bottom = TOP + PLOT
    for colour, (name, time) in enumerate(seconds.items()):
        height = time / most * PLOT
        bottom -= height
        if time:
            blocks.append(Block(bottom, height, colour, f"{_date(run)}, {name}: {duration(time)}"))
    x, width = _slot(index, len(runs))
    return Column(
        x=x,
        width=width,
        top=bottom,
        blocks=blocks,
        sign=SIGNS[run.verdict],
        look=shown_as(run),
        date=_date_label(runs, index),
        title=f"{_date(run)}: {words(run.verdict)}, {duration(run.seconds)}",
    )


def _slot(index: int, number: int) -> tuple[float, float]:
    """Left edge and width of the column of a run."""
    slot = (WIDTH - LEFT - RIGHT) / max(number, 6)
    width = min(slot * 0.62, WIDEST_COLUMN)
    return LEFT + index * slot + (slot - width) / 2, width


def _y(seconds: float, most: float) -> float:
    return TOP + PLOT - seconds / most * PLOT


def _date_label(runs: Sequence[Record], index: int) -> str:
    """The date below a run; every other one stays empty when they stand close."""
    from_last = len(runs) - 1 - index
    if from_last == 0:
        return "this run"
    return _date(runs[index]) if len(runs) <= 12 or from_last % 2 == 0 else ""


def _date(run: Record) -> str:
    return f"{run.started.day} {run.started:%b}"
