"""pytest plugin that writes one event for each check of `tests/verify`.

The live display, the record and the report are all made from these events.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

from minipc.core.variables import EVENTS_VARIABLE
from minipc.core.verdicts import Outcome
from minipc.evidence.event_stream import CheckEnd, EventWriter, Plan

_OUTCOMES: dict[str, Outcome] = {"passed": "passed", "failed": "failed", "skipped": "not-exercised"}
# Removed from the environment: a process that a check starts must not write events into this run.
_events = os.environ.pop(EVENTS_VARIABLE, "")
_writer = EventWriter(_events) if _events else None
_names: dict[str, str] = {}
_setup_seconds: dict[str, float] = {}
# Why a check failed that is repeated.
_first_failures: dict[str, str] = {}


def component_of(nodeid: str) -> str:
    """Return the component of a check: `tests/verify/test_redis.py::test_x[y]` belongs to `redis`."""
    return Path(nodeid.split("::")[0]).stem.removeprefix("test_")


def check_name(item: pytest.Item) -> str:
    """Return the name of a check as reports show it: the first line of its docstring, and its parameters.

    A check without a docstring is named after its function.
    """
    base, _, parameters = item.name.partition("[")
    lines = (inspect.getdoc(getattr(item, "obj", None)) or "").splitlines()
    sentence = lines[0].removesuffix(".") if lines else base.removeprefix("test_").replace("_", " ")
    parts = [part for part in parameters.removesuffix("]").split("-") if part and "ssh://" not in part]
    return f"{sentence} ({'-'.join(parts)})" if parts else sentence


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write how many checks will run, and remember their names."""
    _names.update((item.nodeid, check_name(item)) for item in session.items)
    if _writer and session.items:
        components = dict.fromkeys(component_of(item.nodeid) for item in session.items)
        _writer.write(Plan(operations=len(session.items), components=tuple(components)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write one event for each check: for its call, or for a setup that failed or skipped.

    A check that failed and is repeated gets its event from the second attempt.
    """
    if report.when == "setup":
        _setup_seconds[report.nodeid] = report.duration
    if str(report.outcome) == "rerun":  # pytest-rerunfailures
        _first_failures[report.nodeid] = _message(report)
        return
    if not _writer or not (report.when == "call" or (report.when == "setup" and report.outcome != "passed")):
        return
    seconds = report.duration + (_setup_seconds.get(report.nodeid, 0) if report.when == "call" else 0)
    _writer.write(
        CheckEnd(
            component=component_of(report.nodeid),
            name=_names[report.nodeid],
            outcome=_OUTCOMES[report.outcome],
            seconds=round(seconds, 4),
            message=_message(report),
        )
    )


def _message(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        first = _first_failures.get(report.nodeid)
        return f"passed at the second attempt; the first said: {first}" if first else ""
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ").removeprefix("NOT EXERCISED: ")
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return "\n".join(line.removeprefix("E").strip() for line in lines[:8]) or report.longreprtext[-500:]
