"""One run of a playbook: its folder, its phases and its record."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from minipc.config.components import Component, Role, select
from minipc.core.environment import Environment
from minipc.core.errors import CouldNotVerifyError, MinipcError
from minipc.core.formatting import first_line
from minipc.core.git import Commit, head, pin_head
from minipc.core.paths import ROOT
from minipc.core.verdicts import Verdict
from minipc.evidence import records
from minipc.evidence.event_stream import Event, EventWriter, Note, NotExercised, PhaseEnd, PhaseStart, read
from minipc.evidence.report import render

REPORTS = ROOT / "reports"
RECORDS = REPORTS / "records"


class PhaseFailedError(MinipcError):
    """A phase failed and ended the run. The record contains the reason."""


@dataclass
class Run:
    """A run in progress.

    Attributes:
        part_of: folder of the run of another process to which this one belongs; that process writes the record.
        directory: `reports/ID/`, with events, logs and the report.
    """

    kind: records.Kind
    part_of: Path | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    gates: list[records.Gate] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    artifacts: list[records.Artifact] = field(default_factory=list)
    data_classes: list[records.DataClassResult] = field(default_factory=list)
    exposure: list[records.PortState] = field(default_factory=list)
    rto_seconds: float | None = None
    rto_budget_seconds: float | None = None
    rpo_seconds: float | None = None
    rpo_budget_seconds: float | None = None

    def __post_init__(self) -> None:
        pin_head()
        self.id = records.new_id(self.started)
        self.directory = self.part_of or REPORTS / self.id
        self.directory.mkdir(parents=True, exist_ok=self.part_of is not None)
        self._writer = EventWriter(self.events)

    @property
    def events(self) -> Path:
        """Return the path of the event file, see `minipc/evidence/event_stream.py`."""
        return self.directory / "events.jsonl"

    @property
    def log(self) -> Path:
        """Return the path of the output of the programs that the run started."""
        return self.directory / "output.log"

    def write(self, event: Event) -> None:
        """Append an event."""
        self._writer.write(event)

    def note(self, text: str) -> None:
        """Show a sentence in the display."""
        self.write(Note(text=text))

    def not_exercised(self, what: str, why: str, component: str = "") -> None:
        """Count something that this run cannot exercise."""
        self.write(NotExercised(what=what, why=why, component=component))

    @contextmanager
    def phase(self, name: str, detail: str = "") -> Iterator[Callable[[str], None]]:
        """Run a phase; yield a function that sets the detail shown at its end.

        Raises:
            PhaseFailedError: an exception ended the phase; the event with its reason has been written.
        """
        shown = [""]
        self.write(PhaseStart(phase=name, detail=detail))
        try:
            yield lambda text: shown.__setitem__(0, text)
        except KeyboardInterrupt:
            self.write(PhaseEnd(phase=name, verdict="could-not-verify", detail="interrupted"))
            raise
        except Exception as error:
            verdict: Verdict = "could-not-verify" if isinstance(error, CouldNotVerifyError) else "fail"
            text = error.what if isinstance(error, MinipcError) else f"{type(error).__name__}: {error}"
            self.write(PhaseEnd(phase=name, verdict=verdict, detail=first_line(text)))
            raise PhaseFailedError(text, getattr(error, "next_step", "")) from error
        self.write(PhaseEnd(phase=name, verdict="pass", detail=shown[0]))

    def conclude(
        self,
        *,
        target: records.Target,
        group: Environment,
        runtime: Literal["k3s", "podman", "stand-in"] | None,
        converge_phase: str,
        overrides: list[records.Override],
        components: Sequence[str] | None = (),
        role: Role = "mini",
        ended: datetime | None = None,
        commit: Commit | None = None,
    ) -> records.Record:
        """Return the record of the run, with the verdict derived from its parts.

        Args:
            converge_phase: the phase whose operations the rows of the components count.
            components: the components that took part; empty for all of the machine, None for no rows.
            role: role of the machine.
            ended: end of the run; default: now.
            commit: the code that ran; default: the commit that is checked out.
        """
        ended = ended or datetime.now(UTC)
        seen = records.observe(read(self.events), ended=ended)
        converged = [operation for operation in seen.operations if operation.phase == converge_phase]
        chosen = [] if components is None else select(components, role)
        rows = [_component(each, converged, seen) for each in chosen]
        exercised = _exercised(seen, len(self.exposure))
        commit = commit or head()
        return records.conclude(
            records.Draft(
                id=self.id,
                kind=self.kind,
                started=self.started,
                ended=ended,
                git=records.Git(commit="" if commit.commit == "unknown" else commit.commit, dirty=commit.dirty),
                controller=controller(),
                target=target,
                group=group.name,
                runtime="podman" if runtime == "stand-in" else runtime,
                overrides=overrides,
                phases=seen.phases,
                components=rows,
                operations=seen.operations,
                checks=seen.checks,
                exercised=exercised,
                gates=self.gates,
                rto_seconds=self.rto_seconds,
                rto_budget_seconds=self.rto_budget_seconds,
                rpo_seconds=self.rpo_seconds,
                rpo_budget_seconds=self.rpo_budget_seconds,
                data_classes=self.data_classes,
                exposure=self.exposure,
                versions=self.versions,
                artifacts=self.artifacts + seen.artifacts,
            )
        )

    def publish(self, record: records.Record) -> tuple[Path, Path]:
        """Store the record, render the report, and return the paths of report and record."""
        record_path = records.save(record, RECORDS)
        report_path = self.directory / "report.html"
        report_path.write_text(render(record, records.load_all(RECORDS, record.kind).records), encoding="utf-8")
        return report_path, record_path


def _component(component: Component, operations: list[records.Operation], seen: records.Observed) -> records.Component:
    whole = next((gap.why for gap in seen.not_exercised if gap.component == gap.what == component.name), "")
    return records.sum_up(
        component.name,
        data_class=component.data_class,
        deploy=component.deploy,
        operations=operations,
        checks=seen.checks,
        not_exercised=whole,
    )


def _exercised(seen: records.Observed, ports: int) -> records.Exercised:
    """Return the number of checks that ran and ports that were tested, and everything that was not exercised."""
    gaps = [
        records.NotExercised(what=check.name, why=check.message or "no reason given", component=check.component)
        for check in seen.checks
        if check.outcome == "not-exercised"
    ]
    # Each converge of a run reports it again; it counts once.
    gaps = list({(gap.component, gap.what): gap for gap in [*seen.not_exercised, *gaps]}.values())
    done = sum(check.outcome != "not-exercised" for check in seen.checks) + ports
    return records.Exercised(done=done, total=done + len(gaps), not_exercised=gaps)


def controller() -> records.Controller:
    """Return the description of this machine for a record."""
    release = platform.freedesktop_os_release() if sys.platform == "linux" else {}
    return records.Controller(
        os=release.get("PRETTY_NAME", platform.platform()),
        python=platform.python_version(),
        pyinfra=version("pyinfra"),
        minipc=version("minipc"),
    )
