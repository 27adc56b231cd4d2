from __future__ import annotations

import contextlib
import os
import pty
import sys

import pytest

from minipc.artifacts.meter import meter


def test_a_line_per_quarter_where_nobody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with meter("k3s") as progress:
        for done in range(0, 80_000_001, 1_000_000):
            progress.at(done, 80_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "k3s: 0.0 of 80.0 MB",
        "k3s: 20.0 of 80.0 MB",
        "k3s: 40.0 of 80.0 MB",
        "k3s: 60.0 of 80.0 MB",
        "k3s: 80.0 of 80.0 MB",
    ]


def test_an_unknown_or_empty_size_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    for total in (None, 0):
        with meter("k3s") as progress:
            progress.at(0, total)
            progress.at(5, total)
    assert capsys.readouterr().err.splitlines() == ["k3s: 0.0 MB", "k3s: 0.0 MB"]


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with meter("k3s") as progress:
            progress.at(40_000_000, 80_000_000)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the terminal's other end is closed and everything has been read
        while chunk := os.read(master, 65536):
            shown += chunk
    os.close(master)
    assert b"40.0/80.0 MB" in shown
