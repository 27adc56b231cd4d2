"""The rehearsal: a blank machine becomes the mini PC, is used, is lost, and comes back from the off-site copy alone.

minipc rehearse [--as production] [--keep] [--strict]
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import hashes

from minipc import certificates, lab, records
from minipc.components import deploy_files
from minipc.config.load import group_data
from minipc.converge import converge, plan
from minipc.display import console_for, print_summary, watch
from minipc.errors import CouldNotVerifyError, MinipcError
from minipc.inventory import HostEntry, Target, the_target
from minipc.lab.inventory import OFFSITE, entry, is_offsite, overrides, pin_lab_machine, stand_in_data
from minipc.lab.zone import Zone, serve
from minipc.paths import ROOT
from minipc.records import DataClassResult, Gate, Record
from minipc.remote import describe, on, query, versions
from minipc.run import PhaseFailedError, Run
from minipc.secrets import open_store
from minipc.secrets.catalogue import DNS_TOKEN
from minipc.secrets.generate import alphanumeric, generate
from minipc.timeline import OperationEnd, PhaseEnd, PhaseStart, read
from minipc.variables import REHEARSE_AS_VARIABLE
from minipc.verification import verify
from minipc.wording import count
from minipc.workload import image as images
from playbooks import gitops, real_kernel, rebuild, separation
from playbooks.adopt import adopt
from playbooks.backup import take
from playbooks.elsewhere import Elsewhere, Stick, end, seal
from playbooks.phases import PUBLIC_NAME
from playbooks.users import EVIDENCE, MUST_RECOVER, Acknowledged, read_acknowledged, user_name

CONVERGE = "converge"
DISK_GB = 6
# Images as files, and once more as containerd unpacks them.
K3S_GB = 4
# Users write for a while before and after the backup; the loss comes at a moment nobody chose.
USE_S = 6.0
LOSS_WITHIN_S = 12.0
# What may be lost on a machine whose segments are archived on time: one archive_timeout, and the push itself.
ARCHIVE_GRACE_S = 60
CA_FILE = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"


@dataclass(frozen=True)
class Options:
    """What a rehearsal may be told.

    Attributes:
        group: whose group_data is tried.
        keep: leave the machines up afterwards.
        k3s: the service runs in K3s, by ArgoCD; else it is a stand-in under systemd.
        zone: a public zone of the lab's own: DNS is cut over for real, over the provider's API.
        name: of the machine that is lost; the one it comes back on is `NAME-2`, the off-site one `offsite-NAME`.
    """

    group: Literal["lab", "production"] = "lab"
    backend: lab.BackendName = "nspawn"
    keep: bool = False
    name: str = "rehearsal"
    k3s: bool = False
    zone: bool = False


@dataclass
class Cast:
    """The machines of a rehearsal as they come and go, and the bundle, which is kept off all of them."""

    options: Options
    machines: dict[str, lab.Machine] = field(default_factory=dict)
    stick: Stick | None = None
    zone: Zone | None = None
    held: ExitStack = field(default_factory=ExitStack)

    def boot(self, name: str, *, disk_gb: int = DISK_GB) -> lab.Machine:
        """A blank machine."""
        k3s = self.options.k3s and not is_offsite(name)
        disk_gb += K3S_GB if k3s else 0
        backend = self.options.backend
        self.machines[name] = lab.up(name, keep=self.options.keep, disk_gb=disk_gb, k3s=k3s, backend=backend)
        return self.machines[name]

    def enrol(self, name: str) -> Target:
        """A blank machine that is ours."""
        machine = self.boot(name)
        adopt(self._entry(machine), machine.host_key_fingerprint, pin_lab_machine)
        return the_target("lab", name)

    def publish(self) -> None:
        """A zone for the public name, served as long as the machines are up."""
        domain: str = group_data(self.options.group)["edge_domain"]
        parent = domain.partition(".")[2] if domain.count(".") > 1 else domain
        self.zone = self.held.enter_context(serve(self.options.name, parent, _token(), keep=self.options.keep))

    def lose(self, name: str) -> None:
        """Power off, disk gone."""
        lab.destroy(self.machines.pop(name))

    def leave(self) -> None:
        """The end: the bundle goes, and all machines, unless they are kept."""
        self.held.close()
        if self.stick:
            self.stick.remove()
        if not self.options.keep:
            lab.down(list(self.machines))

    def _entry(self, machine: lab.Machine) -> HostEntry:
        group = self.options.group
        return entry(machine, **(stand_in_data(group) if group != "lab" else {}))


def rehearse(options: Options) -> tuple[Record, Path, Path]:
    """Runs the rehearsal.

    Returns:
        The record, its path, and the path of the HTML report.

    Raises:
        KeyboardInterrupt: it was interrupted; its record says so.
    """
    run = Run("rehearsal")
    cast = Cast(options)
    told = records.Target(backend=options.backend, name=options.name, os="", kernel="", cpus=0, memory_mb=0)
    runtime: Literal["k3s", "stand-in"] | None = None
    components: tuple[str, ...] = ()
    interrupted = False
    with watch(run.events), _group(options.group), sigterm_interrupts():
        try:
            with run.phase("prepare", "programs, base image, secrets"):
                emulated = lab.ensure_backend(options.backend)
                if options.k3s and not emulated:
                    images.ensure()
                generate("lab")
            if emulated:
                components = real_kernel.COMPONENTS
                told = real_kernel.rehearse(run, cast, CONVERGE)
            else:
                with run.phase("boot", "two blank machines: the mini PC and the off-site one"):
                    offsite = cast.enrol(OFFSITE + options.name)
                    if options.zone:
                        cast.publish()
                    target = cast.enrol(options.name)
                    told, runtime = describe(target, options.backend), target.settings.workload.runtime
                _build(run, target, offsite)
                _lose_and_rebuild(run, cast, target)
        except PhaseFailedError:
            run.note(f"what was printed: {run.log}")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            cast.leave()
    if interrupted:
        say_interrupted(run)
    record = run.conclude(
        target=told,
        group=options.group,
        runtime=runtime,
        converge_phase=CONVERGE,
        overrides=overrides(options.group, cast.zone) if options.group != "lab" else [],
        components=components,
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    if options.keep:
        _print_how_to_reach(cast)
    if interrupted:
        raise KeyboardInterrupt
    return record, record_path, report_path


def say_interrupted(run: Run) -> None:
    """The record of a run that was cut off can't be a pass, wherever it was."""
    phases = [event for event in read(run.events) if isinstance(event, PhaseEnd)]
    if not any(each.verdict != "pass" for each in phases):
        run.write(PhaseStart(phase="interrupted"))
        run.write(PhaseEnd(phase="interrupted", verdict="could-not-verify", detail="interrupted"))


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Whoever ends the process gets what Ctrl-C gives: machines removed, a record left."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_how_to_reach(cast: Cast) -> None:
    console = console_for()
    for name, machine in cast.machines.items():
        console.print(f"  Kept     {name}: `minipc lab ssh {name}`; gone with `minipc lab down {name}`")
        console.print(f"           public side {machine.public_ipv4}, operator side {machine.operator_ipv4}")


@contextmanager
def _group(group: str) -> Iterator[None]:
    """Tells the inventory, here and in the processes started from here, whose values to use."""
    if group != "lab":
        os.environ[REHEARSE_AS_VARIABLE] = group
    try:
        yield
    finally:
        os.environ.pop(REHEARSE_AS_VARIABLE, None)


def _build(run: Run, target: Target, offsite: Target) -> None:
    """Blank to verified. The second converge must find nothing to do: idempotency is a gate."""
    with run.phase("off-site", "the machine that keeps the backups"):
        converge("lab", deploy_files(), log=run.log, events=run.events, limit=offsite.alias)
    in_k3s = target.settings.workload.runtime == "k3s"
    if in_k3s:
        with run.phase("deploy repository", "what should run, on the off-site machine") as detail:
            detail(f"{gitops.fill(target, offsite)[:12]} pushed")
    with run.phase(CONVERGE, "deploys/site.py"):
        converge("lab", deploy_files(), log=run.log, events=run.events, limit=target.alias)
    if in_k3s:
        with run.phase("first release", "ArgoCD syncs; the smoke judges") as detail:
            detail(gitops.bring_up("lab", target))
    before = len(_operations(run))
    with run.phase("converge again", "must find nothing to do") as detail:
        converge("lab", deploy_files(), log=run.log, events=run.events, limit=target.alias)
        changed = [operation for operation in _operations(run)[before:] if operation.changed]
        detail("; ".join(f"{each.component}: {each.name}" for each in changed) or "0 changes")
        run.gates.append(Gate.judge("changes of the second converge", budget=0, seen=len(changed), unit="changes"))
    with run.phase("plan", "must find nothing pending") as detail:
        pending, _ = plan("lab", deploy_files(), limit=target.alias)
        detail("; ".join(f"{each.component}: {each.name}" for each in pending) or "0 changes")
        run.gates.append(Gate.judge("changes that a plan finds", budget=0, seen=len(pending), unit="changes"))
    run.versions |= versions(target)
    if target.settings.dns.provider != "none":
        with run.phase("first cutover", "the public name leads here") as detail:
            detail("; ".join(map(str, rebuild.cut_over(run, target))))
    with run.phase("verify", "from both sides") as detail:
        detail(verify("lab", target, [], events=run.events, log=run.log).demand().summary)
    with run.phase("separation", "who reaches what, from each side") as detail:
        detail(separation.short(run, target))


def _token() -> str:
    """What the zone's API asks for; the lab's own secret, as a user's would be."""
    store = open_store("lab")
    if DNS_TOKEN not in store.read([DNS_TOKEN]):
        store.set_many({DNS_TOKEN: alphanumeric()})
    return store.get(DNS_TOKEN).reveal()


def _operations(run: Run) -> list[OperationEnd]:
    return [event for event in read(run.events) if isinstance(event, OperationEnd)]


def _lose_and_rebuild(run: Run, cast: Cast, target: Target) -> None:
    """Users write, the machine is lost at a random moment, a blank one takes its place."""
    name = cast.options.name
    with run.phase("seal the bundle", "for the day of the loss, kept off the box") as detail:
        stick = cast.stick = seal("lab")
        found = [item for item in stick.manifest.fingerprints.items if item.startswith("secret ")]
        detail(f"{count(len(found), 'secret')}, keys, inventory, pins")
    with users_at_work(run, cast.machines[name], target) as list_file:
        with run.phase("use and back up", "users keep writing") as detail:
            time.sleep(USE_S)
            outcomes = take(target)
            failed = [f"{repo}: {outcome['error']}" for repo, outcome in outcomes.items() if not outcome["success"]]
            if failed:
                raise MinipcError("; ".join(failed), "`minipc backup now` takes it again")
            detail(", ".join(f"{repo} {outcome['seconds']:.1f} s" for repo, outcome in sorted(outcomes.items())))
            shown = _certificate(cast.machines[name], target)
        with run.phase("lose the machine", "power and disk, at a random moment") as detail:
            time.sleep(random.uniform(0, LOSS_WITHIN_S))  # noqa: S311 - not a secret
            cast.lose(name)
            lost_at = time.time()
            detail(f"{len(read_acknowledged(list_file))} writes had been acknowledged")
    acknowledged = [each for each in read_acknowledged(list_file) if each.at <= lost_at]
    promises = Promises(run.id, acknowledged, lost_at)
    with run.phase("boot again", "a blank machine in its place"):
        machine = cast.boot(f"{name}-2")
    try:
        _rebuild_elsewhere(run, cast, stick, machine)
        target = the_target("lab", machine.name)
        with run.phase("weigh", "what users were promised, against what came back") as detail:
            weigh(run, target, promises)
            detail("; ".join(f"{each.name}: {each.detail}" for each in run.data_classes))
            kept = _certificate(machine, target) == shown
            run.gates.append(
                Gate.judge("certificates issued anew", budget=0, seen=0 if kept else 1, unit="certificates")
            )
        run.versions |= versions(target)
    finally:
        # As far as it came: a rebuild that failed after the door opened still has its RTO.
        _time(run, target, lost_at)


def _rebuild_elsewhere(run: Run, cast: Cast, stick: Stick, machine: lab.Machine) -> None:
    """The rebuild, in a process of its own that has a clean clone, an empty home and the bundle, and nothing else.

    Raises:
        PhaseFailedError: it did not end well; its phases say why.
    """
    place: Elsewhere | None = None
    try:
        with run.phase("break glass", "another computer: empty HOME, clean clone, the bundle") as detail:
            place = Elsewhere()
            place.open(stick)
            place.connect([machine, cast.machines[OFFSITE + cast.options.name]])
            detail(f"rebuilt from: the bundle, {place}")
        for path in place.copied:
            run.note(f"not in the commit, copied into the clone: {path}")
        if place.copied:
            run.not_exercised("a rebuild from the commit alone", f"{count(len(place.copied), 'file')} not committed")
        process = place.rebuild(machine, run=run.directory, log=run.log)
        try:
            code = process.wait()
        except BaseException:
            end(process)
            raise
        if code:
            raise PhaseFailedError(f"the rebuild ended with {code}")
    finally:
        if place:
            place.hand_back(machine.name)
            place.remove()


def _time(run: Run, target: Target, lost_at: float) -> None:
    """RTO: from the loss to the moment when the rebuild saw the service answer, as a user would."""
    ends = [event for event in read(run.events) if isinstance(event, PhaseEnd)]
    answered = next((each.t for each in ends if each.phase == PUBLIC_NAME.name and each.verdict == "pass"), None)
    run.rto_budget_seconds = target.settings.backups.rto_budget_s
    run.rto_seconds = None if answered is None else answered - lost_at


def _certificate(machine: lab.Machine, target: Target) -> bytes:
    """What the public is shown: a rebuilt machine brings its certificate back instead of asking for a new one.

    Raises:
        CouldNotVerifyError: no certificate is shown.
    """
    domain = target.settings.edge.domain
    found = certificates.served(machine.public_ipv4, domain, ("ip", "netns", "exec", "public"))
    if found is None:
        raise CouldNotVerifyError(
            f"no certificate is shown for {domain} at {machine.public_ipv4}",
            f"`minipc verify edge --inventory lab --host {machine.name}` says what Caddy could not do",
        )
    return found.fingerprint(hashes.SHA256())


@contextmanager
def users_at_work(run: Run, machine: lab.Machine, target: Target) -> Iterator[Path]:
    """Writes from the public side for as long as the block lasts; yields the list of those that were acknowledged."""
    list_file = run.directory / "acknowledged.jsonl"
    ca_file = run.directory / "ca.crt"
    ca_file.write_text(on(target, f"cat {CA_FILE}") + "\n", encoding="utf-8")
    argv = ["ip", "netns", "exec", "public", sys.executable, "-m", "playbooks.users"]
    argv += ["--address", machine.public_ipv4, "--domain", target.settings.edge.domain, "--ca", str(ca_file)]
    argv += ["--run", run.id, "--acknowledged", str(list_file)]
    with run.log.open("ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield list_file
    finally:
        process.terminate()
        process.wait(timeout=30)


@dataclass(frozen=True)
class Promises:
    """What users were promised until the machine was lost.

    Attributes:
        run: id of the run in which they wrote.
        lost_at: moment of the loss, epoch seconds.
    """

    run: str
    acknowledged: list[Acknowledged]
    lost_at: float


def weigh(run: Run, target: Target, promises: Promises) -> None:
    """What users were promised against what came back: what is lost must be the end, and no longer than the budget.

    Raises:
        MinipcError: nothing came back.
    """
    found = {
        MUST_RECOVER: _numbers(target, promises.run, "SELECT user_id FROM notification_settings"),
        EVIDENCE: _numbers(target, promises.run, "SELECT user_id FROM app_events WHERE kind = 'rehearsal'"),
    }
    came_back = []
    results = []
    for data_class, numbers in found.items():
        promised = [each for each in promises.acknowledged if each.data_class == data_class]
        present = [each for each in promised if each.number in numbers]
        last = max((each.number for each in present), default=0)
        expected = [each for each in promised if each.number <= last]
        came_back += present
        holes = len(expected) - len(present)
        results.append(
            DataClassResult(
                name=data_class,
                verdict="fail" if holes or not present else "pass",
                rows_expected=len(expected),
                rows_found=len(present),
                detail=f"{len(promised)} acknowledged, {len(promised) - len(present)} lost, {holes} of them in between",
            )
        )
    run.data_classes += results
    if not came_back:
        raise MinipcError("none of the users' writes came back", "look at the backups: `minipc verify backups`")
    run.rpo_seconds = max(0.0, promises.lost_at - max(each.at for each in came_back))
    run.rpo_budget_seconds = target.settings.backups.rpo_budget_s
    # A short rehearsal can't fail 24 hours; this it can.
    bound = target.settings.backups.archive_timeout_s + ARCHIVE_GRACE_S
    run.gates.append(Gate.judge("RPO within archive_timeout", budget=bound, seen=run.rpo_seconds, unit="s"))


def _numbers(target: Target, run: str, sql: str) -> set[int]:
    prefix = user_name(run, 0).removesuffix("0")
    users = query(target, "workload", sql).splitlines()
    return {int(user.removeprefix(prefix)) for user in users if user.startswith(prefix)}
