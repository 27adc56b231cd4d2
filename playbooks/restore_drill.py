"""The restore drill of a machine, at once: the machine does it by its own unit, the record and the report are ours.

minipc drill [--repo 2]
"""

from __future__ import annotations

import json
from typing import Any

from minipc import ssh
from minipc.display import print_summary, watch
from minipc.errors import CouldNotVerifyError
from minipc.inventory import Environment, Target, the_target
from minipc.records import DataClassResult, Record
from minipc.remote import describe, versions
from minipc.run import Run
from minipc.timeline import CheckEnd, PhaseEnd, PhaseStart

LAST = "/var/lib/minipc/drills/last.json"
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
