"""Faults that a rebuild may meet. Each is expected to go red for a named reason, or to be survived.

    minipc rehearse --list-faults
    minipc rehearse --fault NAME [--fault NAME]… | --fault all

Each leaves a record of its own, red where it is meant to be; the record of the table says whether all went as expected.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minipc import records
from minipc.display import print_summary, watch
from minipc.errors import ConfigError, MinipcError
from minipc.inventory import Target
from minipc.records import Record
from minipc.remote import describe
from minipc.run import PhaseFailedError, Run
from minipc.timeline import CheckEnd, PhaseEnd, read
from playbooks import phases, plays
from playbooks.rehearse import DISK_GB, Cast, Options, Promises, say_interrupted, sigterm_interrupts, weigh
from playbooks.stage import Attempt, Stage

ALL = "all"
# RPO over budget can't be waited for: the loss is judged as if it had come so much later.
DAY_AND_AN_HOUR_S = 25 * 3600


def _nothing(stage: Stage) -> None:
    """No part of this fault."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        summary: what is wrong, for people.
        reason: what a reason in the record must match (regular expression); empty: it must be survived.
        live: played on the machine before it is lost, as a run of its own; there is no rebuild then.
        before_loss: changes the machine before the last backup.
        spoil: played between the loss and the rebuild.
        meanwhile: played while the rebuild runs; then the same command is run again.
        after: looks at what came back. Raises MinipcError.
        mend: undoes `spoil`, where the off-site repository is not all it changed.
        until: where the rebuild stops: what comes later has nothing to do with the fault.
        disk_gb: of the new machine, GiB.
        later_s: the loss is judged as if it had come so much later.
    """

    name: str
    summary: str
    reason: str = ""
    live: Callable[[Run, Target], None] | None = None
    before_loss: Callable[[Target], None] | None = None
    spoil: Callable[[Stage], None] = _nothing
    meanwhile: Callable[[Stage, Attempt], None] | None = None
    after: Callable[[Stage], None] = _nothing
    mend: Callable[[Stage], None] = _nothing
    until: phases.Phase = phases.SMOKE
    disk_gb: int = DISK_GB
    later_s: float = 0


# --- the table ------------------------------------------------------------------------------------------------------

FAULTS: tuple[Fault, ...] = (
    Fault(
        "drill-query-fails",
        "the restore drill asks, and the answer is wrong",
        reason=r"expected == 4711",
        live=plays.fail_a_drill,
    ),
    Fault(
        "wrong-bundle-passphrase",
        "nobody knows the bundle's passphrase any more",
        reason=r"break glass: the passphrase is wrong",
        spoil=plays.guess,
    ),
    Fault(
        "offsite-unreachable",
        "the off-site machine is off",
        reason=r"fence: offsite-\S+: SSH failed",
        spoil=plays.switch_offsite_off,
        mend=plays.switch_offsite_on,
    ),
    Fault(
        "disk-too-small",
        "the new machine's disk is too small",
        reason=r"MB free below /var, \d+ MB are needed",
        disk_gb=1,
    ),
    Fault(
        "wrong-passphrase",
        "the repository's passphrase in the bundle is another one's",
        reason=r"data: .*repo2 can't be decrypted: the passphrase is wrong",
        spoil=plays.forget_the_passphrase,
        mend=plays.remember_the_passphrase,
    ),
    Fault(
        "missing-wal",
        "a WAL segment between the backup and the loss is gone",
        reason=r"data: WAL segment \w{24} is missing in every repository",
        spoil=plays.remove_a_segment,
    ),
    Fault(
        "corrupted-backup",
        "bytes of the stored backup have changed",
        reason=r"data: the backup \S+ in repo2 is damaged",
        spoil=plays.damage_the_backup,
    ),
    Fault(
        "old-backup",
        "nothing has reached the off-site machine for 25 hours",
        reason=r"^RPO: 25 h",
        spoil=plays.remove_all_wal_after_the_backup,
        until=phases.DATA,
        later_s=DAY_AND_AN_HOUR_S,
    ),
    Fault("repo1-lost", "the local repository died before the machine did", before_loss=plays.lose_repo1),
    Fault("rebuild-crash", "the computer that rebuilds dies half-way", meanwhile=plays.crash),
    Fault("restore-interrupted", "the new machine loses its power during the restore", meanwhile=plays.cut_the_power),
    Fault(
        "recovery-ended-early",
        "a WAL segment can't be had when recovery comes to it",
        spoil=plays.end_recovery_early,
        after=plays.look_for_one_new_timeline,
    ),
    Fault(
        "offsite-goes-away",
        "the off-site machine is away for a moment while WAL is replayed",
        spoil=plays.let_offsite_go_away,
    ),
    Fault(
        "repository-wiped",
        "the off-site repository was deleted with the machine's own key",
        spoil=plays.wipe_the_repository,
        mend=plays.remove_what_was_wiped,
    ),
    Fault(
        "lost-machine-returns",
        "the lost machine is switched on again",
        after=plays.switch_the_lost_one_on,
        until=phases.DATA,
    ),
)


def chosen(names: Sequence[str]) -> list[Fault]:
    """The named faults in the table's order; all of them for `all`. Raises ConfigError."""
    known = [fault.name for fault in FAULTS]
    if unknown := sorted(set(names) - {*known, ALL}):
        raise ConfigError(f"no such fault: {', '.join(unknown)}", f"there are: {', '.join([*known, ALL])}")
    return [fault for fault in FAULTS if ALL in names or fault.name in names]


def rehearse_faults(names: Sequence[str], options: Options) -> Record:
    """Builds the stage, plays each fault, and tells whether each went as it should.

    Raises:
        ConfigError: an unknown name, or options that faults don't know.
        KeyboardInterrupt: it was interrupted; its record says so.
    """
    faults = chosen(names)
    if options.group != "lab" or options.k3s:
        raise ConfigError(
            "faults are played with the lab's values and the stand-in: they are about data",
            "leave --as and --runtime out",
        )
    run = Run("faults")
    stage = Stage(run, Cast(options))
    told = records.Target(backend=options.backend, name=options.name, os="", kernel="", cpus=0, memory_mb=0)
    interrupted = False
    with watch(run.events), sigterm_interrupts():
        try:
            mini = stage.build()
            told = describe(mini, options.backend)
            _play_all(stage, mini, faults)
        except PhaseFailedError:
            run.note(f"what was printed: {run.log}")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            stage.leave()
    if interrupted:
        say_interrupted(run)
    record = run.conclude(target=told, group="lab", runtime=None, converge_phase="", overrides=[], components=None)
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    if interrupted:
        raise KeyboardInterrupt
    return record


def _play_all(stage: Stage, mini: Target, faults: Sequence[Fault]) -> None:
    """The live ones, the loss, the others. One that went otherwise than it should doesn't keep the next from being
    played."""
    for fault in faults:
        if fault.live:
            _play(stage, fault, mini)
    needed = {"repo1", "repo2", "restic"}
    for fault in faults:
        if fault.before_loss:
            fault.before_loss(mini)
            needed -= {"repo1"}
    stage.lose(mini, tuple(sorted(needed)))
    for fault in faults:
        if not fault.live:
            _play(stage, fault, mini)


def _play(stage: Stage, fault: Fault, mini: Target) -> None:
    """One fault, as a phase of the table: passed when it went as it should."""
    started = time.time()
    outcome: str | None = None
    try:
        with stage.run.phase(fault.name, fault.summary) as say:
            record, path = _record_of(stage, fault, mini)
            said = _judge(fault, record)
            say(f"{said} (record {path.name})")
    except PhaseFailedError as error:
        outcome = error.what
    seconds = time.time() - started
    stage.run.write(
        CheckEnd(
            component="faults",
            name=fault.name,
            outcome="failed" if outcome else "passed",
            seconds=round(seconds, 1),
            message=outcome or "",
        )
    )


def _judge(fault: Fault, record: Record) -> str:
    """What happened, in a sentence. Raises MinipcError when it isn't what should have."""
    shown = "; ".join(record.reasons[:4]) or "no reason"
    if not fault.reason:
        if record.verdict != "pass":
            raise MinipcError(f"should have been survived, but: {shown}")
        return "survived"
    if record.verdict == "pass":
        raise MinipcError("should have gone red, but passed")
    telling = [reason for reason in record.reasons if re.search(fault.reason, reason)]
    if not telling:
        raise MinipcError(f"went red, but not for {fault.reason!r}: {shown}")
    return f"red: {telling[0]}"


def _record_of(stage: Stage, fault: Fault, mini: Target) -> tuple[Record, Path]:
    """Plays it; the record of what happened, as it would be without anybody knowing of the fault."""
    run = Run("fault")
    stage.run.note(f"{fault.name}: details in {run.directory}")
    try:
        if fault.live:
            fault.live(run, mini)
        else:
            _rebuild(stage, fault, run)
    except PhaseFailedError as error:
        run.note(error.what)
    record = run.conclude(
        target=records.Target(backend="nspawn", name=fault.name, os="", kernel="", cpus=0, memory_mb=0),
        group="lab",
        runtime=None,
        converge_phase="",
        overrides=[],
        components=None,
    )
    _, path = run.publish(record)
    return record, path


def _rebuild(stage: Stage, fault: Fault, run: Run) -> None:
    """Raises PhaseFailedError: what went wrong outside the rebuild; its own phases say what went wrong in it."""
    try:
        with run.phase("break glass", "the bundle, elsewhere"):
            fault.spoil(stage)
        code = stage.rebuild(run, fault.until.name, fault.meanwhile, fault.disk_gb)
        _demand_a_reason(run, code)
        if code == 0 and stage.rebuilt:
            with run.phase("weigh", "what users were promised, against what came back"):
                weigh(run, stage.rebuilt, _as_if_later(stage.promises, fault.later_s))
            with run.phase("look", "at what came back"):
                fault.after(stage)
    finally:
        fault.mend(stage)
        stage.reset()
        stage.clear(blank=fault.disk_gb != DISK_GB)


def _demand_a_reason(run: Run, code: int) -> None:
    """A rebuild that ended with an error has a phase that says why. Raises PhaseFailedError."""
    ends = [event for event in read(run.events) if isinstance(event, PhaseEnd)]
    if code and all(each.verdict == "pass" for each in ends):
        with run.phase("rebuild"):
            raise MinipcError(f"it ended with {code} and no reason", f"read {run.log}")


def _as_if_later(promises: Promises, later_s: float) -> Promises:
    return replace(promises, lost_at=promises.lost_at + later_s)
