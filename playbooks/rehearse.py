"""The rehearsal: a blank machine becomes the mini PC, is used, is lost, and comes back from the off-site copy alone.

minipc rehearse [--as production] [--keep] [--strict]
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minipc import lab, records
from minipc.components import deploy_files
from minipc.converge import converge, plan
from minipc.display import console_for, print_summary, watch
from minipc.errors import CouldNotVerifyError, MinipcError
from minipc.inventory import HostEntry, Target, the_target
from minipc.lab.inventory import OFFSITE, entry, overrides, pin_lab_machine, stand_in_data
from minipc.paths import ROOT
from minipc.records import DataClassResult, Gate, Record
from minipc.remote import describe, on, query, versions
from minipc.run import PhaseFailedError, Run
from minipc.secrets.generate import generate
from minipc.timeline import OperationEnd, read
from minipc.variables import REHEARSE_AS_VARIABLE
from minipc.verification import verify
from playbooks import rebuild
from playbooks.adopt import adopt
from playbooks.backup import take
from playbooks.users import EVIDENCE, MUST_RECOVER, Acknowledged, read_acknowledged, user_name

CONVERGE = "converge"
DISK_GB = 6
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
        name: of the machine that is lost; the one it comes back on is `NAME-2`, the off-site one `offsite-NAME`.
    """

    group: Literal["lab", "production"] = "lab"
    backend: str = "nspawn"
    keep: bool = False
    name: str = "rehearsal"


@dataclass
class Cast:
    """The machines of a rehearsal as they come and go."""

    options: Options
    machines: dict[str, lab.Machine] = field(default_factory=dict)

    def boot(self, name: str) -> Target:
        """A blank machine, enrolled."""
        machine = lab.up(name, keep=self.options.keep, disk_gb=DISK_GB)
        self.machines[name] = machine
        adopt(self._entry(machine), machine.host_key_fingerprint, pin_lab_machine)
        return the_target("lab", name)

    def lose(self, name: str) -> None:
        """Power off, disk gone."""
        lab.destroy(self.machines.pop(name))

    def leave(self) -> None:
        """The end: all machines go, unless they are kept."""
        if not self.options.keep:
            lab.down(list(self.machines))

    def _entry(self, machine: lab.Machine) -> HostEntry:
        group = self.options.group
        return entry(machine, **(stand_in_data(group) if group != "lab" else {}))


def rehearse(options: Options) -> tuple[Record, Path, Path]:
    """Runs the rehearsal.

    Returns:
        The record, its path, and the path of the HTML report.
    """
    run = Run("rehearsal")
    cast = Cast(options)
    told = records.Target(backend=options.backend, name=options.name, os="", kernel="", cpus=0, memory_mb=0)
    runtime: Literal["k3s", "stand-in"] | None = None
    with watch(run.events), _group(options.group):
        try:
            with run.phase("prepare", "programs, base image, secrets"):
                lab.ensure_prerequisites(install=True)
                lab.image.ensure()
                generate("lab")
            with run.phase("boot", "two blank machines: the mini PC and the off-site one"):
                offsite = cast.boot(OFFSITE + options.name)
                target = cast.boot(options.name)
                told, runtime = describe(target, options.backend), target.settings.workload.runtime
            _build(run, target, offsite)
            _lose_and_rebuild(run, cast, target)
        except PhaseFailedError:
            run.note(f"what was printed: {run.log}")
        finally:
            cast.leave()
    record = run.conclude(
        target=told,
        group=options.group,
        runtime=runtime,
        converge_phase=CONVERGE,
        overrides=overrides(options.group) if options.group != "lab" else [],
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    if options.keep:
        _print_how_to_reach(cast)
    return record, record_path, report_path


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
    with run.phase(CONVERGE, "deploys/site.py"):
        converge("lab", deploy_files(), log=run.log, events=run.events, limit=target.alias)
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
    with run.phase("verify", "from both sides") as detail:
        detail(verify("lab", target, [], events=run.events, log=run.log).demand().summary)


def _operations(run: Run) -> list[OperationEnd]:
    return [event for event in read(run.events) if isinstance(event, OperationEnd)]


def _lose_and_rebuild(run: Run, cast: Cast, target: Target) -> None:
    """Users write, the machine is lost at a random moment, a blank one takes its place."""
    list_file = run.directory / "acknowledged.jsonl"
    ca_file = run.directory / "ca.crt"
    ca_file.write_text(on(target, f"cat {CA_FILE}") + "\n", encoding="utf-8")
    name = cast.options.name
    with _users(run, cast.machines[name], target.settings.edge.domain, ca_file, list_file):
        with run.phase("use and back up", "users keep writing") as detail:
            time.sleep(USE_S)
            outcomes = take(target)
            failed = [f"{repo}: {outcome['error']}" for repo, outcome in outcomes.items() if not outcome["success"]]
            if failed:
                raise MinipcError("; ".join(failed), "`minipc backup now` takes it again")
            detail(", ".join(f"{repo} {outcome['seconds']:.1f} s" for repo, outcome in sorted(outcomes.items())))
        with run.phase("lose the machine", "power and disk, at a random moment") as detail:
            time.sleep(random.uniform(0, LOSS_WITHIN_S))  # noqa: S311 - not a secret
            cast.lose(name)
            lost_at = time.time()
            detail(f"{len(read_acknowledged(list_file))} writes had been acknowledged")
    acknowledged = [each for each in read_acknowledged(list_file) if each.at <= lost_at]
    with run.phase("boot again", "a blank machine in its place"):
        target = cast.boot(f"{name}-2")
    rebuild.fence(run, "lab", target)
    back = rebuild.come_back(run, "lab", target, data_is_back=lambda _: _weigh(run, target, acknowledged, lost_at))
    with run.phase("public name", "through the edge, from the public side") as detail:
        _wait_for_answer(cast.machines[target.alias], target)
        run.rto_seconds = time.time() - lost_at
        run.rto_budget_seconds = target.settings.backups.rto_budget_s
        detail(f"from {back.label or 'the database that was there'}")
    run.not_exercised(
        "DNS cutover", "dns_provider is none: the lab has no zone; the new address was asked directly", "dns"
    )
    rebuild.finish(run, "lab", target)


@contextmanager
def _users(run: Run, machine: lab.Machine, domain: str, ca_file: Path, list_file: Path) -> Iterator[None]:
    """Writes from the public side for as long as the block lasts."""
    argv = ["ip", "netns", "exec", "public", sys.executable, "-m", "playbooks.users"]
    argv += ["--address", machine.public_ipv4, "--domain", domain, "--ca", str(ca_file)]
    argv += ["--run", run.id, "--acknowledged", str(list_file)]
    with run.log.open("ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _weigh(run: Run, target: Target, acknowledged: list[Acknowledged], lost_at: float) -> None:
    """What users were promised against what came back: what is lost must be the end, and no longer than the budget.

    Raises:
        MinipcError: a write is missing although a later one of its class came back.
    """
    found = {
        MUST_RECOVER: _numbers(target, run, "SELECT user_id FROM notification_settings"),
        EVIDENCE: _numbers(target, run, "SELECT user_id FROM app_events WHERE kind = 'rehearsal'"),
    }
    came_back = []
    for data_class, numbers in found.items():
        promised = [each for each in acknowledged if each.data_class == data_class]
        present = [each for each in promised if each.number in numbers]
        last = max((each.number for each in present), default=0)
        expected = [each for each in promised if each.number <= last]
        came_back += present
        holes = len(expected) - len(present)
        run.data_classes.append(
            DataClassResult(
                name=data_class,
                verdict="fail" if holes or not present else "pass",
                rows_expected=len(expected),
                rows_found=len(present),
                detail=f"{len(promised)} acknowledged, {len(promised) - len(present)} lost, {holes} of them in between",
            )
        )
    if not came_back:
        raise MinipcError("none of the users' writes came back", "look at the backups: `minipc verify backups`")
    run.rpo_seconds = max(0.0, lost_at - max(each.at for each in came_back))
    run.rpo_budget_seconds = target.settings.backups.rpo_budget_s
    # A short rehearsal can't fail 24 hours; this it can.
    bound = target.settings.backups.archive_timeout_s + ARCHIVE_GRACE_S
    run.gates.append(Gate.judge("RPO within archive_timeout", budget=bound, seen=run.rpo_seconds, unit="s"))


def _numbers(target: Target, run: Run, sql: str) -> set[int]:
    prefix = user_name(run.id, 0).removesuffix("0")
    users = query(target, "workload", sql).splitlines()
    return {int(user.removeprefix(prefix)) for user in users if user.startswith(prefix)}


def _wait_for_answer(machine: lab.Machine, target: Target, limit_s: float = 120) -> None:
    domain = target.settings.edge.domain
    argv = ["ip", "netns", "exec", "public", "curl", "--silent", "--insecure", "--max-time", "5", "--noproxy", "*"]
    argv += ["--resolve", f"{domain}:443:{machine.public_ipv4}", "--output", "/dev/null", "--write-out", "%{http_code}"]
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done = subprocess.run([*argv, f"https://{domain}/api/readyz"], capture_output=True, text=True, timeout=20)
        if done.stdout == "200":
            return
        time.sleep(0.2)
    raise CouldNotVerifyError(f"https://{domain}/api/readyz did not answer 200 within {limit_s:.0f} s: {done.stdout}")
