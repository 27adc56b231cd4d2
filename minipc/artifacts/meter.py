"""Shows how far a download is: a bar in a terminal, a line per quarter elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Meter(Protocol):
    """What a download reports."""

    def at(self, done: int, total: int | None) -> None:
        """Bytes there so far, of all where the server says how many."""


@contextmanager
def meter(label: str) -> Iterator[Meter]:
    """A meter on standard error for one download."""
    # Not Console.is_terminal: FORCE_COLOR would put a bar into a log file.
    if not sys.stderr.isatty():
        yield _Lines(label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress, label)


class _Bar:
    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=None)

    def at(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)


class _Lines:
    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = -1

    def at(self, done: int, total: int | None) -> None:
        quarter = 4 * done // total if total else 0
        if quarter <= self._shown:
            return
        self._shown = quarter
        size = f" of {total / 1e6:.1f}" if total else ""
        print(f"{self._label}: {done / 1e6:.1f}{size} MB", file=sys.stderr, flush=True)
