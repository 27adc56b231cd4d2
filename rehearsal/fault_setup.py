"""Prepare what every fault starts from: a machine with users, backups off-site and a sealed bundle. Then lose it.

It is built once. After each fault the off-site repository is put back to its state at the moment of the loss, so every
fault meets the same conditions. A blank machine is reused until a database is restored to it.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.core.polling import wait_until
from minipc.evidence.event_stream import OperationStart, PhaseEnd, PhaseStart, read
from minipc.evidence.run import Run
from minipc.pyinfra_ext.converge import converge
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import on, query
from minipc.secrets.generate import generate
from playbooks import phases
from rehearsal import lab
from rehearsal.data_loss import AcknowledgedWrites, load_running, use_and_back_up
from rehearsal.machines import DISK_GB, RehearsalMachines
from rehearsal.second_controller import SealedBundle, SecondController, end

REPOSITORY = "/srv/minipc-offsite/sftp/pgbackrest"
REPOSITORY_COPY = "/srv/minipc-offsite/kept-for-faults"
DATABASE = "/var/lib/postgresql/17/main/global/pg_control"
USE_S = 4.0
POLL_S = 0.1
ARRIVAL_S = 180


@dataclass
class FaultSetup:
    """The handles that are passed to a fault.

    Attributes:
        run: the run of the whole table.
        bundle: sealed before the loss.
        controller: the second controller, on which the bundle is open.
        acknowledged: what users wrote until the loss.
        last_backup_wal: the last WAL segment that the newest off-site backup needs.
        blank: a machine without a database, ready to be rebuilt.
        rebuilt: the machine that was rebuilt last.
    """

    run: Run
    machines: RehearsalMachines
    bundle: SealedBundle = field(init=False)
    controller: SecondController = field(init=False)
    acknowledged: AcknowledgedWrites = field(init=False)
    last_backup_wal: str = ""
    blank: lab.Machine | None = None
    rebuilt: Target | None = None
    count: int = 1

    @property
    def lost(self) -> lab.Machine:
        """Return the lost machine. It is powered off and still has its disk."""
        return self.machines.by_name[self.machines.options.name]

    @property
    def offsite(self) -> lab.Machine:
        """Return the off-site host."""
        return self.machines.offsite

    def on_offsite(self, script: str) -> str:
        """Run a script on the off-site host. Returns its output."""
        return on(the_target(LAB, self.offsite.name), script, timeout_s=600)

    def build(self) -> Target:
        """Boot and converge the off-site host and the machine that will be lost. Returns the latter."""
        with self.run.phase("prepare", "programs, base image, secrets"):
            lab.ensure_prerequisites(install=True)
            lab.ensure_image()
            generate("lab")
        mini, offsite = self.machines.boot_both(self.run)
        for target in filter(None, (offsite, mini)):
            with self.run.phase(f"converge {target.role}", "deploys/site.py"):
                converge(LAB, deploy_files(), log=self.run.log, events=self.run.events, limit=target.alias)
        return mini

    def lose(self, mini: Target, required_backups: Collection[str]) -> None:
        """Let users write, take backups, cut the power, and open the bundle on a second controller.

        Args:
            required_backups: repositories whose backup must succeed.
        """
        self.bundle = self.machines.seal_bundle(self.run)
        with load_running(self.run, self.lost, mini) as list_file:
            with self.run.phase("use and back up", "users keep writing") as detail:
                detail(use_and_back_up(mini, USE_S, required_backups))
                self.last_backup_wal = _offsite_info(mini)["backup"][-1]["archive"]["stop"]
                _fill_segments(mini)
            with self.run.phase("lose the machine", "cut the power; the disk stays"):
                time.sleep(USE_S)
                lab.power_off(self.lost)
                lost_at = time.time()
        self.acknowledged = AcknowledgedWrites.before(lost_at, self.run, list_file)
        self.on_offsite(f"rm -rf {REPOSITORY_COPY} && cp -a {REPOSITORY} {REPOSITORY_COPY}")
        self.controller = self.machines.open_bundle(self.run, self.bundle)

    def take_blank(self, disk_gb: int = DISK_GB) -> lab.Machine:
        """Return a machine without a database that the second controller can reach. Boot a new one if needed."""
        if self.blank is None or self.blank.disk_gb != disk_gb:
            self.remove_blank()
            self.count += 1
            self.blank = self.machines.boot(f"{self.machines.options.name}-{self.count}", disk_gb=disk_gb)
        self.controller.connect([self.blank, self.offsite])
        return self.blank

    def remove_blank(self) -> None:
        """Remove the blank machine: the next rebuild gets a new one."""
        if self.blank:
            self.machines.destroy(self.blank.name)
        self.blank = None

    def reset(self) -> None:
        """Put the off-site repository back to its state at the loss, and remove the rebuilt machine."""
        self.on_offsite(f"rm -rf {REPOSITORY}/* && cp -a {REPOSITORY_COPY}/. {REPOSITORY}/")
        if self.rebuilt:
            self.machines.destroy(self.rebuilt.alias)
        self.rebuilt = None

    def rebuild(self, run: Run, until: str, during: DuringRebuild | None, disk_gb: int) -> int:
        """Rebuild a blank machine as a part of a run. Returns the exit code of the last attempt.

        Args:
            during: interferes with the first attempt. The same command is then run again.
        """
        machine = self.take_blank(disk_gb)
        try:
            for action in [during, None] if during else [None]:
                code = self._attempt(run, machine, until, action)
        finally:
            self.controller.copy_keys_back(machine.name)
        if lab.run(machine, ["test", "-e", DATABASE], check=False).returncode == 0:
            self.rebuilt, self.blank = the_target(LAB, machine.name), None
        return code

    def expect_failure(self, reason: str, during: DuringRebuild | None = None) -> None:
        """Run a rebuild that must fail in its data phase. It has a run that no record is made of.

        Args:
            reason: what the reason must match (regular expression).

        Raises:
            MinipcError: it passed, or failed for another reason.
        """
        run = Run("fault")
        code = self._attempt(run, self.take_blank(), phases.DATA.name, during)
        ends = [event for event in read(run.events) if isinstance(event, PhaseEnd) and event.verdict != "pass"]
        seen = f"{ends[-1].phase}: {ends[-1].detail}" if code and ends else f"exit code {code} without a reason"
        if not re.search(reason, seen):
            raise MinipcError(f"the first attempt should have failed with {reason!r}, but: {seen}", f"read {run.log}")

    def _attempt(self, run: Run, machine: lab.Machine, until: str, during: DuringRebuild | None) -> int:
        """Run the rebuild once, and an action while it runs. Returns its exit code."""
        process = self.controller.rebuild(machine, run=run.directory, log=run.log, until=until)
        try:
            if during:
                during(self, RunningRebuild(process, run, machine))
            return process.wait(timeout=900)
        except BaseException:
            end(process)
            raise


@dataclass(frozen=True)
class RunningRebuild:
    """A rebuild while it runs."""

    process: subprocess.Popen[bytes]
    run: Run
    machine: lab.Machine

    def wait_for_phase(self, phase: str) -> None:
        """Wait until the first operation of a phase begins. Raises MinipcError if the rebuild ends before."""

        def operates() -> bool:
            events = read(self.run.events)
            starts = [n for n, event in enumerate(events) if isinstance(event, PhaseStart) and event.phase == phase]
            return bool(starts) and any(isinstance(event, OperationStart) for event in events[starts[-1] :])

        self._wait(operates, f"an operation ran in phase {phase}")

    def wait_for_machine(self, test: str) -> None:
        """Wait until a shell test is true on the machine. Raises MinipcError if the rebuild ends before."""
        self._wait(lambda: lab.run(self.machine, ["sh", "-c", test], check=False).returncode == 0, f"`{test}` was true")

    def _wait(self, condition: Callable[[], bool], description: str) -> None:
        while not condition():
            if self.process.poll() is not None:
                raise MinipcError(f"the rebuild ended before {description}", f"read {self.run.log}")
            time.sleep(POLL_S)


DuringRebuild = Callable[[FaultSetup, RunningRebuild], None]


def _fill_segments(mini: Target) -> None:
    """Archive three segments of users' writes after the backup, so that one in the middle can be missing."""
    for _ in range(3):
        time.sleep(1)
        segment = query(mini, "postgres", "SELECT pg_walfile_name(pg_switch_wal())")

    def arrived() -> bool:
        return (_offsite_info(mini)["archive"][-1]["max"] or "") >= segment

    if not wait_until(arrived, within_s=ARRIVAL_S, every_s=1):
        raise MinipcError(
            f"WAL segment {segment} has not arrived off-site",
            f"find the cause with `minipc verify backups --inventory lab --host {mini.alias}`",
        )


def _offsite_info(mini: Target) -> dict[str, Any]:
    """Return what pgBackRest knows about the off-site repository."""
    command = "cd / && runuser -u postgres -- pgbackrest --stanza=main --repo=2 --output=json info"
    return dict(json.loads(on(mini, command, timeout_s=120))[0])
