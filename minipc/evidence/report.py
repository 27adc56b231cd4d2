"""Render a record as a report: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime

import jinja2

from minipc.core.formatting import count, duration, plain, quantity, thousands, within
from minipc.core.paths import ROOT
from minipc.core.verdicts import SIGNS, words
from minipc.evidence.records import Check, Operation, Record, headline, shown_as

SLOWEST = 12
MOST_RUNS = 20
MOST_COLOURS = 7  # further phases share the colour of "other"
MOST_TICKS = 8
TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


def render(record: Record, history: Sequence[Record]) -> str:
    """Return the report of a record as an HTML page.

    Args:
        history: earlier records, of any kind; those of the record's kind are shown as the trend.
    """
    runs = runs_to_show(record, history)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            record=record,
            headline=headline(record),
            look=shown_as(record),
            ticks=ticks(record.seconds),
            rows=_operations_by_component(record),
            runs=runs,
            legend=legend(runs),
            checks=_checks_by_component(record),
            failed_checks=[check for check in record.checks if check.outcome == "failed"],
            slowest=sorted(record.operations, key=lambda operation: -operation.seconds)[:SLOWEST],
            seconds_of_operations=sum(operation.seconds for operation in record.operations),
        )
    )


def runs_to_show(record: Record, history: Sequence[Record]) -> list[Record]:
    """Return the record and up to 19 earlier records of its kind, oldest first."""
    earlier = {
        other.id: other
        for other in history
        if other.kind == record.kind and other.id != record.id and other.started <= record.started
    }
    ordered = sorted(earlier.values(), key=lambda other: (other.started, other.id))
    return [*ordered, record][-MOST_RUNS:]


def legend(runs: Sequence[Record]) -> list[str]:
    """Return the names of the phases in order, the current run's first; the shortest ones become `other`."""
    longest: dict[str, float] = {}
    for phase in (phase for run in reversed(runs) for phase in run.phases):
        longest[phase.name] = max(longest.get(phase.name, 0.0), phase.seconds)
    if len(longest) <= MOST_COLOURS:
        return list(longest)
    kept = sorted(longest, key=lambda name: -longest[name])[: MOST_COLOURS - 1]
    return [name for name in longest if name in kept] + ["other"]


def stacked(run: Record, names: Sequence[str]) -> list[tuple[int, str, float]]:
    """Return the phases of a run as colour (an index), name and seconds; phases that are not in `names` together."""
    seconds = dict.fromkeys(names, 0.0)
    for phase in run.phases:
        seconds[phase.name if phase.name in seconds else "other"] += phase.seconds
    return [(colour, name, value) for colour, (name, value) in enumerate(seconds.items()) if value]


def place(record: Record, started: datetime, seconds: float) -> str:
    """Return the CSS that places a span of time on the time axis of a run."""
    left = 100 * (started - record.started).total_seconds() / max(record.seconds, 0.001)
    return f"left:{left:.2f}%;width:{width(seconds, record.seconds)}%"


def width(part: float, whole: float) -> str:
    """Return a share in percent, at most 100."""
    return f"{min(100 * part / max(whole, 0.001), 100):.2f}"


def ticks(seconds: float) -> list[tuple[str, str]]:
    """Return round moments on an axis of that length: position in percent, and label."""
    step = next((step for step in TICK_STEPS_S if seconds / step <= MOST_TICKS), max(seconds / MOST_TICKS, 1))
    moments = [number * step for number in range(int(seconds / step + 1e-9) + 1)]
    return [(width(moment, seconds), duration(moment) if moment else "0") for moment in moments]


def _operations_by_component(record: Record) -> list[tuple[str, list[Operation], Operation]]:
    """Return each component with its operations and the one to name: the first that failed, else the slowest."""
    groups: dict[str, list[Operation]] = {}
    for operation in record.operations:
        groups.setdefault(operation.component, []).append(operation)
    return [
        (name, operations, max(operations, key=lambda operation: (not operation.ok, operation.seconds)))
        for name, operations in groups.items()
    ]


def _checks_by_component(record: Record) -> dict[str, list[Check]]:
    """Return components with failures first; within each, failures first, then what was not exercised."""
    order = {"failed": 0, "not-exercised": 1, "passed": 2}
    groups: dict[str, list[Check]] = {}
    for check in sorted(record.checks, key=lambda check: order[check.outcome]):
        groups.setdefault(check.component, []).append(check)
    return groups


def _look(operation: Operation) -> str:
    """Return the outcome of an operation, which is also its CSS class."""
    if not operation.ok:
        return "failed"
    return "changed" if operation.changed else "unchanged"


def _without_controls(value: object) -> object:
    """Remove colour codes and control characters from every text that a template prints."""
    return plain(value) if type(value) is str else value


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates" / "report"),
        autoescape=True,  # for every template, whatever its name ends in
        finalize=_without_controls,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "duration": duration,
        "quantity": quantity,
        "thousands": thousands,
        "words": words,
        "look": _look,
    }
    functions = (count, within, place, width, stacked, shown_as)
    environment.globals |= {"SIGNS": SIGNS} | {function.__name__: function for function in functions}
    return environment
