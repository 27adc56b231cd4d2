"""pytest plugin: each check of `tests/verify` becomes an event, so that display, record and report show the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minipc.timeline import CheckEnd, EventWriter, Plan
from minipc.variables import EVENTS_VARIABLE
from minipc.verdicts import Outcome

_OUTCOMES: dict[str, Outcome] = {"passed": "passed", "failed": "failed", "skipped": "not-exercised"}
# Taken out of the environment: what a test starts has events of its own, or none.
_events = os.environ.pop(EVENTS_VARIABLE, "")
_writer = EventWriter(_events) if _events else None
_setup_seconds: dict[str, float] = {}


def component_of(nodeid: str) -> str:
    """`tests/verify/test_redis.py::test_x[y]` belongs to `redis`."""
    return Path(nodeid.split("::")[0]).stem.removeprefix("test_")


def check_name(nodeid: str) -> str:
    """The check in words: `test_a_full_cache_evicts[ssh://m]` is `a full cache evicts`."""
    name = nodeid.split("::", 1)[1].removeprefix("test_")
    base, _, parameters = name.partition("[")
    kept = [part for part in parameters.rstrip("]").split("-") if part and "ssh://" not in part]
    return base.replace("_", " ") + (f" ({'-'.join(kept)})" if kept else "")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tells the display how many checks are ahead."""
    if _writer and session.items:
        components = dict.fromkeys(component_of(item.nodeid) for item in session.items)
        _writer.write(Plan(operations=len(session.items), components=tuple(components)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One event a check: of its call, or of a setup that failed or skipped."""
    if report.when == "setup":
        _setup_seconds[report.nodeid] = report.duration
    if not _writer or not (report.when == "call" or (report.when == "setup" and report.outcome != "passed")):
        return
    seconds = report.duration + (_setup_seconds.get(report.nodeid, 0) if report.when == "call" else 0)
    _writer.write(
        CheckEnd(
            component=component_of(report.nodeid),
            name=check_name(report.nodeid),
            outcome=_OUTCOMES[report.outcome],
            seconds=round(seconds, 4),
            message=_message(report),
        )
    )


def _message(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ").removeprefix("NOT EXERCISED: ")
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return "\n".join(line.removeprefix("E").strip() for line in lines[:8]) or report.longreprtext[-500:]
