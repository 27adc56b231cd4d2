"""A lost machine comes back on a blank one, from the off-site copy alone.

    minipc rebuild --target HOST --fingerprint SHA256:…

Each phase is a converge of some components and a check; a phase that is done finds nothing to do, so after a crash the
same command goes on where it stopped. The order is the promise: what must be recovered is verified before the public
door opens.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipc import lab, records
from minipc.converge import converge
from minipc.display import print_summary, watch
from minipc.dns.provider import Addresses, open_provider, wanted_records
from minipc.errors import EXIT_FAIL, EXIT_PASS, CouldNotVerifyError, MinipcError
from minipc.inventory import Environment, HostEntry, Target, offsite_target, the_target
from minipc.lab.inventory import pin_lab_machine
from minipc.pins import write_pin
from minipc.records import DataClassResult, Record, exit_code
from minipc.remote import describe, on, query, versions
from minipc.run import PhaseFailedError, Run
from minipc.secrets.catalogue import GENERATION
from minipc.secrets.generate import renew
from minipc.variables import RUN_VARIABLE
from minipc.verification import verify
from playbooks import dns_cutover, phases
from playbooks.adopt import adopt


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


def rebuild(environment: Environment, entry: HostEntry, fingerprint: str, *, strict: bool = False) -> int:
    """Rebuilds a machine of the inventory on new hardware, with a record; returns the exit code.

    As a part of another run (a rehearsal's), events and output go there, and so does the record.

    Args:
        entry: the new machine: name and connection data, from the inventory.
        fingerprint: of its SSH host key, read on its own screen.
        strict: whether what was not exercised makes the exit code 4.
    """
    part_of = os.environ.get(RUN_VARIABLE)
    run = Run("rebuild", Path(part_of) if part_of else None)
    failure: PhaseFailedError | None = None
    with nullcontext() if part_of else watch(run.events):
        try:
            _phases(run, environment, entry, fingerprint)
        except PhaseFailedError as error:
            failure = error
            run.note(f"what was printed: {run.log}; mend the cause and run the same command again")
    code = _exit_code(failure)
    if part_of:
        return code
    record = _record(run, environment, entry[0])
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return code or exit_code(record, strict=strict)


def _phases(run: Run, environment: Environment, entry: HostEntry, fingerprint: str) -> None:
    with run.phase(phases.ADOPT.name, phases.ADOPT.detail):
        adopt(entry, fingerprint, pin_lab_machine if environment == "lab" else write_pin)
        target = the_target(environment, entry[0])
        shorten_the_ttl(run, target)
    fence(run, environment, target)
    back = come_back(run, environment, target)
    run.data_classes += back.classes
    lead_the_name(run, environment, target)
    public_name(run, environment, target)
    finish(run, environment, target)


def _exit_code(failure: PhaseFailedError | None) -> int:
    """That of what ended the run; 0 when nothing did."""
    if failure is None:
        return EXIT_PASS
    cause = failure.__cause__
    return cause.exit_code if isinstance(cause, MinipcError) else EXIT_FAIL


def _record(run: Run, environment: Environment, alias: str) -> Record:
    target = the_target(environment, alias)
    try:
        facts = describe(target, "hardware" if environment == "production" else "nspawn")
    except MinipcError:
        # Not reached, or not let in: there is nothing to say about it but its name.
        facts = records.Target(backend="", name=alias, os="", kernel="", cpus=0, memory_mb=0)
    return run.conclude(
        target=facts,
        group=environment,
        runtime=target.settings.workload.runtime,
        converge_phase="",
        overrides=[],
    )


def fence(run: Run, environment: Environment, target: Target) -> None:
    """Locks the lost machine out of the off-site machine, should it come back: its key is no longer accepted."""
    offsite = offsite_target(environment, target)
    if offsite is None:
        run.not_exercised("fence of the lost machine", "there is no off-site machine (backups_offsite is None)")
        return
    with run.phase(phases.FENCE.name, phases.FENCE.detail):
        on(offsite, "true")  # before the keys change: one that can't be reached would not learn the new ones
        renew(environment, GENERATION)
        converge(environment, phases.FENCE.files, log=run.log, events=run.events, limit=offsite.alias)


def come_back(run: Run, environment: Environment, target: Target) -> Restored:
    """The phases up to the open door.

    Raises:
        PhaseFailedError: says which phase; the same call goes on there.
    """
    back: Restored | None = None
    for phase in phases.TO_THE_OPEN_DOOR:
        with run.phase(phase.name, phase.detail) as say:
            _converge(run, environment, target, phase)
            if phase is phases.DATA:
                back = restored(target)
                rows = "; ".join(f"{each.name}: {each.rows_found} rows" for each in back.classes)
                say(f"{rows}; from {back.label or 'the database that was there'}")
    if back is None:
        raise MinipcError("no phase brought the data back")
    return back


def shorten_the_ttl(run: Run, target: Target) -> None:
    """While the rebuild goes on, caches forget the old address. A provider that can't be asked now holds nothing up."""
    if target.settings.dns.provider == "none":
        return
    try:
        dns_cutover.lower(open_provider(target.settings, run.note), target.settings, run.note)
    except MinipcError as error:
        run.note(f"the TTL of the public records stays as it was: {error.what}")


def lead_the_name(run: Run, environment: Environment, target: Target, given: Addresses | None = None) -> None:
    """The public name leads to this machine, by its provider's API.

    Args:
        given: addresses, where neither the configuration nor the machine knows them.

    Raises:
        PhaseFailedError: see `playbooks/dns_cutover.py`.
    """
    if target.settings.dns.provider == "none":
        run.not_exercised("DNS cutover", "dns_provider is none: the records are kept by hand", "dns")
        return
    with run.phase(phases.DNS.name, phases.DNS.detail) as say:
        # A machine whose address is not fixed tells it itself.
        _converge(run, environment, target, phases.DNS)
        addresses = dns_cutover.addresses_of(target, given or {})
        wanted = wanted_records(target.settings, target.data.get("machine_identity"), addresses)
        changed = dns_cutover.cutover(open_provider(target.settings, run.note), wanted, run.note)
        say("; ".join(map(str, changed)) or "the records were right already")


def public_name(run: Run, environment: Environment, target: Target, limit_s: float = 120) -> None:
    """The service answers users again: what the RTO ends with.

    Raises:
        PhaseFailedError: it does not, within `limit_s`.
    """
    domain = target.settings.edge.domain
    if target.settings.workload.runtime != "stand-in":
        run.not_exercised("the public name answers", "this version deploys the service in the lab only", "workload")
        return
    with run.phase(phases.PUBLIC_NAME.name, phases.PUBLIC_NAME.detail):
        give_up_at = time.monotonic() + limit_s
        while (code := _ask_as_a_user(environment, target, "/api/readyz")) != "200":
            if time.monotonic() > give_up_at:
                raise CouldNotVerifyError(
                    f"https://{domain}/api/readyz did not answer 200 within {limit_s:.0f} s: {code}",
                    f"`minipc verify --host {target.alias} edge workload` says what is wrong",
                )
            time.sleep(0.2)


def _ask_as_a_user(environment: Environment, target: Target, path: str) -> str:
    """The HTTP code that the public name gives on this machine; 000 for none."""
    domain = target.settings.edge.domain
    machine = lab.find(target.alias) if environment == "lab" else None
    side = ["ip", "netns", "exec", "public"] if machine else []
    address = machine.public_ipv4 if machine else target.data["ssh_hostname"]
    argv = [*side, "curl", "--silent", "--insecure", "--max-time", "5", "--noproxy", "*", "--output", "/dev/null"]
    argv += ["--resolve", f"{domain}:443:{address}", "--write-out", "%{http_code}", f"https://{domain}{path}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout


def finish(run: Run, environment: Environment, target: Target) -> None:
    """Everything else, backups again, and all checks."""
    with run.phase(phases.BACKUPS_AGAIN.name, phases.BACKUPS_AGAIN.detail):
        _converge(run, environment, target, phases.BACKUPS_AGAIN)
    run.versions |= versions(target)
    with run.phase(phases.VERIFY_AGAIN.name, phases.VERIFY_AGAIN.detail) as say:
        say(verify(environment, target, [], events=run.events, log=run.log).demand().summary)


def _converge(run: Run, environment: Environment, target: Target, phase: phases.Phase) -> None:
    converge(environment, phase.files, log=run.log, events=run.events, limit=target.alias, options=phase.options)


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
