"""A lost machine comes back on a blank one, from the off-site copy alone.

    minipc rebuild --target HOST --fingerprint SHA256:…

A machine that has a database is refused, unless its system identifier is given: then the old one is moved aside.

Each phase is a converge of some components and a check; a phase that is done finds nothing to do, so after a crash the
same command goes on where it stopped. The order is the promise: what must be recovered is verified before the public
door opens.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from minipc.config import Settings
from minipc.config.offsite import FENCE, not_provided
from minipc.config.offsite import NONE as NO_OFFSITE
from minipc.config.service import Service
from minipc.config.services import volumes_of
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, CouldNotVerifyError, MinipcError, RefusedError
from minipc.core.polling import wait_until
from minipc.core.variables import RUN_VARIABLE
from minipc.dns.changes import Change
from minipc.dns.provider import Addresses, open_provider, wanted_records
from minipc.evidence import records
from minipc.evidence.display import print_summary, watch
from minipc.evidence.records import Record, exit_code
from minipc.evidence.run import PhaseFailedError, Run
from minipc.pyinfra_ext.converge import converge
from minipc.pyinfra_ext.facts.postgres import RESTORE_UNFINISHED
from minipc.remote.inventory import HostEntry, Target, offsite_target, the_target
from minipc.remote.operator_lock import held
from minipc.remote.queries import describe, on, versions
from minipc.secrets import open_store
from minipc.secrets.catalogue import SFTP_KEY, generation
from minipc.secrets.ed25519 import public_key
from minipc.secrets.generate import renew
from minipc.services.queues import queues
from minipc.verification.runner import smoke, verify
from minipc_machine import backup_state
from playbooks import dns_cutover, phases, vpn_bypass
from playbooks.adopt import adopt
from playbooks.gitops import bring_up
from playbooks.preflight import demand, preflight
from playbooks.restored_data import judge_age, restored

READY = "ready"
ASIDE = "/var/lib/minipc/aside-"
DATA = "/var/lib/postgresql/17/main"
SYSTEM_IDENTIFIER = (
    f"/usr/lib/postgresql/17/bin/pg_controldata {DATA} | sed -n 's/^Database system identifier: *//p' | grep ."
)
# On the machine for as long as it is being rebuilt; in it, the public key that this rebuild made for it.
UNFINISHED = "/var/lib/minipc/rebuild-unfinished"
# What must not write into a restored database before it is verified, also not after a reboot: later phases enable it.
STOP_WRITERS = """
set -eu
loaded() { systemctl list-units --all --plain --no-legend "$@" | awk '$2 == "loaded" {print $1}'; }
off() { loaded "$@" | xargs -r systemctl disable --quiet --now; }
off caddy.service
off minipc-heartbeat.timer 'minipc-backup-*.timer' minipc-drill.timer
for service in SERVICES; do
    off "minipc-$service-*.timer"
    # Units that a quadlet makes can't be disabled; a later phase places the quadlets again.
    loaded "minipc-$service-*.service" | xargs -r systemctl stop
    rm -f /etc/containers/systemd/minipc-"$service"-*
done
systemctl daemon-reload
systemctl --quiet is-active k3s || exit 0
for service in SERVICES; do
    # Jobs and cron jobs come back with the next sync, as the replicas do.
    k3s kubectl -n "$service" delete cronjobs,jobs --all --cascade=foreground --timeout=60s
    for each in $(k3s kubectl -n "$service" get deployments,statefulsets -o name); do
        k3s kubectl -n "$service" scale "$each" --replicas=0
    done
    k3s kubectl -n "$service" wait --for=delete pods --all --timeout=60s
done
"""
# Only this computer has the keys that a rebuild makes.
KEEP = (
    "COMMIT AND PUSH secrets/production.age and inventory/pins.json, then seal a new bundle (`minipc bundle create`). "
    "Any other computer has the keys of the lost machine, and the off-site machine refuses them"
)
AGAIN = "fix the cause and run the same command again"
IN_SERVICE = (
    "data, backups and monitoring are back, so do not rebuild again: fix the cause; `minipc release sync` starts a "
    "service, `minipc verify` checks everything"
)
ACCEPT_GAP = ("--data", "postgres_from_backup=restore-incomplete")


@dataclass(frozen=True)
class Options:
    """What a rebuild may be told.

    Attributes:
        strict: what was not exercised makes the exit code 4.
        replace: system identifier of the database that is there and is to be moved aside; empty: refuse one.
        accept_missing_wal: go on although WAL is missing, and lose what came after the gap.
        accept_old_data: go on although more may be lost than the budget for the RPO allows.
        at: the moment to return to, epoch seconds; None: the end of the WAL.
        without_state: go on if certificates, past drills and queues cannot be restored.
        until: the phase to stop after; None: go to the end.
    """

    strict: bool = False
    replace: str = ""
    accept_missing_wal: bool = False
    accept_old_data: bool = False
    at: float | None = None
    without_state: bool = False
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
    failures: list[PhaseFailedError] = []
    done: list[phases.Phase] = []
    with nullcontext() if part_of else watch(run.events):
        try:
            for phase in _phases(run, environment, entry, fingerprint, options, failures):
                done.append(phase)
                if phase is options.until:
                    break
        except PhaseFailedError as error:
            failures.append(error)
        if failures:
            run.note(f"log: {run.log}; {IN_SERVICE if phases.BACKUPS_AGAIN in done else AGAIN}")
        if environment.in_repository and phases.FENCE in done:
            run.note(KEEP)
    code = _exit_code(failures)
    if part_of:
        return code
    # It came in beside the VPN, and left that way open.
    vpn_bypass.tell(run, environment, the_target(environment, entry[0]))
    whole = not failures and options.until is None
    record = record_of(run, environment, entry[0], components=() if whole else None)
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return code or exit_code(record, strict=options.strict)


def _phases(
    run: Run,
    environment: Environment,
    entry: HostEntry,
    fingerprint: str,
    options: Options,
    failures: list[PhaseFailedError],
) -> Iterator[phases.Phase]:
    """Run the phases, and yield each that has ended.

    Args:
        failures: gets the failures that don't stop the rebuild: those of services, and what comes after the data.
    """
    with ExitStack() as lock:
        with run.phase(phases.ADOPT.name, phases.ADOPT.detail):
            adopt(environment, entry, fingerprint)
            target = the_target(environment, entry[0])
            lock.enter_context(held(target, "minipc rebuild"))
            begin(target, options.replace, run.note, options.at)
            go_on_without_state(run, target, options)
            shorten_the_ttl(run, target)
        yield phases.ADOPT
        yield from _after_adoption(run, environment, target, options, failures)


def _after_adoption(
    run: Run, environment: Environment, target: Target, options: Options, failures: list[PhaseFailedError]
) -> Iterator[phases.Phase]:
    """Run the phases that change the machine. Arguments as in `_phases`."""
    with run.phase(phases.PREFLIGHT.name, phases.PREFLIGHT.detail) as say:
        say(demand(preflight(target, "rebuild")))
    yield phases.PREFLIGHT
    fence(run, environment, target)
    yield phases.FENCE
    for phase in phases.UP_TO_INGRESS:
        with _collecting(failures) if phase in phases.OF_THE_SERVICES else nullcontext():
            come_back(run, environment, target, phase, options)
        yield phase
    with _collecting(failures):
        lead_the_name(run, environment, target)
    yield phases.DNS
    with _collecting(failures):
        public_name(run, target)
    yield phases.PUBLIC_NAME
    backups_again(run, environment, target, failures, options)
    yield phases.BACKUPS_AGAIN
    with _collecting(failures):
        smoke_list(run, environment, target)
    yield phases.SMOKE
    with _collecting(failures):
        verify_again(run, environment, target)
    yield phases.VERIFY_AGAIN


@contextmanager
def _collecting(failures: list[PhaseFailedError]) -> Iterator[None]:
    """Go on after a phase that failed: a service that does not come back must not cost the others their backups."""
    try:
        yield
    except PhaseFailedError as error:
        failures.append(error)


def _exit_code(failures: Sequence[PhaseFailedError]) -> int:
    """Return the exit code of the first failure; 0 if there is none."""
    if not failures:
        return EXIT_PASS
    cause = failures[0].__cause__
    return cause.exit_code if isinstance(cause, MinipcError) else EXIT_FAIL


def record_of(
    run: Run, environment: Environment, alias: str, *, components: Sequence[str] | None, converge_phase: str = ""
) -> Record:
    """Return the record of a run on a machine, which may not answer. Arguments as in `Run.conclude`."""
    target = the_target(environment, alias)
    try:
        facts = describe(target, environment.backend)
    except MinipcError:
        # Not reached, or not let in: there is nothing to say about it but its name.
        facts = records.Target(backend="", name=alias, os="", kernel="", cpus=0, memory_mb=0)
    return run.conclude(
        target=facts,
        group=environment,
        runtime=target.settings.services.runtime,
        converge_phase=converge_phase,
        overrides=[],
        components=components,
    )


def fence(run: Run, environment: Environment, target: Target) -> None:
    """Lock the lost machine out of the off-site host, should it come back: its key is no longer accepted."""
    offsite = offsite_target(environment, target)
    if offsite is None:
        run.not_exercised(FENCE, not_provided(target.settings).get(FENCE, NO_OFFSITE))
        return
    with run.phase(phases.FENCE.name, phases.FENCE.detail) as say:
        on(offsite, "true")  # before the keys change: one that can't be reached would not learn the new ones
        # A recovery that goes on without us reads with the key that a first attempt made: another one would cut it off.
        kept = on(target, f"cat {UNFINISHED} 2>/dev/null || true")
        if kept and kept == _public_key(environment):
            say("the key that this rebuild created for the machine is kept")
        else:
            renew(environment.name, generation(target.settings))
        converge(environment, phases.FENCE.files, log=run.log, events=run.events, limit=offsite.alias)
        on(offsite, phases.LIST_REVOKED)
        on(target, f"[ ! -e {UNFINISHED} ] || cat > {UNFINISHED}", stdin=f"{_public_key(environment)}\n")


def _public_key(environment: Environment) -> str:
    """Of the key with which the machine comes to the off-site one."""
    return public_key(open_store(environment.name).get(SFTP_KEY))


def begin(target: Target, replace: str, say: Callable[[str], None], at: float | None = None) -> None:
    """Check whether a database exists already, and mark the machine as being rebuilt.

    A rebuild that was cut off finds its own mark and goes on.

    Args:
        replace: system identifier of the database that may be moved aside.
        at: the moment to return to, epoch seconds. Volumes and queues are then moved aside, too.

    Raises:
        RefusedError: there is a database, and it isn't that one, or an earlier rebuild returns to another moment.
            Nothing was changed.
    """
    wanted = "" if at is None else f"{at:.6f}"
    if on(target, f"[ ! -e {UNFINISHED} ] || echo there"):
        earlier = on(target, f"cat {backup_state.REBUILD_AT} 2>/dev/null || true")
        if earlier != wanted:
            raise RefusedError(
                f"{target.alias}: the rebuild that was begun returns to {_utc(earlier)}, not to {_utc(wanted)}",
                f"run it with that moment; or give it up, with `rm {UNFINISHED}` on the machine, and begin again with "
                "--replace-database. Nothing was changed",
            )
        say("continuing an earlier rebuild of this machine")
        return
    # What a restore that was cut off has left is no database.
    there = f"[ -e {DATA}/PG_VERSION ] && [ ! -e {RESTORE_UNFINISHED} ]"
    found = on(target, f"if {there}; then {SYSTEM_IDENTIFIER} || echo unknown; fi")
    if found and found != replace:
        typed = f"; --replace-database said {replace}" if replace else ""
        raise RefusedError(
            f"{target.alias} has a database, system identifier {found}{typed}",
            f"a rebuild would replace it by the backup. To do that, add --replace-database {found}; it is moved "
            "aside, not deleted. Nothing was changed",
        )
    if found:
        moment = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        aside = f"{DATA}.aside-{moment}"
        say("the public ports stay closed, and programs that write data stay stopped, until the data is verified")
        on(target, stop_writers(target.settings.services.declared), timeout_s=300)
        on(target, f"systemctl stop postgresql@17-main && mv {DATA} {aside}", timeout_s=600)
        say(f"the earlier database is in {aside}; remove it when it is no longer needed")
        if wanted:
            on(target, files_aside(target.settings, f"{ASIDE}{moment}"), timeout_s=600)
            say(f"the earlier volumes and queues are in {ASIDE}{moment}; remove them, too")
    # The moment first: a rebuild that is cut off here begins again.
    path = backup_state.REBUILD_AT
    mark = f"cat > {path}; sync {path}" if wanted else f"rm -f {path}"
    on(target, f"install -d -m 755 {Path(UNFINISHED).parent} && {{ {mark}; }} && touch {UNFINISHED}", stdin=wanted)


def files_aside(settings: Settings, folder: str) -> str:
    """Return the shell script that moves volumes and queues aside, so that they are restored, too.

    The first backups are taken again: only they contain the timeline that begins at the moment.
    """
    found = queues(settings)
    lines = ["set -eu", f"systemctl stop {shlex.join([*(each.unit for each in found), 'redis-server.service'])}"]
    lines.append(f"install -d -m 700 {folder}")
    for path in (*(each.path for each in volumes_of(settings.services.declared)), *(each.folder for each in found)):
        kept = Path(f"{folder}{path}")
        lines.append(f"[ ! -e {path} ] || {{ mkdir -p {kept.parent}; mv -T {path} {kept}; }}")
    forgotten = (backup_state.OUTCOMES, backup_state.RESTORED_PATHS, backup_state.RESTORED_VOLUMES)
    return "\n".join([*lines, f"rm -f {' '.join(map(str, forgotten))}"])


def _utc(moment: str) -> str:
    return f"{datetime.fromtimestamp(float(moment), UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else "the end of the WAL"


def go_on_without_state(run: Run, target: Target, options: Options) -> None:
    """Tell the machine's programs whether a backup of configuration and state that can't be read stops them."""
    path = backup_state.WITHOUT_STATE
    on(target, f"touch {path}" if options.without_state else f"rm -f {path}")
    if options.without_state:
        run.not_exercised("restore of certificates, past drills and queues", "--without-state: only what can be read")


def stop_writers(services: Iterable[Service]) -> str:
    """Return the shell script that stops the ingress and everything that writes by itself, of all services."""
    return STOP_WRITERS.replace("SERVICES", " ".join(each.name for each in services))


def come_back(
    run: Run, environment: Environment, target: Target, phase: phases.Phase, options: Options = AS_USUAL
) -> None:
    """Run one of the phases up to the ingress.

    Raises:
        PhaseFailedError: the same call goes on there.
    """
    if phase.runtime not in (None, target.settings.services.runtime):
        return
    with run.phase(phase.name, phase.detail) as say:
        if phase is phases.GITOPS:
            say(bring_up(environment, target))
            return
        _converge(run, environment, target, phase, options)
        if phase is phases.DATA:
            back = restored(target)
            run.data_classes += back.classes
            for what, why in back.gaps:
                run.not_exercised(what, why, "postgres")
            say(back.text)
            if back.damaged:
                run.note(f"another repository was used: {back.damaged}")
            if back.not_received:
                run.note(back.not_received)
            judge_age(run, back.age, target.settings.backups.rpo_budget_s, accept=options.accept_old_data)


def shorten_the_ttl(run: Run, target: Target) -> None:
    """While the rebuild goes on, caches forget the old address. A provider that can't be asked now holds nothing up."""
    if target.settings.dns.provider == "none":
        return
    try:
        dns_cutover.lower(open_provider(target.settings, run.note), target.settings, run.note)
    except MinipcError as error:
        run.note(f"the TTL of the public records was not changed: {error.what}")


def lead_the_name(run: Run, environment: Environment, target: Target, given: Addresses | None = None) -> None:
    """Make the public name lead to this machine, through its provider's API.

    Args:
        given: addresses, where neither the configuration nor the machine knows them.

    Raises:
        PhaseFailedError: see `playbooks/dns_cutover.py`.
    """
    if target.settings.dns.provider == "none":
        run.not_exercised("DNS cutover", "dns_provider is none: you change the records manually", "dns")
        return
    with run.phase(phases.DNS.name, phases.DNS.detail) as say:
        # A machine whose address is not fixed tells it itself.
        _converge(run, environment, target, phases.DNS)
        changed = cut_over(run, target, given)
        say("; ".join(map(str, changed)) or "the records were already correct")


def cut_over(run: Run, target: Target, given: Addresses | None = None) -> list[Change]:
    """Change the DNS records and return the changes. Raises as `playbooks/dns_cutover.py`."""
    addresses = dns_cutover.addresses_of(target, given or {})
    wanted = wanted_records(target.settings, target.data.get("machine_identity"), addresses)
    return dns_cutover.cutover(open_provider(target.settings, run.note), wanted, run.note)


def public_name(run: Run, target: Target, limit_s: float = 120) -> None:
    """Wait until each service answers users again: the end of the RTO.

    Raises:
        PhaseFailedError: one does not, within `limit_s`; it names all that don't.
    """
    pending = [each for each in target.settings.services.declared if each.ingress]
    if not pending:
        run.not_exercised("public name", "no service has an ingress", "edge")
        return
    with run.phase(phases.PUBLIC_NAME.name, phases.PUBLIC_NAME.detail) as say:
        say(answers_users(target, pending, limit_s))


def answers_users(target: Target, services: Sequence[Service], limit_s: float = 120) -> str:
    """Wait until each service answers users, and return their addresses. Raises CouldNotVerifyError after `limit_s`."""
    answers = wait_until(
        lambda: {each.name: readiness(target, each) for each in services},
        within_s=limit_s,
        every_s=0.2,
        until=lambda found: set(found.values()) == {READY},
    )
    failed = [f"{name}: {answer}" for name, answer in answers.items() if answer != READY]
    if failed:
        raise CouldNotVerifyError(
            f"not ready after {limit_s:.0f} s: {'; '.join(failed)}",
            f"`minipc verify --host {target.alias} edge services` shows what is wrong",
        )
    return ", ".join(f"https://{each.domain}" for each in services)


def readiness(target: Target, service: Service) -> str:
    """Return "ready", or what the ready path of a service answers.

    A service behind a password, or for the operator only, is asked on the machine itself.
    """
    ingress, health = service.ingress, service.health
    if ingress is None or health is None:
        return READY
    domain = ingress.domains[0]
    if ingress.audience == "public":
        side = target.side("public")
        # Without a name server of our own, ask this very machine: caches may still lead the name to the lost one.
        code = side.http_status(domain, health.ready, address=None if side.resolver else side.ipv4)
        if ingress.authentication is None:
            return READY if code == "200" else f"https://{domain}{health.ready} answers {code}"
        if code == "000" or code.startswith("5"):
            return f"https://{domain} answers {code}"
    return ready_on_machine(target, service)


def ready_on_machine(target: Target, service: Service) -> str:
    """Return "ready", or what the ready path of a service answers on the machine itself."""
    ingress, health = service.ingress, service.health
    if ingress is None or health is None:
        return READY
    ask = "curl --silent --noproxy '*' --max-time 5 --output /dev/null --write-out '%{http_code}'"
    url = shlex.quote(f"http://127.0.0.1:{ingress.node_port}{health.ready}")
    code = on(target, f"{ask} --header 'Host: {ingress.domains[0]}' {url} || true")
    return READY if code == "200" else f"{health.ready} answers {code} on the machine"


def backups_again(
    run: Run,
    environment: Environment,
    target: Target,
    failures: list[PhaseFailedError],
    options: Options = AS_USUAL,
) -> None:
    """Converge everything. If a service prevents that, converge backups and monitoring without it.

    Args:
        failures: gets the failure of the first attempt.

    Raises:
        PhaseFailedError: backups and monitoring could not be converged.
    """
    try:
        with run.phase(phases.BACKUPS_AGAIN.name, phases.BACKUPS_AGAIN.detail):
            _converge(run, environment, target, phases.BACKUPS_AGAIN, options)
    except PhaseFailedError as error:
        failures.append(error)
        with run.phase(f"{phases.BACKUPS_AGAIN.name}, without the services", "backups and monitoring"):
            files = phases.without_services()
            converge(environment, files, log=run.log, events=run.events, limit=target.alias, options=phases.RESTORE)
    # Now it is a machine in service, whatever a service does.
    on(target, f"rm -f {UNFINISHED} {backup_state.WITHOUT_STATE} {backup_state.REBUILD_AT}")
    run.versions |= versions(target)


def smoke_list(run: Run, environment: Environment, target: Target) -> None:
    """Is the service back: the list that `minipc verify --smoke` goes through."""
    with run.phase(phases.SMOKE.name, phases.SMOKE.detail) as say:
        say(smoke(environment, target, events=run.events, log=run.log).demand().summary)


def verify_again(run: Run, environment: Environment, target: Target) -> None:
    """Run all checks."""
    with run.phase(phases.VERIFY_AGAIN.name, phases.VERIFY_AGAIN.detail) as say:
        say(verify(environment, target, [], events=run.events, log=run.log).demand().summary)


def _converge(
    run: Run, environment: Environment, target: Target, phase: phases.Phase, options: Options = AS_USUAL
) -> None:
    told = [*phase.options, *(ACCEPT_GAP if options.accept_missing_wal and phase.role == "mini" else ())]
    converge(environment, phase.files, log=run.log, events=run.events, limit=target.alias, options=told)
