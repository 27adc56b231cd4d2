"""Results of restore drills: their schema, the folder they are in, and the metrics made from them.

The drill writes them. minipc reads them with the same classes (`playbooks/restore_drill.py`) and makes its records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minipc_machine import schema
from minipc_machine.files import write_file
from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.program import say
from minipc_machine.volume_files import VolumeResult

RESULTS = Path("/var/lib/minipc/drills")
PATTERN = "[0-9]*-repo*.json"

Verdict = Literal["pass", "fail", "could-not-verify"]
VERDICTS: tuple[Verdict, ...] = ("pass", "fail", "could-not-verify")


@dataclass
class Phase:
    """A step of the drill; times in epoch seconds."""

    name: str
    started: float
    ended: float = 0
    verdict: Verdict = "pass"
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """A check of the restored data."""

    phase: str
    name: str
    outcome: Literal["passed", "failed"]
    message: str


@dataclass(frozen=True)
class RowCount:
    """How many rows of a data class of a service were restored, and the time of the newest one, epoch seconds."""

    name: str
    rows: int
    newest: float | None
    service: str = ""


@dataclass(frozen=True)
class NotExercised:
    """Something that this drill could not try, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Code:
    """The commit that the machine was converged from."""

    commit: str = "unknown"
    dirty: bool = False


@dataclass
class Result:
    """A drill: filled while it runs, stored at its end.

    Attributes:
        id: UTC time of its beginning, `20250321-091005`.
        repo: number of the repository under test.
        started: epoch seconds, like `ended`; `ended` is 0 if the drill never ended.
        rpo_seconds: what would have been lost if the machine had died when the drill began; None if unknown.
        backup: label of the backup that was restored.
        target: time it was restored to.
    """

    repo: int
    started: float
    id: str = ""
    ended: float = 0
    verdict: Verdict = "could-not-verify"
    reason: str = ""
    phases: list[Phase] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    classes: list[RowCount] = field(default_factory=list)
    not_exercised: list[NotExercised] = field(default_factory=list)
    volumes: list[VolumeResult] = field(default_factory=list)
    rpo_seconds: float | None = None
    backup: str | None = None
    target: str | None = None
    database_bytes: int | None = None
    free_bytes: int | None = None
    needed_bytes: int | None = None
    code: Code = field(default_factory=Code)


def parse(text: str | bytes, where: str) -> Result:
    """Return a stored result; other versions may have stored other fields. Raises SchemaError."""
    return schema.loads(Result, text, where, ignore_unknown=True)


def store(result: Result) -> None:
    """Write a result that has ended, and publish the metrics of all results."""
    for name in (f"{result.id}-repo{result.repo}", "last"):
        write_file(RESULTS / f"{name}.json", schema.dump(result))
    publish()


def next_repository(repos: Sequence[int]) -> int:
    """Return the repository whose last drill is longest ago."""
    last = dict.fromkeys(repos, "")
    for path in RESULTS.glob(PATTERN):
        repo = int(path.stem.rpartition("repo")[2])
        if repo in last:
            last[repo] = max(last[repo], path.name)
    return min(repos, key=lambda repo: last[repo])


def publish() -> None:
    """Write the metrics of the last drill of each repository, and of its last one that passed."""
    last: dict[str, Result] = {}
    passed: dict[str, float] = {}
    for path in sorted(RESULTS.glob(PATTERN)):
        try:
            result = parse(path.read_bytes(), str(path))
        except schema.SchemaError as error:
            say(f"ignored, perhaps cut off by a power failure or only partly restored: {error}")
            continue
        last[f"repo{result.repo}"] = result
        if result.verdict == "pass":
            passed[f"repo{result.repo}"] = result.ended
    write_metrics("minipc_drill", _gauges(last, passed))


def _gauges(last: dict[str, Result], passed: dict[str, float]) -> list[Gauge]:
    by_repo = [({"repo": repo}, result) for repo, result in last.items()]
    return [
        Gauge(
            "minipc_drill_verdict",
            "1 for the verdict of the last restore drill.",
            [
                (labels | {"verdict": verdict}, result.verdict == verdict)
                for labels, result in by_repo
                for verdict in VERDICTS
            ],
        ),
        Gauge(
            "minipc_drill_last_run_timestamp_seconds",
            "When the last restore drill ended.",
            [(labels, result.ended) for labels, result in by_repo],
        ),
        Gauge(
            "minipc_drill_last_pass_timestamp_seconds",
            "When a restore drill last passed.",
            [({"repo": repo}, moment) for repo, moment in passed.items()],
        ),
        Gauge(
            "minipc_drill_duration_seconds",
            "How long the last restore drill took.",
            [(labels, result.ended - result.started) for labels, result in by_repo],
        ),
        Gauge(
            "minipc_drill_rpo_seconds",
            "What would have been lost when the last restore drill began.",
            [(labels, result.rpo_seconds) for labels, result in by_repo if result.rpo_seconds is not None],
        ),
    ]
