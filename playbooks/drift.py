"""Looks for drift, and lets monitoring know: `minipc plan` as metrics on the machine, and how the last rehearsal went.

    minipc drift

Meant for a timer on the controller, each night (docs/howto/watch-drift.md): only who has the repository and the secrets
can say what should be there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from minipc.components import deploy_files
from minipc.converge import plan
from minipc.display import console_for
from minipc.errors import EXIT_CHANGES_PENDING, EXIT_PASS, MinipcError
from minipc.inventory import Environment, Target, the_target
from minipc.records import Record, load_all
from minipc.remote import on
from minipc.run import RECORDS

FOLDER = "/var/lib/prometheus/node-exporter"
Samples = Sequence[tuple[Mapping[str, str], float]]


def drift(environment: Environment, alias: str | None = None) -> int:
    """Plans, tells monitoring, prints what would change, and returns the exit code: 2 when there is drift.

    Raises:
        MinipcError: the plan could not be made; monitoring is told that, if the machine can be reached.
    """
    target = the_target(environment, alias)
    try:
        pending, _ = plan(environment, deploy_files([], target.role), limit=target.alias)
    except MinipcError:
        _write(target, "minipc_drift", [failed()])
        raise
    _write(target, "minipc_drift", found(change.component for change in pending))
    _write(target, "minipc_rehearsal", rehearsed(load_all(RECORDS, "rehearsal").records))
    console = console_for()
    for change in pending:
        console.print(f"drifted: {change.component}: {change.name}", markup=False)
    console.print(f"{len(pending)} changes pending on {target.alias}; monitoring knows")
    return EXIT_CHANGES_PENDING if pending else EXIT_PASS


Metric = tuple[str, str, Samples]


def found(components: Iterable[str]) -> list[Metric]:
    """The metrics of a plan: how many operations of each component are pending."""
    counted = Counter(components)
    return [
        ("minipc_drift_check_success", "1 when the last plan could be made.", [({}, 1)]),
        ("minipc_drift_checked_timestamp_seconds", "When the last plan was made.", [({}, time.time())]),
        ("minipc_drift_changes", "Operations that a converge would change.", [({}, counted.total())]),
        (
            "minipc_drift_component_changes",
            "The same for each component that drifted.",
            [({"component": name}, number) for name, number in sorted(counted.items())],
        ),
    ]


def failed() -> Metric:
    """The metric of a plan that could not be made."""
    return ("minipc_drift_check_success", "1 when the last plan could be made.", [({}, 0)])


def rehearsed(records: Sequence[Record]) -> list[Metric]:
    """The metrics of the newest rehearsal; none when there is none."""
    if not records:
        return []
    newest = max(records, key=lambda record: record.ended)
    passed = newest.verdict == "pass"
    metrics: list[Metric] = [
        ("minipc_rehearsal_success", "1 when the last rehearsal passed.", [({}, passed)]),
        ("minipc_rehearsal_ended_timestamp_seconds", "When it ended.", [({}, newest.ended.timestamp())]),
    ]
    if newest.rto_seconds is not None:
        metrics.append(
            ("minipc_rehearsal_rto_seconds", "From the loss until users got answers.", [({}, newest.rto_seconds)])
        )
    if newest.rpo_seconds is not None:
        metrics.append(
            ("minipc_rehearsal_rpo_seconds", "How far back the last kept write was.", [({}, newest.rpo_seconds)])
        )
    return metrics


def text_of(metrics: Iterable[Metric]) -> str:
    """The metrics in Prometheus' text format."""
    lines = []
    for name, help_text, samples in metrics:
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
        for labels, value in samples:
            shown = ",".join(f'{key}="{label}"' for key, label in labels.items())
            lines.append(f"{name}{{{shown}}} {value:.10g}" if shown else f"{name} {value:.10g}")
    return "".join(f"{line}\n" for line in lines)


def _write(target: Target, name: str, metrics: Sequence[Metric]) -> None:
    if metrics:
        file = f"{FOLDER}/{name}.prom"
        on(target, f"umask 022 && cat > {file}.new && mv {file}.new {file}", stdin=text_of(metrics))
