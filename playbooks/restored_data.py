"""Count what a rebuild has restored: rows by service and data class, files of volumes, and the age of the data."""

from __future__ import annotations

import time
from dataclasses import dataclass

from minipc.config.service import DataClassName, Service
from minipc.config.services import DATA_CLASSES, volumes_of
from minipc.core.errors import MinipcError
from minipc.core.formatting import duration
from minipc.evidence.records import DataClassResult
from minipc.evidence.run import Run
from minipc.pyinfra_ext.facts.postgres import RESTORE_OUTCOME
from minipc.remote.inventory import Target
from minipc.remote.queries import count, on, query, tables
from minipc.remote.results import parse_result
from minipc_machine import sql_names
from minipc_machine.backup_state import RESTORED_VOLUMES, Restore
from minipc_machine.volume_files import VolumeResult
from playbooks.restore_drill import volume_class


@dataclass(frozen=True)
class Restored:
    """What the database and the volumes contain after a restore.

    Attributes:
        classes: rows of each service's data classes, and files of its volumes.
        gaps: what could not be counted, and why.
        age: seconds between the last restored heartbeat row and the restore; None if there is none.
        label: the backup it came from; None if the database existed before.
        seconds: how long copying it took.
        damaged: what is wrong with a backup that was passed over; empty if nothing.
        not_received: why WAL that was sent off-site was not used; empty if it was, or if there was none.
    """

    classes: list[DataClassResult]
    gaps: list[tuple[str, str]]
    age: float | None
    label: str | None
    seconds: float | None
    damaged: str = ""
    not_received: str = ""

    @property
    def text(self) -> str:
        """Return the counts, the origin and the age in one line."""
        rows = "; ".join(f"{each.title}: {each.rows_found}" for each in self.classes) or "nothing was counted"
        return f"{rows}; from {self.label or 'the existing database'}; {shown_age(self.age)}"


def restored(target: Target) -> Restored:
    """Ask the database and the volumes what they contain. Raises CouldNotVerifyError if the database doesn't answer."""
    text = on(target, f"cat {RESTORE_OUTCOME} 2>/dev/null || true")
    outcome = parse_result(Restore, text, f"{target.alias}: {RESTORE_OUTCOME}") if text.strip() else None
    classes: list[DataClassResult] = []
    gaps: list[tuple[str, str]] = []
    for service in target.settings.services.declared:
        counted, missing = count_service(target, service)
        classes += counted
        gaps += missing
    classes += _volumes(target)
    # Heartbeats of the lost machine: the new one adds its own as soon as it can.
    at = (outcome.moment or outcome.at) if outcome else time.time()
    beat = f"SELECT {at} - extract(epoch FROM max(at)) FROM heartbeat WHERE at <= to_timestamp({at})"  # noqa: S608
    age = query(target, "minipc", beat)
    label, seconds = (outcome.label, outcome.seconds) if outcome else (None, None)
    notes = (outcome.damaged, outcome.not_received) if outcome else ("", "")
    return Restored(classes, gaps, float(age) if age else None, label, seconds, *notes)


def count_service(target: Target, service: Service) -> tuple[list[DataClassResult], list[tuple[str, str]]]:
    """Return the rows of a service's data classes, and what could not be counted with the reason.

    A table that is missing was missing on the lost machine, too: a restore brings back all tables or none.
    """
    if service.postgres is None:
        return [], []
    database = service.postgres.database
    there = tables(target, database)
    if not there:
        return [], [(f"{service.name}: restored rows", "its database has no tables: it was never released")]
    classes = [
        _count_class(target, service, name, list(service.data_classes[name]), there)
        for name in DATA_CLASSES
        if service.data_classes.get(name)
    ]
    known = {sql_names.parts(table) for each in service.data_classes.values() for table in each}
    gaps = [] if classes else [(f"{service.name}: restored rows", "it declares no data classes")]
    others = sql_names.listed(there - known)
    if others:
        gaps.append((f"{service.name}: tables in no data class", f"nothing is promised for {others}"))
    return classes, gaps


def _count_class(
    target: Target, service: Service, name: DataClassName, wanted: list[str], there: set[tuple[str, str]]
) -> DataClassResult:
    database = service.postgres.database if service.postgres else ""
    counts = {table: count(target, database, table) for table in wanted if sql_names.parts(table) in there}
    missing = ", ".join(table for table in wanted if table not in counts)
    found = ", ".join(f"{table} {rows}" for table, rows in counts.items())
    rows = sum(counts.values())
    return DataClassResult(
        name=name,
        service=service.name,
        verdict="fail" if missing else "pass",
        rows_expected=rows,
        rows_found=rows,
        detail=f"the database {database} has no table {missing}; {found}" if missing else found,
    )


def _volumes(target: Target) -> list[DataClassResult]:
    """Return the files of each volume, as the restore has compared them with the manifest of the backup."""
    text = on(target, f"cat {RESTORED_VOLUMES} 2>/dev/null || true")
    found = parse_result(dict[str, VolumeResult], text or "{}", f"{target.alias}: {RESTORED_VOLUMES}")
    declared = {each.key for each in volumes_of(target.settings.services.declared)}
    return [volume_class(each) for key, each in sorted(found.items()) if key in declared]


def judge_age(run: Run, age: float | None, budget_s: float, *, accept: bool) -> None:
    """Refuse data if more may be lost than the budget allows: what was written after the last heartbeat.

    When the machine was lost is not known here; the age of the heartbeat at the restore is the most that it can be.

    Args:
        age: of the last heartbeat that was restored; None if there is none.

    Raises:
        MinipcError: it may be more, and `accept` is not set.
    """
    run.rpo_seconds = age
    if age is not None and age <= budget_s:
        run.rpo_budget_seconds = budget_s
    elif accept:
        run.note(f"accepted: {shown_age(age)}")
    else:
        raise MinipcError(
            f"{shown_age(age)}; the budget is {duration(budget_s)}. If the machine was lost that long ago, this is the "
            "newest data: run again with --accept-old-data. Otherwise a newer backup is missing",
            "docs/howto/restore-drill.md",
        )


def shown_age(age: float | None) -> str:
    """Return the age of the restored data as a sentence."""
    if age is None:
        return "no heartbeat was restored, so the age of the data is unknown"
    return f"the last heartbeat was {duration(age)} old when it was restored: what was written after it is lost"
