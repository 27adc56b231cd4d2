"""Print past runs from their records (`minipc history`)."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from minipc.core.formatting import duration
from minipc.core.verdicts import SIGNS, words
from minipc.evidence import records


def show(directory: Path, kind: records.Kind | None, console: Console) -> None:
    """Print a line for each record, oldest first, and the files that cannot be read."""
    loaded = records.load_all(directory, kind)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in ("When (UTC)", "Kind", "Verdict", "Exercised"):
        table.add_column(column)
    for column in ("Time", "RTO", "RPO"):
        table.add_column(column, justify="right")
    for record in loaded.records:
        table.add_row(
            f"{record.started:%Y-%m-%d %H:%M}",
            record.kind,
            f"{SIGNS[record.verdict]} {words(record.verdict)}",
            f"{record.exercised.done} of {record.exercised.total}",
            duration(record.seconds),
            _objective(record.rto_seconds),
            _objective(record.rpo_seconds),
        )
    console.print(
        table if loaded.records else f"There are no records in {directory} yet; `minipc rehearse` writes one."
    )
    for broken in loaded.broken:
        console.print(f"{SIGNS['could-not-verify']} {broken.path}: {broken.reason}", markup=False)


def _objective(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)
