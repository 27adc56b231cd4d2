"""Faults that a rebuild may meet. Each is expected to go red for a named reason, or to be survived.

    minipc rehearse --list-faults
    minipc rehearse --fault NAME [--fault NAME]… | --fault all

Each leaves a record of its own, red where it is meant to be; the record of the table says whether all went as expected.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minipc import lab, records
from minipc.display import print_summary, watch
from minipc.errors import ConfigError, MinipcError
from minipc.facts.postgres import RESTORE_UNFINISHED
from minipc.inventory import Target, the_target
from minipc.records import Record
from minipc.remote import describe, on, query
from minipc.run import PhaseFailedError, Run
from minipc.secrets.catalogue import repository_cipher
from minipc.timeline import CheckEnd, PhaseEnd, read
from playbooks import phases, restore_drill
from playbooks.elsewhere import Elsewhere, Stick, end
from playbooks.rehearse import DISK_GB, Cast, Options, Promises, say_interrupted, sigterm_interrupts, weigh
from playbooks.stage import REPOSITORY, Attempt, Stage

ALL = "all"
# RPO over budget can't be waited for: the loss is judged as if it had come so much later.
DAY_AND_AN_HOUR_S = 25 * 3600
ARCHIVER_TRIES_S = 120


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


# --- red for a named reason -----------------------------------------------------------------------------------------


def _fail_a_drill(run: Run, mini: Target) -> None:
    """A question of the drill gets another answer than the expected one."""
    path = "/etc/minipc/backups/drill.json"
    kept = on(mini, f"cat {path}")
    settings = json.loads(kept)
    settings["queries"][0]["expect"] = "== 4711"
    on(mini, f"cat > {path}", stdin=json.dumps(settings))
    try:
        restore_drill.write_events(run, restore_drill.run_on_machine(mini))
    finally:
        on(mini, f"cat > {path}", stdin=f"{kept}\n")


def _switch_offsite_off(stage: Stage) -> None:
    lab.power_off(stage.offsite)


def _switch_offsite_on(stage: Stage) -> None:
    lab.start(stage.offsite)


def _forget_the_passphrase(stage: Stage) -> None:
    """The repository's, as from a bundle of another machine. The bundle's own is `_guess`."""
    _place(stage).secrets.set_many({repository_cipher(2): "x" * 32})


def _remember_the_passphrase(stage: Stage) -> None:
    from minipc.secrets import open_store

    name = repository_cipher(2)
    _place(stage).secrets.set_many({name: open_store("lab").read([name])[name].reveal()})


def _guess(stage: Stage) -> None:
    """A computer that has the bundle but not its passphrase."""
    place = Elsewhere()
    try:
        place.open(Stick(stage.stick.file, "correct horse battery staple", stage.stick.manifest))
    finally:
        place.remove()


def _damage_the_backup(stage: Stage) -> None:
    """A few bytes in the middle of every stored file of the database."""
    files = f"find {REPOSITORY}/backup/main/*/bundle {REPOSITORY}/backup/main/*/pg_data -type f -size +4k 2>/dev/null"
    damage = 'printf damaged | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") / 2)) conv=notrunc status=none'
    on(stage.offsite_target, f"{files} | while read -r file; do {damage}; done")


def _remove_a_segment(stage: Stage) -> None:
    """The first one after the backup; later ones are there."""
    names = _segments_after(stage)
    if len(names) < 2:
        raise MinipcError("there are not enough WAL segments after the backup to remove one in the middle")
    on(stage.offsite_target, f"rm {names[0]}")


def _remove_all_wal_after_the_backup(stage: Stage) -> None:
    """As if the machine had not reached its off-site machine since the backup."""
    on(stage.offsite_target, f"rm -f {' '.join(_segments_after(stage))}")


def _segments_after(stage: Stage) -> list[str]:
    """Paths of the WAL segments that the newest backup doesn't need, in their order."""
    paths = on(stage.offsite_target, f"find {REPOSITORY}/archive/main -type f -name '0*-*'").split()
    by_name = {Path(path).name[:24]: path for path in paths}
    return [by_name[name] for name in sorted(by_name) if name > stage.last_backup_wal]


# --- survived -------------------------------------------------------------------------------------------------------


def _lose_repo1(mini: Target) -> None:
    """The disk with the local repository dies first."""
    on(mini, "find /var/lib/pgbackrest -mindepth 1 -delete")


def _crash(stage: Stage, attempt: Attempt) -> None:
    """The computer that rebuilds dies half-way, when the data is back and the service is not."""
    attempt.wait_for_operation(phases.SERVICE.name)
    end(attempt.process, signal.SIGKILL)


def _cut_the_power(stage: Stage, attempt: Attempt) -> None:
    """The new machine loses its power in the middle of the restore."""
    attempt.wait_for_file(RESTORE_UNFINISHED)
    lab.power_off(attempt.machine)
    end(attempt.process, signal.SIGKILL)
    lab.start(attempt.machine)


def _switch_the_lost_one_on(stage: Stage) -> None:
    """It archives nothing off-site, and reads nothing there; the one in its place doesn't notice.

    Raises:
        MinipcError: it got in.
    """
    old, new = the_target("lab", stage.lost.name), stage.rebuilt
    before = _stored(stage)
    lab.start(stage.lost)
    try:
        query(old, "minipc", "INSERT INTO heartbeat DEFAULT VALUES")
        query(old, "postgres", "SELECT pg_switch_wal()")
        _wait_for_a_failed_push(old)
        for what, command in _WAYS_IN.items():
            if on(old, f"{command} >/dev/null 2>&1 && echo in || true"):
                raise MinipcError(f"the lost machine still gets in by {what}", "its key was not revoked")
        added = _stored(stage) - before
        if foreign := sorted(name for name in added if re.fullmatch(r"00000001\w{16}-\w+\.zst", name)):
            raise MinipcError(f"the lost machine still archives: {', '.join(foreign[:3])}", "its key was not revoked")
    finally:
        lab.power_off(stage.lost)
    if new is None:
        raise MinipcError("there is no machine in its place")
    on(new, "cd / && runuser -u postgres -- pgbackrest --stanza=main check", timeout_s=300)


_RESTIC = "/etc/minipc/backups/restic.repository --password-file /etc/minipc/backups/restic.password"
_WAYS_IN = {
    "SFTP": "cd / && timeout 50 runuser -u postgres -- pgbackrest --repo=2 repo-ls",
    "restic": f"timeout 50 restic --repository-file {_RESTIC} --cacert /etc/minipc/backups/offsite.crt cat config",
}


def _stored(stage: Stage) -> set[str]:
    """Names of all WAL files off-site."""
    return set(on(stage.offsite_target, f"find {REPOSITORY}/archive -type f -printf '%f\\n'").split())


def _wait_for_a_failed_push(old: Target) -> None:
    give_up_at = time.monotonic() + ARCHIVER_TRIES_S
    while query(old, "postgres", "SELECT failed_count > 0 FROM pg_stat_archiver") != "t":
        if time.monotonic() > give_up_at:
            raise MinipcError("the lost machine's archiver did not fail once", "does it still get in?")
        time.sleep(1)


def _place(stage: Stage) -> Elsewhere:
    if stage.place is None:
        raise MinipcError("nothing was lost yet")
    return stage.place


# --- the table ------------------------------------------------------------------------------------------------------

FAULTS: tuple[Fault, ...] = (
    Fault(
        "drill-query-fails",
        "the restore drill asks, and the answer is wrong",
        reason=r"expected == 4711",
        live=_fail_a_drill,
    ),
    Fault(
        "wrong-bundle-passphrase",
        "nobody knows the bundle's passphrase any more",
        reason=r"break glass: the passphrase is wrong",
        spoil=_guess,
    ),
    Fault(
        "offsite-unreachable",
        "the off-site machine is off",
        reason=r"fence: offsite-\S+: SSH failed",
        spoil=_switch_offsite_off,
        mend=_switch_offsite_on,
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
        spoil=_forget_the_passphrase,
        mend=_remember_the_passphrase,
    ),
    Fault(
        "missing-wal",
        "a WAL segment between the backup and the loss is gone",
        reason=r"data: WAL segment \w{24} is missing in every repository",
        spoil=_remove_a_segment,
    ),
    Fault(
        "corrupted-backup",
        "bytes of the stored backup have changed",
        reason=r"data: the backup \S+ in repo2 is damaged",
        spoil=_damage_the_backup,
    ),
    Fault(
        "old-backup",
        "nothing has reached the off-site machine for 25 hours",
        reason=r"^RPO: 25 h",
        spoil=_remove_all_wal_after_the_backup,
        until=phases.DATA,
        later_s=DAY_AND_AN_HOUR_S,
    ),
    Fault("repo1-lost", "the local repository died before the machine did", before_loss=_lose_repo1),
    Fault("rebuild-crash", "the computer that rebuilds dies half-way", meanwhile=_crash),
    Fault("restore-interrupted", "the new machine loses its power during the restore", meanwhile=_cut_the_power),
    Fault(
        "lost-machine-returns",
        "the lost machine is switched on again",
        after=_switch_the_lost_one_on,
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
