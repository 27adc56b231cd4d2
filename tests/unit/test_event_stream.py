"""The event stream: complete lines only, with several writers and at any moment of reading."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minipc.core.paths import ROOT
from minipc.evidence import event_stream
from minipc.evidence.event_stream import EventWriter, Note, OperationEnd, PhaseStart, Plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_events_come_back_as_they_were_written(path: Path) -> None:
    written = [
        PhaseStart(t=1.5, phase="converge", detail="lab1"),
        Plan(t=2.0, operations=3, components=("redis", "edge")),
        OperationEnd(t=3.25, component="redis", name="redis: install", changed=True, ok=False, seconds=1.25),
        event_stream.CheckEnd(t=4.0, component="redis", name="evicts", outcome="failed", seconds=0.5, message="a\nb é"),
        event_stream.PhaseEnd(t=5.0, phase="converge", verdict="could-not-verify"),
        event_stream.NotExercised(t=6.0, what="clock", why="shared"),
        event_stream.Refused(t=7.0, reason="wrong machine"),
        event_stream.OperationStart(t=8.0, component="redis", name="redis: activate"),
    ]
    with EventWriter(path) as writer:
        for event in written:
            writer.write(event)
    assert event_stream.read(path) == written
    assert path.read_text().startswith('{"t":1.5,"event":"phase_start","phase":"converge"')


def test_an_event_knows_when_it_was_made() -> None:
    before = time.time()
    event = Note(text="x")
    assert before <= event.t <= time.time()


def test_half_written_last_line_is_left_out_until_it_is_whole(path: Path) -> None:
    line = b'{"t":2.0,"event":"note","text":"second"}\n'
    path.write_bytes(b'{"t":1.0,"event":"note","text":"first"}\n' + line[:20])
    assert event_stream.read(path) == [Note(t=1.0, text="first")]
    with open(path, "ab") as file:
        file.write(line[20:])
    assert event_stream.read(path) == [Note(t=1.0, text="first"), Note(t=2.0, text="second")]


def test_a_writer_does_not_lose_its_first_event_to_a_torn_line(path: Path) -> None:
    path.write_bytes(b'{"t":1.0,"event":"note","text":"first"}\n{"t":2.0,"eve')
    with EventWriter(path) as writer:
        writer.write(Note(t=3.0, text="third"))
    assert event_stream.read(path) == [
        Note(t=1.0, text="first"),
        Note(t=1.0, text="events.jsonl line 2 cannot be read and was skipped"),
        Note(t=3.0, text="third"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "nonsense",
        '{"t":1.0}',
        '{"t":1.0,"event":"unheard_of"}',
        '{"t":1.0,"event":["note"]}',
        '{"t":1.0,"event":"note"}',
        '{"t":1.0,"event":"note","text":5}',
        '{"t":1.0,"event":"note","text":"x","colour":"red"}',
        '{"t":1.0,"event":"phase_end","phase":"x","verdict":"perhaps"}',
    ],
)
def test_damage_is_shown_and_does_not_hide_the_rest(path: Path, line: str) -> None:
    path.write_text(f'{line}\n{{"t":9.0,"event":"note","text":"after"}}\n')
    damage, after = event_stream.read(path)
    assert isinstance(damage, Note)
    assert "events.jsonl line 1" in damage.text
    assert after == Note(t=9.0, text="after")


def test_follow_delivers_while_the_file_grows_and_drains_it_at_the_end(path: Path) -> None:
    finished = threading.Event()
    seen: list[event_stream.Event] = []
    first_seen = threading.Event()

    def collect() -> None:
        for event in event_stream.follow(path, finished.is_set):
            seen.append(event)
            first_seen.set()

    thread = threading.Thread(target=collect)
    thread.start()  # before the file exists
    with EventWriter(path) as writer:
        writer.write(Note(t=1.0, text="one"))
        assert first_seen.wait(5)
        assert seen == [Note(t=1.0, text="one")]
        writer.write(Note(t=2.0, text="two"))
    finished.set()
    thread.join(5)
    assert seen == [Note(t=1.0, text="one"), Note(t=2.0, text="two")]


def test_reading_what_never_existed_is_an_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        event_stream.read(path)


def test_several_processes_write_whole_lines(path: Path) -> None:
    program = (
        "import sys\n"
        "from minipc.evidence.event_stream import EventWriter, Note\n"
        "with EventWriter(sys.argv[1]) as writer:\n"
        "    for number in range(300):\n"
        "        writer.write(Note(text=sys.argv[2] * 400))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "abc"]
    assert [process.wait(30) for process in processes] == [0, 0, 0]
    texts = [event.text for event in event_stream.read(path) if isinstance(event, Note)]
    assert sorted(texts) == ["a" * 400] * 300 + ["b" * 400] * 300 + ["c" * 400] * 300


def test_writing_costs_no_pydantic_import() -> None:
    program = "import sys, minipc.evidence.event_stream; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0


def test_every_event_is_documented() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/reference/record.md").read_text(), re.M))
    for kind in event_stream.Event.__subclasses__():
        fields = {field.name for field in dataclasses.fields(kind)} - {"t"}
        assert set(re.findall(r"`(\w+)`", rows[kind.event])) == fields
