"""Output of a run: plain lines without a terminal, a progress bar on one, and the summary at the end."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from minipc.evidence import event_stream
from minipc.evidence.display import Display, console_for, print_summary, watch
from minipc.evidence.records import Artifact, Exercised, Gate, NotExercised, Override
from tests.unit.record_samples import big, small

T = 1_700_000_000.0

EVENTS: list[event_stream.Event] = [
    event_stream.NotExercised(t=T, what="clock", why="shared with the controller", component="host"),
    event_stream.PhaseStart(t=T, phase="machine", detail="booting lab1"),
    event_stream.PhaseEnd(t=T + 8, phase="machine", verdict="pass", detail="base image reused"),
    event_stream.PhaseStart(t=T + 8, phase="converge"),
    event_stream.Plan(t=T + 8, operations=3, components=("redis", "edge")),
    event_stream.OperationStart(t=T + 8, component="redis", name="redis: install"),
    event_stream.OperationEnd(t=T + 14, component="redis", name="redis: install", changed=True, ok=True, seconds=6.0),
    event_stream.OperationStart(t=T + 14, component="redis", name="redis: configure"),
    event_stream.OperationEnd(
        t=T + 15, component="redis", name="redis: configure", changed=False, ok=True, seconds=0.5
    ),
    event_stream.OperationStart(t=T + 15, component="edge", name="edge: activate"),
    event_stream.OperationEnd(t=T + 75, component="edge", name="edge: activate", changed=False, ok=False, seconds=60.0),
    event_stream.PhaseEnd(t=T + 76, phase="converge", verdict="fail", detail="pyinfra exited 1\nsee the log"),
    event_stream.PhaseStart(t=T + 76, phase="verify"),
    event_stream.CheckEnd(t=T + 77, component="redis", name="evicts", outcome="passed", seconds=0.4),
    event_stream.CheckEnd(
        t=T + 78, component="redis", name="refuses", outcome="failed", seconds=0.6, message="got +OK"
    ),
    event_stream.PhaseEnd(t=T + 3700, phase="verify", verdict="could-not-verify"),
    event_stream.Refused(t=T + 3700, reason="not the machine that the inventory pins"),
    event_stream.Note(t=T + 3701, text="\x1b[31mdone\x1b[0m [bold]as it is[/bold]"),
]

PLAIN = """\
00:00:00  ○ NOT EXERCISED clock (host): shared with the controller
00:00:00  machine: started, booting lab1
00:00:08  machine: ✓ pass after 8.0 s, base image reused
00:00:08  converge: started
00:00:15    redis: 2 operations, 1 changed, 6.5 s
00:01:15    ✗ FAILED edge: activate
00:01:16    edge: 1 operation, 0 changed, 1 FAILED, 1 min
00:01:16  converge: ✗ FAIL after 1 min 08 s, pyinfra exited 1 see the log
00:01:16  verify: started
00:01:18    ✗ FAILED redis: refuses, got +OK
01:01:40    redis: 2 checks, 1 FAILED, 1.0 s
01:01:40  verify: ? COULD NOT VERIFY after 1 h
01:01:40  ✗ REFUSED: not the machine that the inventory pins
01:01:41  done [bold]as it is[/bold]
"""


@pytest.fixture(autouse=True)
def usual_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def plain_console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return console_for(stream), stream


def show(events: list[event_stream.Event], console: Console) -> None:
    with Display(console) as display:
        for event in events:
            display.feed(event)


def test_plain_lines_without_a_terminal() -> None:
    console, stream = plain_console()
    show(EVENTS, console)
    assert stream.getvalue() == PLAIN


def test_a_long_line_stays_one_line() -> None:
    console, stream = plain_console()
    show([event_stream.Note(t=T, text="word " * 100)], console)
    assert stream.getvalue() == "00:00:00  " + ("word " * 100).strip() + "\n"


def test_an_interrupted_component_is_still_shown() -> None:
    console, stream = plain_console()
    show(EVENTS[3:7], console)
    assert stream.getvalue().splitlines()[1].endswith("  redis: 1 operation, 1 changed, 6.0 s")


def terminal(**options: Any) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=80, highlight=False, **options), stream


def test_a_terminal_shows_phase_operation_and_how_many_are_done() -> None:
    console, stream = terminal(color_system="standard")
    show(EVENTS[3:8], console)
    shown = stream.getvalue()
    assert "1/3" in shown
    assert "redis: configure" in shown  # under way, so it can only come from the progress bar
    assert "\x1b[" in shown


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console, stream = terminal(color_system="standard")
    show(EVENTS, console)
    assert "\x1b[31m" not in stream.getvalue()
    assert "\x1b[1;31m" not in stream.getvalue()
    assert "FAILED edge: activate" in stream.getvalue()


def test_a_stream_that_cannot_encode_a_sign_ends_no_run() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    show(EVENTS, console_for(stream))
    stream.flush()
    assert b"FAILED edge: activate" in raw.getvalue()


def test_watch_shows_what_another_process_wrote(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    console, stream = plain_console()
    with watch(path, console), event_stream.EventWriter(path) as writer:
        for event in EVENTS:
            writer.write(event)
    assert stream.getvalue() == PLAIN
    assert "display" not in [thread.name for thread in threading.enumerate()]


def test_watch_lets_the_error_of_the_run_through(tmp_path: Path) -> None:
    console, stream = plain_console()
    path = tmp_path / "events.jsonl"

    def interrupted_run() -> None:
        with watch(path, console), event_stream.EventWriter(path) as writer:
            writer.write(event_stream.Note(t=T, text="last words"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert "last words" in stream.getvalue()


SUMMARY = """\

Phase     Verdict  Time
machine   ✓ pass   30 s  booted to SSH
converge  ✓ pass   30 s

Component  Verdict  Converge  Changed  Verify  Checks
redis      ✓ pass      7.5 s   1 of 2  0.40 s       1

Gate             Verdict       Seen  Budget
second converge  ✓ pass   0 changes  at most 0 changes

○ NOT EXERCISED clock (host): shared
! LOCAL         k3s v1.32: an artifact that was added manually
! OVERRIDDEN    1 production value, listed in the report

✓ PASS, 1 of 2 exercised
  Run      rehearsal of lab1 (nspawn, Debian 13), 1 min
  Runtime  systemd
  Commit   3b0fd5d1
  Report   /srv/report.html
  Record   /srv/record.json
"""


def summary(record: Any, console: Console) -> None:
    print_summary(record, report_path=Path("/srv/report.html"), record_path=Path("/srv/record.json"), console=console)


def test_summary() -> None:
    gap = NotExercised(what="clock", why="shared", component="host")
    record = small(
        exercised=Exercised(done=1, total=2, not_exercised=[gap]),
        artifacts=[Artifact(name="k3s", version="v1.32", sha256="a" * 64, origin="local")],
        overrides=[Override(key="acme", production_value="on", used_value="off", why="no public name")],
    )
    console, stream = plain_console()
    summary(record, console)
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == SUMMARY.splitlines()


def test_a_failed_run_says_why_and_fits_80_columns() -> None:
    stream = io.StringIO()
    summary(big(), Console(file=stream, width=80, force_terminal=False, highlight=False))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "✗ FAIL: edge: 2 checks failed: The component refuses clients" in text
    assert "12, 2 failed" in text
    # Three things, two of them for the same reason.
    assert text.count("○ NOT EXERCISED") == 2
    assert "3b0fd5d1 with uncommitted changes" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("gaps", "budget", "colour"),
    [([], 0, "32"), ([NotExercised(what="clock", why="shared")], 0, "33"), ([], -1, "31")],
)
def test_a_pass_with_gaps_is_not_green(gaps: list[NotExercised], budget: float, colour: str) -> None:
    console, stream = terminal(color_system="standard")
    record = small(
        exercised=Exercised(done=1, total=1 + len(gaps), not_exercised=gaps),
        gates=[Gate.judge("changes", budget=budget, seen=0)],
    )
    summary(record, console)
    (headline,) = [line for line in stream.getvalue().splitlines() if "PASS" in line or "FAIL" in line]
    assert headline.startswith(f"\x1b[1;{colour}m")
