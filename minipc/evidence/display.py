"""Show a run on screen while it runs, and its summary at the end.

On a terminal, results scroll by and a progress bar at the bottom shows phase, current operation, count and time.
Elsewhere (a pipe, a log, CI) the same results are plain lines without ANSI codes. Signs and words carry the meaning,
colours only repeat it; NO_COLOR switches them off.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from minipc.core.formatting import clock, count, duration, one_line, quantity, within
from minipc.core.verdicts import SIGNS, words
from minipc.evidence import event_stream
from minipc.evidence.records import Component, Record, headline, shown_as

STYLES = {
    "pass": "green",
    "passed": "green",
    "fail": "bold red",
    "failed": "bold red",
    "could-not-verify": "bold magenta",
    "not-exercised": "yellow",
}


def console_for(stream: TextIO | None = None) -> Console:
    """Return a console for the stream (default: stdout) that writes ANSI codes only to a terminal.

    A character that the stream cannot encode is replaced, so that output never ends a run.
    """
    stream = stream or sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(file=stream, force_terminal=stream.isatty(), highlight=False)


@contextmanager
def watch(events: Path, console: Console | None = None) -> Iterator[None]:
    """Show the events of a run in a thread while the block runs; at its end show all remaining events.

    The file is created if it is missing.
    """
    events.touch()
    finished = threading.Event()
    with Display(console) as display:

        def feed() -> None:
            for event in event_stream.follow(events, finished.is_set):
                display.feed(event)

        thread = threading.Thread(target=feed, name="display", daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()


@dataclass
class _Tally:
    """The operations and checks of one component in the current phase."""

    component: str
    operations: int = 0
    changed: int = 0
    checks: int = 0
    failed: int = 0
    seconds: float = 0.0

    def line(self) -> Text:
        parts = []
        if self.operations:
            parts += [count(self.operations, "operation"), f"{self.changed} changed"]
        if self.checks:
            parts.append(count(self.checks, "check"))
        if self.failed:
            parts.append(f"{self.failed} FAILED")
        parts.append(duration(self.seconds))
        style = STYLES["fail"] if self.failed else ""
        return Text(f"  {one_line(self.component)}: {', '.join(parts)}", style)


class Display:
    """Show events. A context manager; `watch` feeds it from a file."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or console_for()
        self._began: float | None = None
        self._phase_began = 0.0
        self._tally: _Tally | None = None
        self._plain = not self._console.is_terminal or self._console.is_dumb_terminal
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[current]}", "dim", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=self._console,
            transient=True,
            expand=True,
            disable=self._plain,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_component(time.time())
        self._progress.stop()

    def feed(self, event: event_stream.Event) -> None:
        """Show one event."""
        if self._began is None:
            self._began = event.t
        match event:
            case event_stream.PhaseStart():
                name, self._phase_began = one_line(event.phase), event.t
                self._end_task()
                self._task = self._progress.add_task(name, total=None, current="")
                self._print(event.t, Text(f"{name}: started{_and(event.detail)}", "bold"))
            case event_stream.PhaseEnd():
                self._finish_component(event.t)
                self._print(event.t, _phase_end(event, event.t - self._phase_began))
                self._end_task()
            case event_stream.Plan():
                self._update(total=event.operations, completed=0)
            case event_stream.OperationStart():
                self._switch_to(event.component, event.t)
                self._update(current=one_line(event.name))
            case event_stream.OperationEnd():
                self._operation_end(event)
            case event_stream.CheckEnd():
                self._check_end(event)
            case event_stream.Refused():
                self._print(event.t, Text(f"{SIGNS['fail']} REFUSED: {one_line(event.reason)}", STYLES["fail"]))
            case event_stream.NotExercised():
                self._print(event.t, _not_exercised(event.what, event.why, event.component))
            case event_stream.Note():
                self._print(event.t, Text(one_line(event.text)))

    def _update(self, **fields: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, **fields)

    def _end_task(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _operation_end(self, event: event_stream.OperationEnd) -> None:
        tally = self._switch_to(event.component, event.t)
        tally.operations += 1
        tally.changed += event.changed
        tally.seconds += event.seconds
        self._update(advance=1)
        if not event.ok:
            tally.failed += 1
            self._print_failed(event.t, event.component, event.name, "")

    def _check_end(self, event: event_stream.CheckEnd) -> None:
        tally = self._switch_to(event.component, event.t)
        tally.checks += 1
        tally.seconds += event.seconds
        self._update(advance=1, current=one_line(event.name))
        if event.outcome == "failed":
            tally.failed += 1
            self._print_failed(event.t, event.component, event.name, event.message)
        elif event.outcome == "passed" and event.message:
            self._print(
                event.t, Text(f"  {within(event.component, event.name)}{_and(event.message)}", STYLES["not-exercised"])
            )

    def _switch_to(self, component: str, t: float) -> _Tally:
        if self._tally is None or self._tally.component != component:
            self._finish_component(t)
            self._tally = _Tally(component)
        return self._tally

    def _finish_component(self, t: float) -> None:
        if self._tally and (self._tally.operations or self._tally.checks):
            self._print(t, self._tally.line())
        self._tally = None

    def _print_failed(self, t: float, component: str, name: str, message: str) -> None:
        text = f"  {SIGNS['fail']} FAILED {one_line(component)}: {within(component, name)}{_and(message)}"
        self._print(t, Text(text, STYLES["fail"]))

    def _print(self, t: float, text: Text) -> None:
        line = Text.assemble((f"{clock(t - (self._began or t))}  ", "dim"), text)
        # Without a terminal a long line is not wrapped, so that it can be searched with grep.
        self._console.print(line, soft_wrap=self._plain)


def _and(detail: str) -> str:
    return f", {one_line(detail)}" if detail.strip() else ""


def _phase_end(event: event_stream.PhaseEnd, seconds: float) -> Text:
    verdict = words(event.verdict) if event.verdict == "pass" else words(event.verdict).upper()
    return Text.assemble(
        (f"{one_line(event.phase)}: ", "bold"),
        (f"{SIGNS[event.verdict]} {verdict}", STYLES[event.verdict]),
        f" after {duration(max(0.0, seconds))}{_and(event.detail)}",
    )


def _not_exercised(what: str, why: str, component: str) -> Text:
    label = (f"{SIGNS['not-exercised']} NOT EXERCISED", STYLES["not-exercised"])
    return Text.assemble(label, f" {_gap(what, why, component)}")


def _gap(what: str, why: str, component: str) -> str:
    owner = f" ({one_line(component)})" if component else ""
    return f"{one_line(what)}{owner}: {one_line(why)}"


def print_summary(
    record: Record, *, report_path: Path | None, record_path: Path, console: Console | None = None
) -> None:
    """Print the summary of a run: phases, components, gates, what was not exercised, the verdict and the paths.

    The verdict comes last, where the reader looks when a long run has ended.
    """
    console = console or console_for()
    console.print()
    console.print(_phases(record))
    for table in (_components(record.components), _gates(record), _warnings(record)):
        if table.row_count:
            console.print()
            console.print(table)
    console.print()
    console.print(_headline(record))
    for reason in record.reasons[1:]:
        console.print(Text(f"  {one_line(reason)}", STYLES[record.verdict]))
    for label, value in _context(record):
        console.print(Text.assemble((f"  {label:<8} ", "dim"), one_line(value)), soft_wrap=True)
    for label, path in (("Report", report_path), ("Record", record_path)):
        if path:
            console.print(Text.assemble((f"  {label:<8} ", "dim"), str(path)), soft_wrap=True)


def _headline(record: Record) -> Text:
    style = STYLES[shown_as(record)].removeprefix("bold ")
    return Text(f"{SIGNS[record.verdict]} {headline(record)}", f"bold {style}")


def _context(record: Record) -> list[tuple[str, str]]:
    target, commit = record.target, record.git.commit[:8] or "unknown"
    return [
        ("Run", f"{record.kind} of {target.name} ({target.backend}, {target.os}), {duration(record.seconds)}"),
        ("Runtime", record.runtime or "none"),
        ("Commit", f"{commit} with uncommitted changes" if record.git.dirty else commit),
    ]


def _warnings(record: Record) -> Table:
    """Return what was not exercised, and what else limits the verdict."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for component, why, whats in record.exercised.reasons:
        label = Text(f"{SIGNS['not-exercised']} NOT EXERCISED", STYLES["not-exercised"])
        table.add_row(label, Text(_gap("; ".join(whats), why, component)))
    for artifact in record.artifacts:
        if artifact.origin == "local":
            text = f"{one_line(artifact.name)} {one_line(artifact.version)}: an artifact that was added manually"
            table.add_row(Text("! LOCAL", STYLES["not-exercised"]), Text(text))
    if record.overrides:
        text = f"{count(len(record.overrides), 'production value')}, listed in the report"
        table.add_row(Text("! OVERRIDDEN", STYLES["not-exercised"]), Text(text))
    return table


def _table(*columns: str) -> Table:
    """Return a table; columns with a leading `>` are aligned to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _verdict(verdict: str) -> Text:
    return Text(f"{SIGNS[verdict]} {words(verdict)}", STYLES[verdict])


def _phases(record: Record) -> Table:
    table = _table("Phase", "Verdict", ">Time", "")
    for phase in record.phases:
        table.add_row(
            Text(one_line(phase.name)),
            _verdict(phase.verdict),
            Text(duration(phase.seconds)),
            Text(one_line(phase.detail), "dim"),
        )
    return table


def _components(components: list[Component]) -> Table:
    table = _table("Component", "Verdict", ">Converge", ">Changed", ">Verify", ">Checks")
    for component in components:
        checks = component.checks_passed + component.checks_failed
        failed = f", {component.checks_failed} failed" if component.checks_failed else ""
        table.add_row(
            Text(one_line(component.name)),
            _verdict(component.verdict),
            Text(duration(component.seconds_converge)),
            Text(f"{component.changed} of {component.operations}"),
            Text(duration(component.seconds_verify)),
            Text(f"{checks}{failed}"),
        )
    return table


def _gates(record: Record) -> Table:
    table = _table("Gate", "Verdict", ">Seen", "Budget")
    for gate in record.all_gates:
        table.add_row(
            Text(one_line(gate.name)),
            _verdict(gate.verdict),
            Text("–" if gate.seen is None else quantity(gate.seen, gate.unit)),
            Text(gate.limit),
        )
    return table
