"""What a person sees while a run goes on, and the summary at its end.

On a terminal: finished parts scroll by, and two lines at the bottom show the phase, the operation, how many are
done of all, and the time. Anywhere else (a pipe, a log, CI): the same finished parts as plain lines, no ANSI.
Signs and words carry the meaning, colours only repeat it; NO_COLOR switches them off.
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
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from minipc import timeline
from minipc.records import Component, Record, headline, shown_as
from minipc.verdicts import SIGNS, words
from minipc.wording import clock, count, duration, one_line, quantity, within

STYLES = {
    "pass": "green",
    "passed": "green",
    "fail": "bold red",
    "failed": "bold red",
    "could-not-verify": "bold magenta",
    "not-exercised": "yellow",
}
REFRESHES_PER_SECOND = 8


def console_for(stream: TextIO | None = None) -> Console:
    """A console for the stream (default: stdout) that writes ANSI only to a terminal.

    A character that the stream's encoding doesn't have is replaced; a display must not end a run.
    """
    stream = stream or sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(file=stream, force_terminal=stream.isatty(), highlight=False)


@contextmanager
def watch(events: Path, console: Console | None = None) -> Iterator[None]:
    """Show the events of a run from their file, in a thread, for as long as the block lasts.

    On leaving, what has been written until then is still shown. The file is made when missing.
    """
    events.touch()
    finished = threading.Event()
    with Display(console) as display:

        def feed() -> None:
            for event in timeline.follow(events, finished.is_set):
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
    """What one component has done in the current phase."""

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
    """Shows events as they are fed to it. A context manager; `watch` feeds it from a file."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or console_for()
        self._began: float | None = None
        self._phase = ""
        self._phase_began = 0.0
        self._total = 0
        self._done = 0
        self._current = ""
        self._tally: _Tally | None = None
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._footer,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            )

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_component(time.time())
        if self._live:
            self._live.stop()

    def feed(self, event: timeline.Event) -> None:
        """Take in one event and show what it brings."""
        if self._began is None:
            self._began = event.t
        match event:
            case timeline.PhaseStart():
                self._phase, self._phase_began = one_line(event.phase), event.t
                self._total = self._done = 0
                self._print(event.t, Text(f"{self._phase}: started{_and(event.detail)}", "bold"))
            case timeline.PhaseEnd():
                self._finish_component(event.t)
                self._print(event.t, _phase_end(event, event.t - self._phase_began))
                self._phase = self._current = ""
            case timeline.Plan():
                self._total, self._done = event.operations, 0
            case timeline.OperationStart():
                self._switch_to(event.component, event.t)
                self._current = one_line(event.name)
            case timeline.OperationEnd():
                self._operation_end(event)
            case timeline.CheckEnd():
                self._check_end(event)
            case timeline.Refused():
                self._print(event.t, Text(f"{SIGNS['fail']} REFUSED: {one_line(event.reason)}", STYLES["fail"]))
            case timeline.NotExercised():
                self._print(event.t, _not_exercised(event.what, event.why, event.component))
            case timeline.Note():
                self._print(event.t, Text(one_line(event.text)))

    def _operation_end(self, event: timeline.OperationEnd) -> None:
        tally = self._switch_to(event.component, event.t)
        tally.operations += 1
        tally.changed += event.changed
        tally.seconds += event.seconds
        self._done += 1
        if not event.ok:
            tally.failed += 1
            self._print_failed(event.t, event.component, event.name, "")

    def _check_end(self, event: timeline.CheckEnd) -> None:
        tally = self._switch_to(event.component, event.t)
        tally.checks += 1
        tally.seconds += event.seconds
        self._done += 1
        self._current = one_line(event.name)
        if event.outcome == "failed":
            tally.failed += 1
            self._print_failed(event.t, event.component, event.name, event.message)

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
        # Without a terminal a line stays one line, however long: it is for grep and for CI logs.
        self._console.print(line, soft_wrap=self._live is None)

    def _footer(self) -> RenderableType:
        now = time.time()
        if not self._phase:
            return Text("")
        status = Table.grid(padding=(0, 1), expand=True)
        status.add_column(no_wrap=True)
        status.add_column(ratio=1)
        status.add_column(no_wrap=True, justify="right")
        status.add_column(no_wrap=True, justify="right")
        status.add_row(
            Text(self._phase, "bold"),
            ProgressBar(
                total=max(self._total, 1),
                completed=min(self._done, self._total),
                pulse=not self._total,
                complete_style="cyan",
                finished_style="cyan",
            ),
            Text(f"{self._done} of {self._total}" if self._total else ""),
            Text(clock(now - (self._began or now)), "dim"),
        )
        return Group(status, Text(f"  {self._current}", "dim", no_wrap=True, overflow="ellipsis"))


def _and(detail: str) -> str:
    return f", {one_line(detail)}" if detail.strip() else ""


def _phase_end(event: timeline.PhaseEnd, seconds: float) -> Text:
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
    """The end of a run: time per phase and component, gates, what was not exercised, the verdict, the paths.

    The verdict comes last, where the eye is when a long run has ended.
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
    """What was not exercised, and what else a reader must know before believing the verdict."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for component, why, whats in record.exercised.reasons:
        label = Text(f"{SIGNS['not-exercised']} NOT EXERCISED", STYLES["not-exercised"])
        table.add_row(label, Text(_gap("; ".join(whats), why, component)))
    for artifact in record.artifacts:
        if artifact.origin == "local":
            text = f"{one_line(artifact.name)} {one_line(artifact.version)}: an artifact put in by hand"
            table.add_row(Text("! LOCAL", STYLES["not-exercised"]), Text(text))
    if record.overrides:
        text = f"{count(len(record.overrides), 'production value')}, listed in the report"
        table.add_row(Text("! OVERRIDDEN", STYLES["not-exercised"]), Text(text))
    return table


def _table(*columns: str) -> Table:
    """A table whose columns marked with a leading `>` are figures."""
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
