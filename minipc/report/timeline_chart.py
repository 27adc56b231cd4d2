"""Where everything goes in the timeline chart: phases, then components with their operations, on one time axis.

Geometry only, in SVG user units; how it looks is up to templates/report/.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from minipc.records import Operation, Phase, Record
from minipc.report.axis import Tick, ticks, unit_of
from minipc.verdicts import SIGNS, words
from minipc.wording import duration, one_line, within

WIDTH = 1040.0
LEFT = 132.0
RIGHT = 12.0
TOP = 30.0
PHASE_ROW = 24.0
COMPONENT_ROW = 20.0
GAP = 16.0
LETTER = 5.9  # width of an average letter at the chart's 11 px; generous, so that estimates err on the safe side
LEAST_BAR = 1.0  # a shorter bar would be invisible
SLOW_SHARE = 0.01  # an operation is labelled when it takes at least this share of the run …
SLOW_SECONDS = 1.0  # … and at least so long


@dataclass(frozen=True)
class Bar:
    """A span of time. `look` is a CSS class."""

    x: float
    width: float
    look: str
    title: str


@dataclass(frozen=True)
class Note:
    """Words beside, or inside, a bar."""

    x: float
    text: str
    anchor: str
    inside: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the chart. `y` is its top."""

    label: str
    y: float
    height: float
    bars: list[Bar]
    note: Note | None


@dataclass(frozen=True)
class TimelineChart:
    """The chart, ready to be drawn."""

    width: float
    height: float
    left: float
    right: float
    top: float
    unit: str
    ticks: list[Tick]
    phases: list[Row]
    components: list[Row]
    bands: list[Bar]
    summary: str


def timeline_chart(record: Record) -> TimelineChart:
    """The chart of one record. Bars are placed in proportion to time between the run's start and end."""
    span = max(record.seconds, 0.001)
    scale = _Scale(record.started, span)
    phases = [_phase_row(phase, index, scale) for index, phase in enumerate(record.phases)]
    top_of_components = TOP + len(phases) * PHASE_ROW + GAP
    by_component: dict[str, list[Operation]] = {}
    for operation in record.operations:
        by_component.setdefault(operation.component, []).append(operation)
    components = [
        _component_row(name, operations, top_of_components + index * COMPONENT_ROW, scale)
        for index, (name, operations) in enumerate(by_component.items())
    ]
    bottom = top_of_components + len(components) * COMPONENT_ROW if components else top_of_components - GAP
    return TimelineChart(
        width=WIDTH,
        height=bottom + 8,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        unit=unit_of(span),
        ticks=[Tick(LEFT + tick.position, tick.label) for tick in ticks(span, WIDTH - LEFT - RIGHT, most=10)],
        phases=phases,
        components=components,
        bands=[scale.bar(phase.started, phase.seconds, "band", "") for phase in record.phases[::2]],
        summary=_summary(record),
    )


@dataclass(frozen=True)
class _Scale:
    start: datetime
    span: float

    def x(self, moment: datetime) -> float:
        return LEFT + (moment - self.start).total_seconds() / self.span * (WIDTH - LEFT - RIGHT)

    def bar(self, started: datetime, seconds: float, look: str, title: str) -> Bar:
        x = self.x(started)
        width = self.x(started + timedelta(seconds=seconds)) - x
        return Bar(x, max(width, LEAST_BAR), look, title)


def _phase_row(phase: Phase, index: int, scale: _Scale) -> Row:
    bar = scale.bar(
        phase.started,
        phase.seconds,
        f"phase {phase.verdict}",
        f"{phase.name}: {words(phase.verdict)}, {duration(phase.seconds)}",
    )
    sign = "" if phase.verdict == "pass" else f"{SIGNS[phase.verdict]} {words(phase.verdict)}, "
    text = f"{sign}{duration(phase.seconds)}"
    note = _beside(text, [bar], bar, inside=True)
    return Row(_label(phase.name), TOP + index * PHASE_ROW, PHASE_ROW, [bar], note)


def _component_row(name: str, operations: list[Operation], y: float, scale: _Scale) -> Row:
    bars = [
        scale.bar(operation.started, operation.seconds, f"operation {_look(operation)}", _title(operation))
        for operation in operations
    ]
    failed = next((index for index, operation in enumerate(operations) if not operation.ok), None)
    chosen = failed
    if chosen is None:
        slowest = max(range(len(operations)), key=lambda index: operations[index].seconds)
        if operations[slowest].seconds >= max(SLOW_SECONDS, SLOW_SHARE * scale.span):
            chosen = slowest
    note = None
    if chosen is not None:
        operation = operations[chosen]
        sign = f"{SIGNS['failed']} failed: " if not operation.ok else ""
        text = f"{sign}{within(name, operation.name)}, {duration(operation.seconds)}"
        note = _beside(text, bars, bars[chosen])
    return Row(_label(name), y, COMPONENT_ROW, bars, note)


def _look(operation: Operation) -> str:
    if not operation.ok:
        return "failed"
    return "changed" if operation.changed else "unchanged"


def _title(operation: Operation) -> str:
    outcome = _look(operation)
    return f"{operation.name}: {outcome}, {duration(operation.seconds)}"


def _beside(text: str, bars: list[Bar], target: Bar, *, inside: bool = False) -> Note | None:
    """The text where it covers no bar of the row: inside its bar, right of the bars around it, left of them."""
    needed = len(text) * LETTER + 10
    if inside and target.width >= needed:
        return Note(target.x + 6, text, "start", inside=True)
    begin, end = _cluster(bars, target)
    next_begin = min((bar.x for bar in bars if bar.x > end), default=WIDTH - RIGHT)
    if next_begin - end >= needed:
        return Note(end + 6, text, "start")
    last_end = max((bar.x + bar.width for bar in bars if bar.x + bar.width < begin), default=LEFT)
    if begin - last_end >= needed:
        return Note(begin - 6, text, "end")
    return None  # no room: the bar's own title and the table of slow operations still tell


def _cluster(bars: list[Bar], target: Bar) -> tuple[float, float]:
    """From where to where bars follow each other closely around the target."""
    close = 12.0
    begin, end = target.x, target.x + target.width
    ordered = sorted(bars, key=lambda bar: bar.x)
    for bar in ordered:
        if bar.x >= begin and bar.x - end <= close:
            end = max(end, bar.x + bar.width)
    for bar in reversed(ordered):
        if bar.x <= begin and begin - (bar.x + bar.width) <= close:
            begin = min(begin, bar.x)
    return begin, end


def _label(name: str) -> str:
    text = one_line(name)
    most = int((LEFT - 12) / (LETTER + 0.4))
    return text if len(text) <= most else text[: most - 1] + "…"


def _summary(record: Record) -> str:
    parts = [f"{phase.name} {duration(phase.seconds)}" for phase in record.phases]
    return f"{duration(record.seconds)} in all: {', '.join(parts)}."
