"""Run the restore drill of a machine now, and make a record and a report of the result.

minipc drill [--repo 2]
minipc drill --collect      make records of the drills that the machine ran by itself
"""

from __future__ import annotations

from datetime import UTC, datetime

from minipc.core.environment import Environment
from minipc.core.errors import CouldNotVerifyError
from minipc.core.git import Commit
from minipc.evidence.display import console_for, print_summary, watch
from minipc.evidence.event_stream import CheckEnd, PhaseEnd, PhaseStart
from minipc.evidence.records import DataClassResult, Record, load_all
from minipc.evidence.run import RECORDS, Run
from minipc.remote import ssh
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import describe, on, versions
from minipc.remote.results import parse_result
from minipc_machine.drill_results import PATTERN, RESULTS, Result
from minipc_machine.volume_files import VolumeResult

LAST = f"{RESULTS}/last.json"
LIMIT_S = 12 * 3600
COMPONENT = "backups"
# A heartbeat is written each minute, so this much may be lost in addition to an incomplete WAL segment.
HEARTBEAT_S = 60


def drill(environment: Environment, alias: str | None = None, repo: int | None = None) -> Record:
    """Run the drill on the machine and make a record of its result.

    Args:
        repo: the repository; None lets the machine choose the one whose last drill is longest ago.

    Raises:
        CouldNotVerifyError: the machine cannot be reached, or the drill did not start (another one is running).
    """
    target = the_target(environment, alias)
    facts = describe(target, environment.backend)
    run = Run("drill")
    with watch(run.events):
        run.note(f"{target.alias} restores a backup next to its database; details are in its journal")
        result = run_on_machine(target, repo)
        write_events(run, result)
        run.versions |= versions(target)
    _measured(run, target, result)
    record = run.conclude(
        target=facts,
        group=environment,
        runtime=target.settings.services.runtime,
        converge_phase="",
        overrides=[],
        components=[COMPONENT],
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return record


def collect(environment: Environment, alias: str | None = None) -> list[Record]:
    """Write records of the drills on the machine that have none here: those of its timer, and those before a rebuild.

    Raises:
        CouldNotVerifyError: the machine can't be reached.
    """
    target = the_target(environment, alias)
    facts = describe(target, environment.backend)
    each_on_a_line = f"for file in {RESULTS}/{PATTERN}; do [ -e $file ] && tr -d '\\n' < $file && echo; done; true"
    stored = on(target, each_on_a_line).splitlines()
    known = load_all(RECORDS, "drill").records
    results = [result for line in stored if (result := _stored(target, line))]
    made = []
    for result in sorted(results, key=lambda each: each.started):
        if not result.ended or any(_is_of(record, result) for record in known):
            continue
        run = Run("drill", started=datetime.fromtimestamp(result.started, UTC))
        write_events(run, result)
        _measured(run, target, result)
        record = run.conclude(
            target=facts,
            group=environment,
            runtime=target.settings.services.runtime,
            converge_phase="",
            overrides=[],
            components=[COMPONENT],
            ended=datetime.fromtimestamp(result.ended, UTC),
            commit=Commit(result.code.commit, result.code.dirty),
        )
        run.publish(record)
        made.append(record)
    return made


def _stored(target: Target, line: str) -> Result | None:
    """Return a stored result; None, with a message, if it was cut off by a power failure."""
    try:
        return parse_result(Result, line, f"{target.alias}: a result in {RESULTS}")
    except CouldNotVerifyError as error:
        console_for().print(f"ignored: {error.what}", markup=False)
        return None


def _is_of(record: Record, result: Result) -> bool:
    """Return whether the record is of that drill: a machine runs one at a time."""
    return record.started.timestamp() - 1 <= result.started and result.ended <= record.ended.timestamp() + 1


def _measured(run: Run, target: Target, result: Result) -> None:
    """Add what the drill measured and counted to the run."""
    run.rpo_seconds = result.rpo_seconds
    run.rpo_budget_seconds = target.settings.backups.archive_timeout_s + HEARTBEAT_S
    run.data_classes = [
        DataClassResult(
            name=each.name,
            service=each.service,
            verdict="pass",
            rows_expected=each.rows,
            rows_found=each.rows,
            detail=f"counted in what was restored from repo{result.repo}",
        )
        for each in result.classes
    ]
    run.data_classes += [volume_class(each) for each in result.volumes]


def volume_class(result: VolumeResult) -> DataClassResult:
    """Return the row of a report for a volume. Files that were changed while the backup was taken don't count."""
    return DataClassResult(
        name=f"{result.data_class}, volume {result.volume}",
        service=result.service,
        verdict="fail" if result.problem else "pass",
        rows_expected=max(0, result.files - result.changed),
        rows_found=result.found,
        detail=result.text if result.snapshot or result.problem else "there was no backup of it; it may be new",
    )


def run_on_machine(target: Target, repo: int | None = None) -> Result:
    """Start the drill on the machine and return its result (docs/reference/backups.md).

    Raises:
        CouldNotVerifyError: as in `drill`.
    """
    config = ssh.write_config([(target.alias, target.data)])
    before = ssh.run(config, target.alias, f"cat {LAST} 2>/dev/null || true").stdout
    unit = f"minipc-drill@{repo or 'next'}.service"
    done = ssh.run(config, target.alias, f"systemctl start {unit}; cat {LAST}", timeout_s=LIMIT_S)
    if done.returncode or done.stdout == before:
        said = ssh.run(config, target.alias, f"journalctl -u {unit} -n 3 -o cat").stdout
        raise CouldNotVerifyError(
            f"{target.alias}: the drill did not start: {' | '.join(said.decode(errors='replace').splitlines())}",
            "check whether another one is running: `systemctl list-units 'minipc-drill@*'` on the machine",
        )
    return parse_result(Result, done.stdout, f"{target.alias}: {LAST}")


def write_events(run: Run, result: Result) -> None:
    """Write the phases and checks of the drill as events of the run, with the machine's times."""
    for phase in result.phases:
        run.write(PhaseStart(t=phase.started, phase=phase.name, detail=f"repo{result.repo}"))
        for check in result.checks:
            if check.phase == phase.name:
                run.write(
                    CheckEnd(
                        t=phase.ended,
                        component=COMPONENT,
                        name=check.name,
                        outcome=check.outcome,
                        seconds=0,
                        message=check.message,
                    )
                )
        run.write(PhaseEnd(t=phase.ended, phase=phase.name, verdict=phase.verdict, detail=phase.detail))
    for gap in result.not_exercised:
        run.not_exercised(gap.what, gap.why, COMPONENT)
    if result.verdict != "pass":
        run.note(f"{result.verdict}: {result.reason}")
