"""The event stream of a run: a JSON Lines file that several processes append to, read while it grows.

One object per line: `{"t": <epoch seconds>, "event": "<name>", …}`. The command that runs the phases writes
to it, and so do the pyinfra process (operations) and the pytest process (checks) that it starts. The live
display and the record are both made from it, so they cannot disagree.
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

from minipc.core.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    from pydantic import TypeAdapter

POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. `t` is in epoch seconds and defaults to the current time."""

    # Read by pydantic when a line is parsed: an unknown or mistyped field makes the line unreadable.
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "strict": True}
    event: ClassVar[str]

    t: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class PhaseStart(Event):
    """A phase starts. Phases do not overlap."""

    event = "phase_start"
    phase: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class PhaseEnd(Event):
    """A phase has ended."""

    event = "phase_end"
    phase: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan(Event):
    """The number of steps of this phase (operations, or checks when verifying), and their components."""

    event = "plan"
    operations: int
    components: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OperationStart(Event):
    """pyinfra starts an operation."""

    event = "operation_start"
    component: str
    name: str


@dataclass(frozen=True, kw_only=True)
class OperationEnd(Event):
    """pyinfra has ended an operation. `seconds` is its duration; `t` is its end."""

    event = "operation_end"
    component: str
    name: str
    changed: bool
    ok: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckEnd(Event):
    """One check of a verification has ended."""

    event = "check_end"
    component: str
    name: str
    outcome: Outcome
    seconds: float
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused(Event):
    """A guard refused to continue."""

    event = "refused"
    reason: str


@dataclass(frozen=True, kw_only=True)
class NotExercised(Event):
    """Something that this run cannot exercise, and why."""

    event = "not_exercised"
    what: str
    why: str
    component: str = ""


@dataclass(frozen=True, kw_only=True)
class ArtifactUsed(Event):
    """An upstream file that a component uses, or that is missing."""

    event = "artifact"
    name: str
    version: str
    sha256: str | None
    origin: Literal["locked", "local", "missing"]


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A sentence for the reader."""

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
    """Append events to a file. Several processes may each have a writer for the same file.

    A line is one `write` to a descriptor opened with O_APPEND, so lines never mix. After each write the kernel has
    the line: it survives a `kill -9` of the writer.

    Raises:
        OSError: the file cannot be opened or written, for example because the disk is full.
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
        """Close the file. The writer cannot be used afterwards."""
        os.close(self._descriptor)

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish_torn_line(self) -> None:
        # If an earlier writer was interrupted within a line (full disk), our first event needs a new line.
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")


def read(path: Path | str) -> list[Event]:
    """Return all events written so far, without an incomplete last line.

    A complete line that cannot be parsed becomes a `Note` with file and line: damage is shown and does not hide the
    rest of the run.

    Raises:
        OSError: the file cannot be read.
    """
    return list(follow(path, finished=lambda: True))


def follow(path: Path | str, finished: Callable[[], bool]) -> Iterator[Event]:
    """Yield events as they arrive, oldest first; end when `finished()` is true and the rest has been read.

    Wait for a file that does not exist yet, unless `finished()` is already true.

    Raises:
        OSError: the file cannot be read; FileNotFoundError if it was never created.
    """
    while not os.path.exists(path) and not finished():
        time.sleep(POLL_SECONDS)
    with open(path, "rb") as file:
        number = 0
        moment = 0.0
        pending = b""
        while True:
            is_last = finished()  # before reading, so that everything written until then is read
            pending += file.read()
            *complete, pending = pending.split(b"\n")
            for line in complete:
                number += 1
                if not line.strip():
                    continue
                event = _parse(line)
                if event is None:
                    text = f"{Path(path).name} line {number} cannot be read and was skipped"
                    event = Note(t=moment, text=text)
                moment = event.t
                yield event
            if is_last:
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
    # Imported late: a process that only writes events does not need pydantic (0.15 s).
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(_KINDS[kind])
