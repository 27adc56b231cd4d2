"""Find drift, and publish it as metrics on the machine, with the results of a preflight and of the last rehearsal.

Drift is what `minipc plan` would change, and what neither a Debian package nor minipc put on the machine
(minipc_machine/unexpected.py).

    minipc drift

Meant for a timer on the controller, each night (docs/howto/watch-drift.md): only who has the repository and the secrets
can say what should be there.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from minipc.config.components import deploy_files
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_CHANGES_PENDING, EXIT_PASS, MinipcError
from minipc.core.formatting import one_line
from minipc.core.variables import PLACED_VARIABLE
from minipc.evidence.display import console_for
from minipc.evidence.records import Record, load_all
from minipc.evidence.run import RECORDS
from minipc.pyinfra_ext.converge import plan
from minipc.remote import psql
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import on, publish_metrics
from minipc.remote.results import parse_result
from minipc_machine import unexpected as program
from minipc_machine.metrics import Gauge
from playbooks import preflight

LIMIT_S = 600


def drift(environment: Environment, alias: str | None = None) -> int:
    """Plan, publish the result as metrics, and print what would change. Return the exit code: 2 if there is drift.

    Raises:
        MinipcError: the plan failed. This is published as a metric if the machine can be reached.
    """
    target = the_target(environment, alias)
    try:
        with tempfile.NamedTemporaryFile("r", prefix="minipc-placed-") as placed:
            files = deploy_files([], target.role)
            pending, _ = plan(environment, files, limit=target.alias, env={PLACED_VARIABLE: placed.name})
            foreign = unexpected(target, placed.read().splitlines())
    except MinipcError:
        publish_metrics(target, "minipc_drift", [failed()])
        raise
    publish_metrics(target, "minipc_drift", found([change.component for change in pending], len(foreign)))
    publish_metrics(target, "minipc_rehearsal", rehearsed(load_all(RECORDS, "rehearsal").records))
    console = console_for()
    if target.role == "mini":
        needed = preflight.preflight(target, "daily")
        preflight.publish(target, needed)
        for each in needed:
            console.print(str(each), markup=False)
    for change in pending:
        console.print(f"drifted: {change.component}: {change.name}", markup=False, soft_wrap=True)
    for sentence in foreign:
        console.print(f"unexpected: {sentence}", markup=False, soft_wrap=True)
    console.print(
        f"{len(pending)} changes pending on {target.alias}, {len(foreign)} things are there that nobody declared; "
        "the result was published to monitoring"
    )
    return EXIT_CHANGES_PENDING if pending or foreign else EXIT_PASS


def unexpected(target: Target, placed: Sequence[str]) -> list[str]:
    """Return what is on the machine that neither a Debian package nor minipc put there, one sentence each.

    Args:
        placed: paths of all files that a converge places.

    Raises:
        CouldNotVerifyError: the machine cannot be reached.
    """
    settings = target.settings
    expected = {
        "paths": sorted(set(placed)),
        "logins": ["root", settings.host.operator_user, "postgres"],
        "apt": [urlsplit(settings.host.apt_mirror).netloc] if settings.host.apt_mirror else [],
        "runtime": "podman" if target.role == "offsite" or settings.services.runtime != "k3s" else "k3s",
        "psql": psql.command(settings.postgres, psql.SUPERUSER) if target.role == "mini" else "",
    }
    source = Path(program.__file__).read_text(encoding="utf-8")
    said = on(target, "python3 -I -", f"{source}\nreport(json.loads({json.dumps(expected)!r}))\n", timeout_s=LIMIT_S)
    # It may be what an intruder chose to print.
    return [one_line(each) for each in parse_result(list[str], said, f"{target.alias}: unexpected")]


def found(components: Iterable[str], foreign: int = 0) -> list[Gauge]:
    """Return the metrics: the pending operations of each component, and how much is there that nobody declared."""
    counted = Counter(components)
    return [
        Gauge("minipc_drift_check_success", "1 when the last plan could be made.", [({}, 1)]),
        Gauge("minipc_drift_checked_timestamp_seconds", "When the last plan was made.", [({}, time.time())]),
        Gauge("minipc_drift_unexpected", "Things that neither Debian nor minipc put there.", [({}, foreign)]),
        Gauge("minipc_drift_changes", "Operations that a converge would change.", [({}, counted.total())]),
        Gauge(
            "minipc_drift_component_changes",
            "The same for each component that drifted.",
            [({"component": name}, number) for name, number in sorted(counted.items())],
        ),
    ]


def failed() -> Gauge:
    """Return the metric of a failed plan."""
    return Gauge("minipc_drift_check_success", "1 when the last plan could be made.", [({}, 0)])


def rehearsed(records: Sequence[Record]) -> list[Gauge]:
    """Return the metrics of the newest rehearsal; none if there is none."""
    if not records:
        return []
    newest = max(records, key=lambda record: record.ended)
    passed = newest.verdict == "pass"
    metrics: list[Gauge] = [
        Gauge("minipc_rehearsal_success", "1 when the last rehearsal passed.", [({}, passed)]),
        Gauge("minipc_rehearsal_ended_timestamp_seconds", "When it ended.", [({}, newest.ended.timestamp())]),
    ]
    if newest.rto_seconds is not None:
        metrics.append(
            Gauge("minipc_rehearsal_rto_seconds", "From the loss until users got answers.", [({}, newest.rto_seconds)])
        )
    if newest.rpo_seconds is not None:
        metrics.append(
            Gauge("minipc_rehearsal_rpo_seconds", "How far back the last kept write was.", [({}, newest.rpo_seconds)])
        )
    return metrics
