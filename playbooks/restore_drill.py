"""The restore drill of a machine, at once: the machine does it by its own unit, the record and the report are ours.

minipc drill [--repo 2]
minipc drill --collect      records of the drills that the machine did by itself
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from minipc import ssh
from minipc.display import print_summary, watch
from minipc.errors import CouldNotVerifyError
from minipc.git import Commit
from minipc.inventory import Environment, Target, the_target
from minipc.records import DataClassResult, Record, load_all
from minipc.remote import describe, on, versions
from minipc.run import RECORDS, Run
from minipc.timeline import CheckEnd, PhaseEnd, PhaseStart

RESULTS = "/var/lib/minipc/drills"
LAST = f"{RESULTS}/last.json"
LIMIT_S = 12 * 3600
COMPONENT = "backups"
# What may be lost beside what waits for the end of its segment: a heartbeat comes each minute.
HEARTBEAT_S = 60


def drill(environment: Environment, alias: str | None = None, repo: int | None = None) -> Record:
    """Runs the drill on the machine and turns what it found into a record.

    Args:
        repo: the repository; None leaves it to the machine, which takes turns.

    Raises:
        CouldNotVerifyError: the machine can't be reached, or could not begin (another drill is running).
    """
    target = the_target(environment, alias)
    facts = describe(target, "hardware" if environment == "production" else "nspawn")
    run = Run("drill")
    with watch(run.events):
        run.note(f"{target.alias} restores a backup beside its database; its journal has the details")
        result = run_on_machine(target, repo)
        write_events(run, result)
        run.versions |= versions(target)
    _tell(run, target, result)
    record = run.conclude(
        target=facts,
        group=environment,
        runtime=target.settings.workload.runtime,
        converge_phase="",
        overrides=[],
        components=[COMPONENT],
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return record


def collect(environment: Environment, alias: str | None = None) -> list[Record]:
    """Makes records of the drills on the machine that have none here: its timer's, and those before a rebuild.

    Raises:
        CouldNotVerifyError: the machine can't be reached.
    """
    target = the_target(environment, alias)
    facts = describe(target, "hardware" if environment == "production" else "nspawn")
    there = on(target, f"for file in {RESULTS}/[0-9]*.json; do [ -e $file ] && tr -d '\\n' < $file && echo; done; true")
    known = load_all(RECORDS, "drill").records
    made = []
    for result in sorted((json.loads(line) for line in there.splitlines()), key=lambda each: float(each["started"])):
        if "ended" not in result or any(_is_of(record, result) for record in known):
            continue
        run = Run("drill", started=datetime.fromtimestamp(result["started"], UTC))
        write_events(run, result)
        _tell(run, target, result)
        code = result.get("code", {"commit": "unknown", "dirty": False})
        record = run.conclude(
            target=facts,
            group=environment,
            runtime=target.settings.workload.runtime,
            converge_phase="",
            overrides=[],
            components=[COMPONENT],
            ended=datetime.fromtimestamp(result["ended"], UTC),
            commit=Commit(**code),
        )
        run.publish(record)
        made.append(record)
    return made


def _is_of(record: Record, result: dict[str, Any]) -> bool:
    """Whether the record is of that drill: a machine does one at a time."""
    began, ended = float(result["started"]), float(result["ended"])
    return record.started.timestamp() - 1 <= began and ended <= record.ended.timestamp() + 1


def _tell(run: Run, target: Target, result: dict[str, Any]) -> None:
    """What the drill measured and counted."""
    run.rpo_seconds = result["rpo_seconds"]
    run.rpo_budget_seconds = target.settings.backups.archive_timeout_s + HEARTBEAT_S
    run.data_classes = [
        DataClassResult(
            name=each["name"],
            verdict="pass",
            rows_expected=each["rows"],
            rows_found=each["rows"],
            detail=f"counted in what came back from repo{result['repo']}",
        )
        for each in result["classes"]
    ]


def run_on_machine(target: Target, repo: int | None = None) -> dict[str, Any]:
    """Has the machine do its drill; what it wrote about it (docs/reference/backups.md).

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
            f"{target.alias}: the drill did not begin: {' | '.join(said.decode(errors='replace').splitlines())}",
            "is another one running? `systemctl list-units 'minipc-drill@*'` on the machine",
        )
    return dict(json.loads(done.stdout))


def write_events(run: Run, result: dict[str, Any]) -> None:
    """The drill's phases and checks as events of the run, with the machine's own times."""
    for phase in result["phases"]:
        run.write(PhaseStart(t=phase["started"], phase=phase["name"], detail=f"repo{result['repo']}"))
        for check in result["checks"]:
            if check["phase"] == phase["name"]:
                told = {key: check[key] for key in ("name", "outcome", "message")}
                run.write(CheckEnd(t=phase["ended"], component=COMPONENT, seconds=0, **told))
        run.write(PhaseEnd(t=phase["ended"], phase=phase["name"], verdict=phase["verdict"], detail=phase["detail"]))
    for gap in result["not_exercised"]:
        run.not_exercised(gap["what"], gap["why"], COMPONENT)
    if result["verdict"] != "pass":
        run.note(f"{result['verdict']}: {result['reason']}")
