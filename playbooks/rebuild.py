"""A lost machine comes back on a blank one, from the off-site copy alone.

    minipc rebuild --target HOST --fingerprint SHA256:…

A machine that has a database is refused, unless its system identifier is given: then the old one is moved aside.

Each phase is a converge of some components and a check; a phase that is done finds nothing to do, so after a crash the
same command goes on where it stopped. The order is the promise: what must be recovered is verified before the public
door opens.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minipc import lab, records
from minipc.converge import converge
from minipc.display import print_summary, watch
from minipc.dns.changes import Change
from minipc.dns.provider import Addresses, open_provider, wanted_records
from minipc.errors import EXIT_FAIL, EXIT_PASS, CouldNotVerifyError, MinipcError, RefusedError
from minipc.facts.postgres import RESTORE_OUTCOME, RESTORE_UNFINISHED
from minipc.inventory import Environment, HostEntry, Target, offsite_target, the_target
from minipc.keys import public_key
from minipc.lab.inventory import pin_lab_machine
from minipc.lab.zone import as_a_client, zone_of
from minipc.pins import write_pin
from minipc.records import DataClassResult, Record, exit_code
from minipc.remote import describe, on, query, versions
from minipc.run import PhaseFailedError, Run
from minipc.secrets import open_store
from minipc.secrets.catalogue import GENERATION, SFTP_KEY
from minipc.secrets.generate import renew
from minipc.variables import RUN_VARIABLE
from minipc.verification import smoke, verify
from minipc.wording import duration
from playbooks import beside_the_vpn, dns_cutover, phases
from playbooks.adopt import adopt
from playbooks.gitops import bring_up

DATA = "/var/lib/postgresql/17/main"
SYSTEM_IDENTIFIER = (
    f"/usr/lib/postgresql/17/bin/pg_controldata {DATA} | sed -n 's/^Database system identifier: *//p' | grep ."
)
# On the machine for as long as it is being rebuilt; in it, the public key that this rebuild made for it.
UNFINISHED = "/var/lib/minipc/rebuild-unfinished"
# What must not write into a restored database before it is verified. Not even after a reboot: their phases enable it.
WRITERS = "'workload-*.service' 'minipc-heartbeat.timer' 'minipc-backup-*.timer' 'minipc-drill.timer'"
SHUT_THE_DOOR = f"""
set -eu
off() {{
    systemctl list-units --all --plain --no-legend "$@" | awk '$2 == "loaded" {{print $1}}' |
        xargs -r systemctl disable --quiet --now
}}
off caddy.service
off {WRITERS}
systemctl --quiet is-active k3s || exit 0
for each in $(k3s kubectl -n workload get deployments -o name); do
    k3s kubectl -n workload scale "$each" --replicas=0
done
"""
# Only this computer has the keys that a rebuild makes.
KEEP = (
    "COMMIT AND PUSH secrets/production.age and inventory/pins.json, then seal a new bundle (`minipc bundle create`). "
    "Any other computer has the keys of the lost machine, and the off-site machine refuses them"
)
ACCEPT_GAP = ("--data", "postgres_from_backup=restore-incomplete")


@dataclass(frozen=True)
class Restored:
    """What came back, as the database itself tells.

    Attributes:
        classes: rows and newest moment of each data class, in the promised order.
        age: seconds between the last heartbeat row that came back and the restore; None when there is none.
        label: the backup it came from; None when the database was there already.
        seconds: how long copying it took.
    """

    classes: list[DataClassResult]
    age: float | None
    label: str | None
    seconds: float | None


@dataclass(frozen=True)
class Options:
    """What a rebuild may be told.

    Attributes:
        strict: what was not exercised makes the exit code 4.
        replace: system identifier of the database that is there and is to be moved aside; empty: refuse one.
        accept_missing_wal: go on although WAL is missing, and lose what came after the gap.
        accept_old_data: go on although more may be lost than the budget for the RPO allows.
        until: the phase to stop after; None: go to the end.
    """

    strict: bool = False
    replace: str = ""
    accept_missing_wal: bool = False
    accept_old_data: bool = False
    until: phases.Phase | None = None


AS_USUAL = Options()


def rebuild(environment: Environment, entry: HostEntry, fingerprint: str, options: Options = AS_USUAL) -> int:
    """Rebuilds a machine of the inventory on new hardware, with a record; returns the exit code.

    As a part of another run (a rehearsal's), events and output go there, and so does the record.

    Args:
        entry: the new machine: name and connection data, from the inventory.
        fingerprint: of its SSH host key, read on its own screen.
    """
    part_of = os.environ.get(RUN_VARIABLE)
    run = Run("rebuild", Path(part_of) if part_of else None)
    failure: PhaseFailedError | None = None
    fenced = False
    with nullcontext() if part_of else watch(run.events):
        try:
            for done in _phases(run, environment, entry, fingerprint, options):
                fenced = fenced or done is phases.FENCE
                if done is options.until:
                    break
        except PhaseFailedError as error:
            failure = error
            run.note(f"what was printed: {run.log}; mend the cause and run the same command again")
        if environment == "production" and fenced:
            run.note(KEEP)
    code = _exit_code(failure)
    if part_of:
        return code
    # It came in beside the VPN, and left that way open.
    beside_the_vpn.tell(run, environment, the_target(environment, entry[0]))
    whole = failure is None and options.until is None
    record = _record(run, environment, entry[0], components=() if whole else None)
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return code or exit_code(record, strict=options.strict)


def _phases(
    run: Run, environment: Environment, entry: HostEntry, fingerprint: str, options: Options
) -> Iterator[phases.Phase]:
    """Goes through the phases and tells each that is done."""
    with run.phase(phases.ADOPT.name, phases.ADOPT.detail):
        adopt(entry, fingerprint, pin_lab_machine if environment == "lab" else write_pin)
        target = the_target(environment, entry[0])
        begin(target, options.replace, run.note)
        shorten_the_ttl(run, target)
    yield phases.ADOPT
    fence(run, environment, target)
    yield phases.FENCE
    for phase in phases.TO_THE_OPEN_DOOR:
        come_back(run, environment, target, phase, options)
        yield phase
    lead_the_name(run, environment, target)
    yield phases.DNS
    public_name(run, environment, target)
    yield phases.PUBLIC_NAME
    backups_again(run, environment, target, options)
    yield phases.BACKUPS_AGAIN
    smoke_list(run, environment, target)
    yield phases.SMOKE
    verify_again(run, environment, target)
    yield phases.VERIFY_AGAIN


def _exit_code(failure: PhaseFailedError | None) -> int:
    """That of what ended the run; 0 when nothing did."""
    if failure is None:
        return EXIT_PASS
    cause = failure.__cause__
    return cause.exit_code if isinstance(cause, MinipcError) else EXIT_FAIL


def _record(run: Run, environment: Environment, alias: str, *, components: Sequence[str] | None) -> Record:
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
        components=components,
    )


def fence(run: Run, environment: Environment, target: Target) -> None:
    """Locks the lost machine out of the off-site machine, should it come back: its key is no longer accepted."""
    offsite = offsite_target(environment, target)
    if offsite is None:
        run.not_exercised("fence of the lost machine", "there is no off-site machine (backups_offsite is None)")
        return
    with run.phase(phases.FENCE.name, phases.FENCE.detail) as say:
        on(offsite, "true")  # before the keys change: one that can't be reached would not learn the new ones
        # A recovery that goes on without us reads with the key that a first attempt made: another one would cut it off.
        kept = on(target, f"cat {UNFINISHED} 2>/dev/null || true")
        if kept and kept == _public_key(environment):
            say("the key that this rebuild made for the machine stays")
        else:
            renew(environment, GENERATION)
        converge(environment, phases.FENCE.files, log=run.log, events=run.events, limit=offsite.alias)
        on(target, f"[ ! -e {UNFINISHED} ] || cat > {UNFINISHED}", stdin=f"{_public_key(environment)}\n")


def _public_key(environment: Environment) -> str:
    """Of the key with which the machine comes to the off-site one."""
    return public_key(open_store(environment).get(SFTP_KEY))


def begin(target: Target, replace: str, say: Callable[[str], None]) -> None:
    """Looks whether there is a database already, and marks the machine as one that is being rebuilt.

    A rebuild that was cut off finds its own mark and goes on.

    Args:
        replace: system identifier of the database that may be moved aside.

    Raises:
        RefusedError: there is a database, and it isn't that one. Nothing was changed.
    """
    if on(target, f"[ ! -e {UNFINISHED} ] || echo there"):
        say("a rebuild of this machine was begun before: it goes on")
        return
    # What a restore that was cut off has left is no database.
    there = f"[ -e {DATA}/PG_VERSION ] && [ ! -e {RESTORE_UNFINISHED} ]"
    found = on(target, f"if {there}; then {SYSTEM_IDENTIFIER} || echo unknown; fi")
    if found and found != replace:
        typed = f"; --replace-database said {replace}" if replace else ""
        raise RefusedError(
            f"{target.alias} has a database, system identifier {found}{typed}",
            f"a rebuild would put the backup in its place. If that is meant: --replace-database {found}; it is moved "
            "aside, not deleted. Nothing was changed",
        )
    if found:
        aside = f"{DATA}.aside-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        say("the public door is shut, and what writes by itself is stopped, until the data is verified")
        on(target, SHUT_THE_DOOR, timeout_s=300)
        on(target, f"systemctl stop postgresql@17-main && mv {DATA} {aside}", timeout_s=600)
        say(f"the database that was there is in {aside}; remove it when it is no longer needed")
    on(target, f"install -d -m 755 {Path(UNFINISHED).parent} && touch {UNFINISHED}")


def come_back(
    run: Run, environment: Environment, target: Target, phase: phases.Phase, options: Options = AS_USUAL
) -> None:
    """One of the phases up to the open door.

    Raises:
        PhaseFailedError: the same call goes on there.
    """
    if phase.runtime not in (None, target.settings.workload.runtime):
        return
    with run.phase(phase.name, phase.detail) as say:
        if phase is phases.GITOPS:
            say(bring_up(environment, target))
            return
        _converge(run, environment, target, phase, options)
        if phase is phases.DATA:
            back = restored(target)
            run.data_classes += back.classes
            rows = "; ".join(f"{each.name}: {each.rows_found} rows" for each in back.classes)
            say(f"{rows}; from {back.label or 'the database that was there'}; {_shown(back.age)}")
            judge_age(run, back.age, target.settings.backups.rpo_budget_s, accept=options.accept_old_data)


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
        changed = cut_over(run, target, given)
        say("; ".join(map(str, changed)) or "the records were right already")


def cut_over(run: Run, target: Target, given: Addresses | None = None) -> list[Change]:
    """The cutover itself; returns what was changed. Raises as `playbooks/dns_cutover.py`."""
    addresses = dns_cutover.addresses_of(target, given or {})
    wanted = wanted_records(target.settings, target.data.get("machine_identity"), addresses)
    return dns_cutover.cutover(open_provider(target.settings, run.note), wanted, run.note)


def public_name(run: Run, environment: Environment, target: Target, limit_s: float = 120) -> None:
    """The service answers users again: what the RTO ends with.

    Raises:
        PhaseFailedError: it does not, within `limit_s`.
    """
    domain = target.settings.edge.domain
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
    """The HTTP code that the public name gives; 000 for none. By its records in the lab, else on this very machine."""
    domain = target.settings.edge.domain
    argv = ["curl", "--silent", "--insecure", "--max-time", "5", "--noproxy", "*", "--output", "/dev/null"]
    argv += ["--write-out", "%{http_code}", f"https://{domain}{path}"]
    machine = lab.find(target.alias) if environment == "lab" else None
    zone = zone_of(machine.name) if machine else None
    if zone is None:
        address = machine.public_ipv4 if machine else target.data["ssh_hostname"]
        argv += ["--resolve", f"{domain}:443:{address}"]
    if machine:
        argv = as_a_client(zone, *argv)
    return subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout


def backups_again(run: Run, environment: Environment, target: Target, options: Options = AS_USUAL) -> None:
    """Everything else."""
    with run.phase(phases.BACKUPS_AGAIN.name, phases.BACKUPS_AGAIN.detail):
        _converge(run, environment, target, phases.BACKUPS_AGAIN, options)
    run.versions |= versions(target)


def smoke_list(run: Run, environment: Environment, target: Target) -> None:
    """Is the service back: the list that `minipc verify --smoke` goes through."""
    with run.phase(phases.SMOKE.name, phases.SMOKE.detail) as say:
        say(smoke(environment, target, events=run.events, log=run.log).demand().summary)


def verify_again(run: Run, environment: Environment, target: Target) -> None:
    """All checks; from here on the machine is one in service."""
    with run.phase(phases.VERIFY_AGAIN.name, phases.VERIFY_AGAIN.detail) as say:
        say(verify(environment, target, [], events=run.events, log=run.log).demand().summary)
        on(target, f"rm -f {UNFINISHED}")


def _converge(
    run: Run, environment: Environment, target: Target, phase: phases.Phase, options: Options = AS_USUAL
) -> None:
    told = [*phase.options, *(ACCEPT_GAP if options.accept_missing_wal and phase.role == "mini" else ())]
    converge(environment, phase.files, log=run.log, events=run.events, limit=target.alias, options=told)


def restored(target: Target) -> Restored:
    """Asks the database what it holds. Raises CouldNotVerifyError: it doesn't answer."""
    outcome: dict[str, Any] = json.loads(on(target, f"cat {RESTORE_OUTCOME} 2>/dev/null || echo {{}}"))
    classes = [
        _ask_class(target, each.name, each.database, [table.name for table in each.tables])
        for each in target.settings.backups.data_classes
    ]
    # Those of the lost machine: the new one adds its own as soon as it can.
    at = outcome.get("at", time.time())
    beat = f"SELECT {at} - extract(epoch FROM max(at)) FROM heartbeat WHERE at <= to_timestamp({at})"  # noqa: S608
    age = query(target, "minipc", beat)
    return Restored(classes, float(age) if age else None, outcome.get("label"), outcome.get("seconds"))


def judge_age(run: Run, age: float | None, budget_s: float, *, accept: bool) -> None:
    """Whether more may be lost than the budget allows: what was written after the last heartbeat, until the loss.

    Nobody knows here when the machine was lost; the age of the heartbeat at the restore is the most that it can be.

    Args:
        age: of the last heartbeat that came back; None when none did.

    Raises:
        MinipcError: it may be more, and `accept` is not set.
    """
    run.rpo_seconds = age
    if age is not None and age <= budget_s:
        run.rpo_budget_seconds = budget_s
    elif accept:
        run.note(f"accepted: {_shown(age)}")
    else:
        raise MinipcError(
            f"{_shown(age)}; the budget is {duration(budget_s)}. Was the machine lost that long ago? Then this is all "
            "there was: run again with --accept-old-data. Else a newer backup is missing",
            "docs/howto/restore-drill.md",
        )


def _shown(age: float | None) -> str:
    if age is None:
        return "no heartbeat came back: nobody knows how old the data is"
    return f"the last heartbeat was {duration(age)} old when it was restored: what was written after it is lost"


def _ask_class(target: Target, name: str, database: str, tables: Sequence[str]) -> DataClassResult:
    counts = {table: int(query(target, database, f'SELECT count(*) FROM "{table}"')) for table in tables}  # noqa: S608
    rows = sum(counts.values())
    detail = ", ".join(f"{table} {count}" for table, count in counts.items())
    return DataClassResult(name=name, verdict="pass", rows_expected=rows, rows_found=rows, detail=detail)
