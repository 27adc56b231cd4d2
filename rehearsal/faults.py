"""Rebuild under faults. Each fault must make the run fail for a named reason, or must be survived.

    minipc rehearse --list-faults
    minipc rehearse --fault NAME [--fault NAME]… | --fault all

Each fault writes a separate record with the plain result. The record of the table says whether each fault
went as expected.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minipc.core.environment import LAB
from minipc.core.errors import ConfigError, MinipcError
from minipc.evidence.event_stream import CheckEnd, PhaseEnd, read
from minipc.evidence.records import Record
from minipc.evidence.run import PhaseFailedError, Run
from minipc.remote.inventory import Target
from playbooks import phases
from rehearsal import fault_actions as actions
from rehearsal import lab
from rehearsal.data_loss import ALL_REPOSITORIES, measure_data_loss
from rehearsal.fault_setup import DuringRebuild, FaultSetup
from rehearsal.machines import DISK_GB, Options, RehearsalMachines, conclude, publish, unknown_target

ALL = "all"
Action = Callable[[FaultSetup], object]


@dataclass(frozen=True)
class Fault:
    """A fault, how it is injected and what is expected.

    Attributes:
        summary: what is wrong, in a sentence.
        reason: what a reason in the record must match (regular expression); empty if it must be survived.
        live: runs on the machine before the loss, as a separate run without a rebuild.
        before_loss: changes the machine before the last backup.
        before_rebuild: runs between the loss and the rebuild.
        during_rebuild: runs during the rebuild; the same command is then run again.
        after_rebuild: checks the rebuilt machine. Raises MinipcError.
        undo: reverts what `before_rebuild` changed outside the off-site repository.
        until: phase after which the rebuild stops, because the later ones do not matter for the fault.
        disk_gb: disk of the new machine, GiB.
        loss_delay_s: measure the data loss as if the machine had been lost so much later.
    """

    name: str
    summary: str
    reason: str = ""
    live: Callable[[Run, Target], None] | None = None
    before_loss: Callable[[Target], None] | None = None
    before_rebuild: Action | None = None
    during_rebuild: DuringRebuild | None = None
    after_rebuild: Action | None = None
    undo: Action | None = None
    until: phases.Phase = phases.SMOKE
    disk_gb: int = DISK_GB
    loss_delay_s: float = 0

    @property
    def expected(self) -> str:
        """Return what must happen, as the list of faults shows it."""
        return "fails" if self.reason else "survived"


FAULTS: tuple[Fault, ...] = (
    Fault(
        "drill-query-fails",
        "a query of the restore drill returns a wrong result",
        reason=r"expected == 4711",
        live=actions.fail_a_drill,
    ),
    Fault(
        "wrong-bundle-passphrase",
        "the bundle is opened with a wrong passphrase",
        reason=r"break glass: the passphrase is wrong",
        before_rebuild=actions.open_bundle_with_wrong_passphrase,
    ),
    Fault(
        "offsite-unreachable",
        "the off-site host is off",
        reason=r"fence: offsite-\S+: SSH failed",
        before_rebuild=lambda setup: lab.power_off(setup.offsite),
        undo=lambda setup: lab.start(setup.offsite),
    ),
    Fault(
        "disk-too-small",
        "the disk of the new machine is too small",
        reason=r"MB free below /var, \d+ MB are needed",
        disk_gb=1,
    ),
    Fault(
        "wrong-passphrase",
        "the bundle contains a wrong passphrase of the repository",
        reason=r"data: .*repo2 can't be decrypted: the passphrase is wrong",
        before_rebuild=actions.replace_repository_passphrase,
        undo=actions.restore_repository_passphrase,
    ),
    Fault(
        "missing-wal",
        "a WAL segment between the backup and the loss is missing",
        reason=r"data: WAL segment \w{24} is missing in every repository",
        before_rebuild=actions.remove_first_segment,
    ),
    Fault(
        "corrupted-backup",
        "bytes of the stored backup were overwritten",
        reason=r"data: the backup \S+ in repo2 is damaged",
        before_rebuild=actions.damage_backup,
    ),
    Fault(
        "old-backup",
        "nothing has reached the off-site host for 25 hours",
        reason=r"^RPO: 25 h",
        before_rebuild=actions.remove_all_segments,
        until=phases.DATA,
        loss_delay_s=25 * 3600,
    ),
    Fault("repo1-lost", "the local repository was lost before the machine", before_loss=actions.delete_repo1),
    Fault("rebuild-crash", "the controller crashes during the rebuild", during_rebuild=actions.kill_rebuild),
    Fault(
        "restore-interrupted",
        "the new machine loses power during the restore",
        during_rebuild=actions.cut_power_during_restore,
    ),
    Fault(
        "recovery-ended-early",
        "a WAL segment is missing while recovery needs it, and returns later",
        before_rebuild=actions.hide_segment_during_recovery,
        after_rebuild=actions.expect_one_new_timeline,
    ),
    Fault(
        "offsite-goes-away",
        "the off-site host is unreachable for a moment during recovery",
        before_rebuild=actions.stop_offsite_during_recovery,
    ),
    Fault(
        "repository-wiped",
        "the off-site repository was deleted with the machine's own key",
        before_rebuild=actions.wipe_repository,
        undo=lambda setup: setup.on_offsite("rm -rf /srv/minipc-offsite/copies/aside-*"),
    ),
    Fault(
        "lost-machine-returns",
        "the lost machine is switched on again",
        after_rebuild=actions.start_lost_machine,
        until=phases.DATA,
    ),
)


def chosen(names: Sequence[str]) -> list[Fault]:
    """Return the named faults in the order of the table, all for `all`. Raises ConfigError for an unknown name."""
    known = [fault.name for fault in FAULTS]
    if unknown := sorted(set(names) - {*known, ALL}):
        raise ConfigError(f"no such fault: {', '.join(unknown)}", f"there are: {', '.join([*known, ALL])}")
    return [fault for fault in FAULTS if ALL in names or fault.name in names]


def rehearse_faults(names: Sequence[str], options: Options) -> Record:
    """Prepare the machines, inject each fault, and record whether it went as expected.

    Raises:
        ConfigError: unknown name, or options that faults do not support.
        KeyboardInterrupt: it was interrupted; its record says so.
    """
    faults = chosen(names)
    if options.group is not LAB or options.k3s:
        raise ConfigError(
            "faults are about data: they use the lab's settings and run the service under systemd",
            "omit --as and --runtime",
        )
    run = Run("faults")
    machines = RehearsalMachines(options)
    with machines.recorded(run):
        setup = FaultSetup(run, machines)
        mini = setup.build()
        for fault in faults:
            if fault.live:
                _inject(setup, fault, mini)
        before_loss = [fault.before_loss for fault in faults if fault.before_loss]
        for change in before_loss:
            change(mini)
        setup.lose(mini, ("repo2", "restic") if before_loss else ALL_REPOSITORIES)
        for fault in faults:
            if not fault.live:
                _inject(setup, fault, mini)
    record = conclude(run, machines.description)
    publish(run, record)
    if machines.interrupted:
        raise KeyboardInterrupt
    return record


def _inject(setup: FaultSetup, fault: Fault, mini: Target) -> None:
    """Inject a fault as a phase of the table's run, which passes if the fault went as expected.

    A fault that went otherwise does not prevent the next one.
    """
    started = time.time()
    error = ""
    try:
        with setup.run.phase(fault.name, fault.summary) as detail:
            record, path = _record_of(setup, fault, mini)
            detail(f"{_judge(fault, record)} (record {path.name})")
    except PhaseFailedError as failure:
        error = failure.what
    setup.run.write(
        CheckEnd(
            component="faults",
            name=fault.name,
            outcome="failed" if error else "passed",
            seconds=round(time.time() - started, 1),
            message=error,
        )
    )


def _judge(fault: Fault, record: Record) -> str:
    """Return what happened, in a sentence. Raises MinipcError if it is not what was expected."""
    reasons = "; ".join(record.reasons[:4]) or "no reason"
    if not fault.reason:
        if record.verdict != "pass":
            raise MinipcError(f"expected a pass, but it failed: {reasons}")
        return "survived"
    if record.verdict == "pass":
        raise MinipcError("expected a failure, but it passed")
    matching = [reason for reason in record.reasons if re.search(fault.reason, reason)]
    if not matching:
        raise MinipcError(f"failed, but not with {fault.reason!r}: {reasons}")
    return f"failed as expected: {matching[0]}"


def _record_of(setup: FaultSetup, fault: Fault, mini: Target) -> tuple[Record, Path]:
    """Inject a fault. Returns the record, made as if nobody knew of the fault, and its path."""
    run = Run("fault")
    setup.run.note(f"{fault.name}: details in {run.directory}")
    try:
        if fault.live:
            fault.live(run, mini)
        else:
            _rebuild(setup, fault, run)
    except PhaseFailedError as error:
        run.note(error.what)
    record = conclude(run, unknown_target(fault.name))
    return record, run.publish(record)[1]


def _rebuild(setup: FaultSetup, fault: Fault, run: Run) -> None:
    """Rebuild under a fault. Raises PhaseFailedError if something outside the rebuild failed."""
    try:
        with run.phase("break glass", "open the bundle on another computer"):
            _call(fault.before_rebuild, setup)
        code = setup.rebuild(run, fault.until.name, fault.during_rebuild, fault.disk_gb)
        _require_reason(run, code)
        if code == 0 and setup.rebuilt:
            with run.phase("measure data loss", "compare acknowledged writes with restored writes"):
                lost_at = setup.acknowledged.lost_at + fault.loss_delay_s
                measure_data_loss(run, setup.rebuilt, replace(setup.acknowledged, lost_at=lost_at))
            with run.phase("check the result", "on the rebuilt machine"):
                _call(fault.after_rebuild, setup)
            # A rebuild that stops after the data has run no check, and would have exercised nothing.
            run.write(CheckEnd(component="faults", name="the result is as expected", outcome="passed", seconds=0))
    finally:
        _call(fault.undo, setup)
        setup.reset()
        if fault.disk_gb != DISK_GB:
            setup.remove_blank()


def _call(action: Action | None, setup: FaultSetup) -> None:
    if action:
        action(setup)


def _require_reason(run: Run, code: int) -> None:
    """Raise PhaseFailedError if a rebuild failed and no phase says why."""
    ends = [event for event in read(run.events) if isinstance(event, PhaseEnd)]
    if code and all(phase.verdict == "pass" for phase in ends):
        with run.phase("rebuild"):
            raise MinipcError(f"it ended with {code} and no reason", f"read {run.log}")
