"""How long logs may be kept when they need more disk space than they may have."""

from __future__ import annotations

import pytest

from minipc_machine import loki_bound

MB = 1024**2


@pytest.mark.parametrize(
    ("used", "age", "now", "expected"),
    [
        (50, 700, 744, 744),  # room: as configured
        (200, 744, 744, 334),  # twice the bound: less than half
        (200, 100, 744, 45),  # what is 100 h old would not go by keeping 334 h
        (101, 25, 744, 24),  # never less than Loki's own least
        (90, 400, 400, 400),  # nearly full: stays
        (50, 400, 400, 500),  # room again: grows
        (50, 700, 700, 744),  # but not beyond what is configured
        (90, 800, 800, 744),  # configured shorter meanwhile
    ],
)
def test_what_is_kept_follows_what_is_used(used, age, now, expected):
    assert loki_bound.retention(used * MB, 100 * MB, age, now, 744) == expected


def run(data, max_mb):
    assert loki_bound.main(["--data", str(data), "--hours", "744", "--max-mb", str(max_mb)]) == 0


def test_the_overrides_are_written_and_taken_back(tmp_path, capsys):
    chunks = tmp_path / "chunks" / "fake" / "a"
    chunks.mkdir(parents=True)
    (chunks / "chunk").write_bytes(b"x" * 3 * MB)
    run(tmp_path, max_mb=1)
    assert "retention_period: 24h" in (tmp_path / "bound.yaml").read_text()
    assert capsys.readouterr().err.startswith("<4>"), "a warning in the journal"
    (chunks / "chunk").unlink()
    for _ in range(20):
        capsys.readouterr()
        run(tmp_path, max_mb=1)
    assert (tmp_path / "bound.yaml").read_text() == "overrides: {}\n"
    assert capsys.readouterr().err == ""
