"""Results of a measurement, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from rich.console import Console
from rich.table import Table

from bench.timing import Series
from minipc.core.environment import LAB
from minipc.core.formatting import duration
from minipc.core.git import head
from minipc.evidence import records
from minipc.evidence.event_stream import Event, OperationEnd, read
from minipc.evidence.records import Gate
from minipc.evidence.run import Run, controller

SLOWEST = 8


@dataclass(frozen=True)
class Share:
    """A part of the time, in seconds."""

    what: str
    seconds: float


@dataclass
class Measurement:
    """One comparison.

    Attributes:
        series: each contestant's runs.
        gates: the targets.
        shares: how our time is distributed.
        remarks: what a reader must know to interpret the figures.
    """

    title: str
    series: Sequence[Series]
    gates: Sequence[Gate]
    shares: Sequence[Share] = ()
    remarks: list[str] = field(default_factory=list)

    def print(self, console: Console) -> None:
        """Print a table of the contestants, the distribution of the time, and remarks."""
        console.print(f"\n[bold]{self.title}[/bold]")
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for column in ("median", "fastest to slowest", "CPU", "runs"):
            table.add_column(column, justify="right")
        for each in self.series:
            table.add_row(
                each.name, f"{each.seconds:.2f} s", each.spread, f"{each.cpu_seconds:.2f} s", str(len(each.samples))
            )
        console.print(table)
        if self.shares:
            console.print("where the time goes:")
        for share in self.shares:
            console.print(f"  {duration(share.seconds):>8}  {share.what}", markup=False)
        for remark in self.remarks:
            console.print(f"  note: {remark}", markup=False)


def recorded(
    run: Run,
    machine: records.Target,
    measured: Sequence[Measurement],
    runtime: Literal["k3s", "podman", "stand-in"],
    versions: Mapping[str, str] | None = None,
) -> records.Record:
    """Write the dated record of a benchmark, with the RTO if the run has one."""
    ended = datetime.now(UTC)
    commit = head()
    return records.conclude(
        records.Draft(
            id=run.id,
            kind="benchmark",
            started=run.started,
            ended=ended,
            git=records.Git(commit="" if commit.commit == "unknown" else commit.commit, dirty=commit.dirty),
            controller=controller(),
            target=machine,
            group=LAB.name,
            runtime="podman" if runtime == "stand-in" else runtime,
            phases=records.observe(read(run.events), ended=ended).phases,
            exercised=records.Exercised(done=0, total=0),
            rto_seconds=run.rto_seconds,
            rto_budget_seconds=run.rto_budget_seconds,
            rpo_seconds=None,
            gates=[gate for each in measured for gate in each.gates],
            versions=dict(versions or {}),
        )
    )


def operations(events: Iterable[Event], since: float) -> list[OperationEnd]:
    """Return the operations that ended after that moment, epoch seconds."""
    return [event for event in events if isinstance(event, OperationEnd) and event.t >= since]


def shares_of(ended: Sequence[OperationEnd]) -> list[Share]:
    """Time by component, longest first, then the slowest single operations."""
    components = dict.fromkeys(each.component for each in ended)
    by_component = []
    for component in components:
        own = [each.seconds for each in ended if each.component == component]
        by_component.append(Share(f"{component} ({len(own)} operations)", sum(own)))
    slowest = sorted(ended, key=lambda each: -each.seconds)[:SLOWEST]
    single = [Share(f"  of it, {each.component}: {each.name}", each.seconds) for each in slowest]
    return sorted(by_component, key=lambda share: -share.seconds) + single
