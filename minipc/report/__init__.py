"""The report: one record as one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jinja2

from minipc.paths import ROOT
from minipc.records import Check, Operation, Record, headline, shown_as
from minipc.report.timeline_chart import timeline_chart
from minipc.report.trend_chart import phases_chart, rto_chart, runs_to_show
from minipc.verdicts import SIGNS, words
from minipc.wording import count, duration, plain, quantity, thousands, within

SLOWEST = 12


def render(record: Record, history: Sequence[Record]) -> str:
    """The report of one record as a self-contained HTML page.

    Args:
        history: earlier records, of any kind; those of the record's kind make up the trend.
    """
    runs = runs_to_show(record, history)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            record=record,
            headline=headline(record),
            look=shown_as(record),
            timeline=timeline_chart(record),
            runs=runs,
            trend=phases_chart(runs) if len(runs) > 1 else None,
            rto_trend=rto_chart(runs),
            checks=_checks_by_component(record),
            failed_checks=[check for check in record.checks if check.outcome == "failed"],
            slowest=sorted(record.operations, key=lambda operation: -operation.seconds)[:SLOWEST],
            seconds_of_operations=sum(operation.seconds for operation in record.operations),
        )
    )


def _checks_by_component(record: Record) -> dict[str, list[Check]]:
    """Components with failures first; within each, failures first, then what was not exercised."""
    order = {"failed": 0, "not-exercised": 1, "passed": 2}
    groups: dict[str, list[Check]] = {}
    for check in sorted(record.checks, key=lambda check: order[check.outcome]):
        groups.setdefault(check.component, []).append(check)
    return groups


def _operation_word(operation: Operation) -> str:
    if not operation.ok:
        return f"{SIGNS['failed']} failed"
    return "changed" if operation.changed else "unchanged"


def _without_controls(value: object) -> object:
    """Applied to whatever a template prints: text from a machine loses its colour codes and control characters."""
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
        "operation_word": _operation_word,
    }
    environment.globals |= {"SIGNS": SIGNS, "count": count, "within": within}
    return environment
