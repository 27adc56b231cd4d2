"""The event stream of a run: JSON Lines, appended by several processes, read while the file still grows.

One object per line: `{"t": <epoch seconds>, "event": "<name>", …}`. The command that runs the phases writes
to it, and so do the pyinfra process (operations) and the pytest process (checks) that it starts. The live
display and the record are both made from it, so they can't disagree.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from minipc.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    from pydantic import TypeAdapter

POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Event:
    """What every event has: `t`, epoch seconds, the moment it was made unless given."""

    # Read by pydantic when a line is parsed: an unknown or mistyped field makes the line unreadable.
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "strict": True}
    event: ClassVar[str]

    t: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class PhaseStart(Event):
    """A phase begins; phases don't overlap."""

    event = "phase_start"
    phase: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class PhaseEnd(Event):
    """The phase is over."""

    event = "phase_end"
    phase: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan(Event):
    """How much is ahead in this phase: steps (operations, or checks when verifying) and their components."""

    event = "plan"
    operations: int
    components: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OperationStart(Event):
    """pyinfra begins an operation."""

    event = "operation_start"
    component: str
    name: str


@dataclass(frozen=True, kw_only=True)
class OperationEnd(Event):
    """pyinfra is done with an operation. `seconds` is how long it took; `t` is its end."""

    event = "operation_end"
    component: str
    name: str
    changed: bool
    ok: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckEnd(Event):
    """One check of a verification is done."""

    event = "check_end"
    component: str
    name: str
    outcome: Outcome
    seconds: float
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused(Event):
    """A guard refused to go on."""

    event = "refused"
    reason: str


@dataclass(frozen=True, kw_only=True)
class NotExercised(Event):
    """Something this run can't try, and why."""

    event = "not_exercised"
    what: str
    why: str
    component: str = ""


@dataclass(frozen=True, kw_only=True)
class ArtifactUsed(Event):
    """An upstream file that a component is built with, or that can't be had."""

    event = "artifact"
    name: str
    version: str
    sha256: str | None
    origin: Literal["locked", "local", "missing"]


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Anything else a reader should see."""

    event = "note"
    text: str


_KINDS: dict[str, type[Event]] = {
    kind.event: kind
    for kind in (
        PhaseStart,
        PhaseEnd,
        Plan,
        OperationStart,
        OperationEnd,
        CheckEnd,
        Refused,
        NotExercised,
        ArtifactUsed,
        Note,
    )
}


class EventWriter:
    """Appends events to a file. Several processes may each have one for the same file.

    A line is one `write` to a descriptor opened with O_APPEND, so lines never mix. After each write the line
    is with the kernel: it survives a `kill -9` of the writer.

    Raises:
        OSError: the file can't be opened or written, e.g. the disk is full.
    """

    def __init__(self, path: Path | str) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        self._finish_torn_line()

    def write(self, event: Event) -> None:
        """Append one event."""
        fields = {"t": event.t, "event": event.event} | asdict(event)
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"
        remaining = line.encode("utf-8", "replace")
        while remaining:
            remaining = remaining[os.write(self._descriptor, remaining) :]

    def close(self) -> None:
        """Close the file; the writer can't be used afterwards."""
        os.close(self._descriptor)

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish_torn_line(self) -> None:
        # A writer cut off half-way (full disk) must not take the first event of the next one with it.
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")


def read(path: Path | str) -> list[Event]:
    """All events written so far. A half-written last line is left out; it isn't there yet.

    A complete line that can't be read becomes a `Note` naming file and line: damage is shown, and doesn't
    hide the rest of the run.

    Raises:
        OSError: the file can't be read.
    """
    return list(follow(path, finished=lambda: True))


def follow(path: Path | str, finished: Callable[[], bool]) -> Iterator[Event]:
    """The events as they arrive, oldest first; ends once `finished()` is true and the rest has been read.

    A file that doesn't exist yet is waited for, unless `finished()` is already true.

    Raises:
        OSError: the file can't be read; FileNotFoundError when it never came to exist.
    """
    while not os.path.exists(path) and not finished():
        time.sleep(POLL_SECONDS)
    with open(path, "rb") as file:
        number = 0
        moment = 0.0
        pending = b""
        while True:
            last_look = finished()  # asked before reading: what was written until then is still read
            pending += file.read()
            *complete, pending = pending.split(b"\n")
            for line in complete:
                number += 1
                if not line.strip():
                    continue
                event = _parse(line)
                if event is None:
                    text = f"{Path(path).name} line {number} can't be read and was left out"
                    event = Note(t=moment, text=text)
                moment = event.t
                yield event
            if last_look:
                return
            time.sleep(POLL_SECONDS)


def _parse(line: bytes) -> Event | None:
    try:
        fields = json.loads(line)
        return _adapter(fields.pop("event")).validate_json(json.dumps(fields))
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


@functools.cache
def _adapter(kind: str) -> TypeAdapter[Event]:
    # Imported here because the pyinfra process only writes, and pydantic costs it 0.15 s of every converge.
    from pydantic import TypeAdapter

    return TypeAdapter(_KINDS[kind])
