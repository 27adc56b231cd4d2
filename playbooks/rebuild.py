"""A lost machine comes back on a blank one, from the off-site copy alone.

    minipc rebuild --target HOST --fingerprint SHA256:…

Each phase is a converge of some components and a check; a phase that is done finds nothing to do, so after a crash the
same command goes on where it stopped. The order is the promise: what must be recovered is verified before the public
door opens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minipc.components import deploy_files
from minipc.converge import converge
from minipc.display import print_summary, watch
from minipc.errors import MinipcError
from minipc.inventory import Environment, HostEntry, Target, offsite_target, the_target
from minipc.pins import write_pin
from minipc.records import DataClassResult, Record
from minipc.remote import describe, on, query, versions
from minipc.run import PhaseFailedError, Run
from minipc.secrets import open_store
from minipc.secrets.catalogue import GENERATION, for_environment
from minipc.secrets.generate import new_value
from minipc.verification import verify
from playbooks.adopt import adopt

RESTORE = ("--data", "postgres_from_backup=restore")
PHASES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("host and network", ("host", "firewall"), "who may come in"),
    ("data", ("repositories", "postgres"), "restored, up to the last archived transaction"),
    ("service", ("redis", "workload"), "migrations, API, workers"),
    ("public door", ("edge",), "opens once the data is verified"),
)


@dataclass(frozen=True)
class Restored:
    """What came back, as the database itself tells.

    Attributes:
        classes: rows and newest moment of each data class, in the promised order.
        heartbeat: epoch seconds of the last heartbeat row; None when there is none.
        label: the backup it came from; None when the database was there already.
        seconds: how long copying it took.
    """

    classes: list[DataClassResult]
    heartbeat: float | None
    label: str | None
    seconds: float | None


def rebuild(environment: Environment, entry: HostEntry, fingerprint: str) -> Record:
    """Rebuilds a machine of the inventory on new hardware, with a record.

    Args:
        entry: the new machine: name and connection data, from the inventory.
        fingerprint: of its SSH host key, read on its own screen.
    """
    run = Run("rebuild")
    with watch(run.events):
        target: Target | None = None
        try:
            with run.phase("adopt", "the new machine's host key and identity"):
                adopt(entry, fingerprint, write_pin)
                target = the_target(environment, entry[0])
            fence(run, environment, target)
            come_back(run, environment, target)
            finish(run, environment, target)
        except PhaseFailedError:
            run.note(f"what was printed: {run.log}; mend the cause and run the same command again")
    if target is None:
        raise MinipcError("the new machine was not enrolled", f"read {run.log}")
    record = run.conclude(
        target=describe(target, "hardware"),
        group=environment,
        runtime=target.settings.workload.runtime,
        converge_phase="",
        overrides=[],
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return record


def fence(run: Run, environment: Environment, target: Target) -> None:
    """Locks the lost machine out of the off-site machine, should it come back: its key is no longer accepted."""
    offsite = offsite_target(environment, target)
    if offsite is None:
        run.not_exercised("fence of the lost machine", "there is no off-site machine (backups_offsite is None)")
        return
    with run.phase("fence", "a new key for the new machine; the lost one's is revoked"):
        entries = {each.name: each for each in for_environment(environment)}
        fresh = {name: new_value(generator) for name in GENERATION if (generator := entries[name].generate)}
        open_store(environment).set_many(fresh)
        files = deploy_files(["offsite"], "offsite")
        converge(environment, files, log=run.log, events=run.events, limit=offsite.alias)


def come_back(
    run: Run, environment: Environment, target: Target, *, data_is_back: Callable[[Restored], None] = lambda _: None
) -> Restored:
    """The phases up to the open door.

    Args:
        data_is_back: called once the data that must be recovered is verified; raises when more was lost than may be.

    Raises:
        PhaseFailedError: says which phase; the same call goes on there.
    """
    back: Restored | None = None
    for name, components, detail in PHASES:
        with run.phase(name, detail) as say:
            files = [path for path in deploy_files(components) if not path.endswith("release.py")]
            converge(environment, files, log=run.log, events=run.events, limit=target.alias, options=RESTORE)
            if name == "data":
                back = restored(target)
                data_is_back(back)
                say("; ".join(f"{each.name}: {each.rows_found} rows" for each in back.classes))
    if back is None:
        raise MinipcError("no phase brought the data back")
    return back


def finish(run: Run, environment: Environment, target: Target) -> None:
    """Everything else, backups again, and all checks."""
    with run.phase("backups again", "and everything that is left"):
        converge(environment, deploy_files(), log=run.log, events=run.events, limit=target.alias, options=RESTORE)
    run.versions |= versions(target)
    with run.phase("verify again", "from both sides") as say:
        say(verify(environment, target, [], events=run.events, log=run.log).demand().summary)


def restored(target: Target) -> Restored:
    """Asks the database what it holds.

    Raises:
        CouldNotVerifyError: it doesn't answer.
    """
    classes = [
        _ask_class(target, each.name, each.database, [table.name for table in each.tables])
        for each in target.settings.backups.data_classes
    ]
    beat = query(target, "minipc", "SELECT coalesce(extract(epoch FROM max(at)), 0) FROM heartbeat")
    outcome: dict[str, Any] = json.loads(on(target, "cat /var/lib/minipc/backups/restore.json 2>/dev/null || echo {}"))
    return Restored(classes, float(beat) or None, outcome.get("label"), outcome.get("seconds"))


def _ask_class(target: Target, name: str, database: str, tables: Sequence[str]) -> DataClassResult:
    counts = {table: int(query(target, database, f'SELECT count(*) FROM "{table}"')) for table in tables}  # noqa: S608
    rows = sum(counts.values())
    detail = ", ".join(f"{table} {count}" for table, count in counts.items())
    return DataClassResult(name=name, verdict="pass", rows_expected=rows, rows_found=rows, detail=detail)
