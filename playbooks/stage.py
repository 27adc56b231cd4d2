"""The stage on which faults are played: a machine with users, its backups off-site, its bundle; then it is lost.

It is built once. After each fault the off-site repository is again what it was at the moment of the loss, so every
fault meets the same world. A blank machine is used again for as long as no database came onto it.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minipc import lab
from minipc.components import deploy_files
from minipc.converge import converge
from minipc.errors import MinipcError
from minipc.facts.postgres import RESTORE_OUTCOME, RESTORE_UNFINISHED
from minipc.inventory import Target, the_target
from minipc.lab.inventory import OFFSITE
from minipc.remote import on, query
from minipc.run import Run
from minipc.secrets.generate import generate
from minipc.timeline import OperationStart, PhaseEnd, PhaseStart, read
from playbooks.backup import take
from playbooks.elsewhere import Elsewhere, Stick, end, seal
from playbooks.rehearse import DISK_GB, Cast, Promises, users_at_work
from playbooks.users import read_acknowledged

REPOSITORY = "/srv/minipc-offsite/sftp/pgbackrest"
KEPT = "/srv/minipc-offsite/kept-for-faults"
USE_S = 4.0
POLL_S = 0.1


@dataclass
class Stage:
    """What a fault can lay its hands on.

    Attributes:
        run: the run of the whole table.
        stick: the bundle, sealed before the loss.
        place: the other computer, with the bundle opened.
        promises: what users were promised until the loss.
        last_backup_wal: the last WAL segment that the newest backup off-site needs.
        blank: a machine without a database, ready to be rebuilt.
        rebuilt: the last machine that came back.
    """

    run: Run
    cast: Cast
    stick: Stick = field(init=False)
    place: Elsewhere | None = None
    promises: Promises = field(init=False)
    last_backup_wal: str = ""
    blank: lab.Machine | None = None
    rebuilt: Target | None = None
    count: int = 1

    @property
    def lost(self) -> lab.Machine:
        """The machine that is lost; powered off, with its disk."""
        return self.cast.machines[self.cast.options.name]

    @property
    def offsite(self) -> lab.Machine:
        """The machine with the backups."""
        return self.cast.machines[OFFSITE + self.cast.options.name]

    @property
    def offsite_target(self) -> Target:
        """The same, as the inventory has it."""
        return the_target("lab", self.offsite.name)

    def build(self) -> Target:
        """Both machines, converged; the one that will be lost."""
        with self.run.phase("prepare", "programs, base image, secrets"):
            lab.ensure_prerequisites(install=True)
            lab.image.ensure()
            generate("lab")
        with self.run.phase("boot", "the mini PC and the off-site one"):
            offsite = self.cast.enrol(OFFSITE + self.cast.options.name)
            mini = self.cast.enrol(self.cast.options.name)
        for target in (offsite, mini):
            with self.run.phase(f"converge {target.role}", "deploys/site.py"):
                converge("lab", deploy_files(), log=self.run.log, events=self.run.events, limit=target.alias)
        return mini

    def lose(self, mini: Target, needed: tuple[str, ...] = ("repo1", "repo2", "restic")) -> None:
        """Users write, backups are taken, and the power goes.

        Args:
            needed: the repositories whose backup must succeed.
        """
        with self.run.phase("seal the bundle", "kept off the box"):
            self.stick = self.cast.stick = seal("lab")
        machine = self.cast.machines[mini.alias]
        with users_at_work(self.run, machine, mini) as list_file:
            with self.run.phase("use and back up", "users keep writing"):
                time.sleep(USE_S)
                outcomes = take(mini)
                failed = [f"{repo}: {outcomes[repo]['error']}" for repo in needed if not outcomes[repo]["success"]]
                if failed:
                    raise MinipcError("; ".join(failed), "`journalctl -u 'minipc-backup@*' -n 50` on the machine")
                self.last_backup_wal = _info(mini)["backup"][-1]["archive"]["stop"]
                self._fill_segments(mini)
            with self.run.phase("lose the machine", "power; the disk stays where it is"):
                time.sleep(USE_S)
                lab.power_off(machine)
                lost_at = time.time()
        acknowledged = [each for each in read_acknowledged(list_file) if each.at <= lost_at]
        self.promises = Promises(self.run.id, acknowledged, lost_at)
        on(self.offsite_target, f"rm -rf {KEPT} && cp -a {REPOSITORY} {KEPT}", timeout_s=600)
        with self.run.phase("break glass", "another computer: empty HOME, clean clone, the bundle") as say:
            self.place = Elsewhere()
            self.place.open(self.stick)
            say(f"rebuilt from: the bundle, {self.place}")

    def _fill_segments(self, mini: Target) -> None:
        """Three segments of users' writes after the backup, so that one in the middle can be missing."""
        for _ in range(3):
            time.sleep(1)
            segment = query(mini, "postgres", "SELECT pg_walfile_name(pg_switch_wal())")
        give_up_at = time.monotonic() + 180
        while (_info(mini)["archive"][-1]["max"] or "") < segment:
            if time.monotonic() > give_up_at:
                raise MinipcError(
                    f"WAL segment {segment} has not arrived off-site",
                    f"`minipc verify backups --inventory lab --host {mini.alias}` says what holds it up",
                )
            time.sleep(1)

    def reset(self) -> None:
        """The off-site repository as it was when the machine was lost."""
        script = f"rm -rf {REPOSITORY}/* && cp -a {KEPT}/. {REPOSITORY}/"
        on(self.offsite_target, script, timeout_s=600)

    def take_blank(self, disk_gb: int = DISK_GB) -> lab.Machine:
        """A machine without a database; the one of before, when it is still without."""
        if self.blank is None or self.blank.disk_gb != disk_gb:
            self.give_up_blank()
            self.count += 1
            self.blank = self.cast.boot(f"{self.cast.options.name}-{self.count}", disk_gb=disk_gb)
        if self.place is None:
            raise MinipcError("nothing was lost yet")
        self.place.connect([self.blank, self.offsite])
        return self.blank

    def give_up_blank(self) -> None:
        """The next rebuild gets a new machine."""
        if self.blank:
            self.cast.lose(self.blank.name)
        self.blank = None

    def clear(self, *, blank: bool) -> None:
        """The machine that came back has played its part; with `blank` the blank one, too."""
        if self.rebuilt:
            self.cast.lose(self.rebuilt.alias)
        self.rebuilt = None
        if blank:
            self.give_up_blank()

    def rebuild(self, run: Run, until: str, meanwhile: Callable[[Stage, Attempt], None] | None, disk_gb: int) -> int:
        """A rebuild as a part of a run; returns its exit code.

        Args:
            meanwhile: plays a fault while the rebuild runs; the same command is then run again.
        """
        machine = self.take_blank(disk_gb)
        if self.place is None:
            raise MinipcError("nothing was lost yet")
        attempts = [meanwhile, None] if meanwhile else [None]
        try:
            for play in attempts:
                code = self._attempt(run, machine, until, play)
        finally:
            self.place.hand_back(machine.name)
        if (
            lab.run(machine, ["test", "-e", "/var/lib/postgresql/17/main/global/pg_control"], check=False).returncode
            == 0
        ):
            self.rebuilt, self.blank = the_target("lab", machine.name), None
        return code

    def fail_once(self, until: str, play: Callable[[Stage, Attempt], None]) -> str:
        """A rebuild that fails and that nobody judges: its run is its own. What comes after it is `rebuild`.

        Args:
            play: plays a fault while it runs.

        Returns:
            Why it failed, in its own words.

        Raises:
            MinipcError: it did not fail.
        """
        run = Run("fault")
        code = self._attempt(run, self.take_blank(), until, play)
        ends = [event for event in read(run.events) if isinstance(event, PhaseEnd) and event.verdict != "pass"]
        if not code or not ends:
            raise MinipcError("the rebuild should have failed", f"read {run.log}")
        return f"{ends[-1].phase}: {ends[-1].detail}"

    def _attempt(
        self, run: Run, machine: lab.Machine, until: str, play: Callable[[Stage, Attempt], None] | None
    ) -> int:
        """The rebuild's command once, with what is played meanwhile; returns its exit code."""
        if self.place is None:
            raise MinipcError("nothing was lost yet")
        process = self.place.rebuild(machine, run=run.directory, log=run.log, until=until)
        try:
            if play:
                play(self, Attempt(process, run, machine))
            return process.wait(timeout=900)
        except BaseException:
            end(process)
            raise

    def leave(self) -> None:
        """The end."""
        if self.place:
            self.place.remove()
        self.cast.leave()


@dataclass(frozen=True)
class Attempt:
    """A rebuild while it runs."""

    process: subprocess.Popen[bytes]
    run: Run
    machine: lab.Machine

    def wait_for_operation(self, phase: str) -> None:
        """Until the first operation in that phase begins. Raises MinipcError when the rebuild ends before."""
        self._wait_until(lambda: self._operates_in(phase), f"an operation in phase {phase}")

    def wait_for_file(self, path: str) -> None:
        """Until the machine has a file. Raises MinipcError when the rebuild ends before."""
        self._wait_until(
            lambda: lab.run(self.machine, ["test", "-e", path], check=False).returncode == 0, f"{path} on the machine"
        )

    def wait_for_restored_files(self) -> None:
        """Until the files of the backup are back, before the server starts. Raises MinipcError as the others."""
        there = f"[ -e {RESTORE_OUTCOME} ] && [ ! -e {RESTORE_UNFINISHED} ]"
        self._wait_until(lambda: self._true(there), "a restored data directory on the machine")

    def _true(self, script: str) -> bool:
        return lab.run(self.machine, ["sh", "-c", script], check=False).returncode == 0

    def _operates_in(self, phase: str) -> bool:
        events = read(self.run.events)
        begins = [n for n, event in enumerate(events) if isinstance(event, PhaseStart) and event.phase == phase]
        return bool(begins) and any(isinstance(event, OperationStart) for event in events[begins[-1] :])

    def _wait_until(self, true: Callable[[], bool], what: str) -> None:
        while not true():
            if self.process.poll() is not None:
                raise MinipcError(f"the rebuild ended before there was {what}", f"read {self.run.log}")
            time.sleep(POLL_S)


def _info(mini: Target) -> dict[str, Any]:
    command = "cd / && runuser -u postgres -- pgbackrest --stanza=main --repo=2 --output=json info"
    return dict(json.loads(on(mini, command, timeout_s=120))[0])
