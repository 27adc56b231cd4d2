"""`python -m bench`: measure ratios in one run and write a dated record. It is not a test."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from bench import ansible, blank, checks, noop, second_service
from bench.baselines import write_baselines
from bench.machine import enrol, prepare
from bench.results import Measurement, recorded
from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.evidence import records
from minipc.evidence.display import console_for, print_summary, watch
from minipc.evidence.run import PhaseFailedError, Run
from minipc.pyinfra_ext.converge import converge
from minipc.remote.inventory import Target
from minipc.remote.queries import describe
from rehearsal import lab

MACHINE = "bench"
# In this order: the packages of the machine that the first two share become the warm cache of the third.
MEASUREMENTS = ("noop", "verify", "blank", "services")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(MEASUREMENTS), metavar="[noop|verify|blank|services]…")
@click.option(
    "--rounds", type=click.IntRange(1, 50), default=5, show_default=True, help="Of noop, verify and services."
)
@click.option("--machines", type=click.IntRange(1, 20), default=3, show_default=True, help="Blank ones for each side.")
def bench(names: Sequence[str], rounds: int, machines: int) -> None:
    """Measure everything or the named benchmarks. Exit with 1 if a target is missed."""
    run = Run("benchmark")
    measured: list[Measurement] = []
    target: Target | None = None
    machine: records.Target | None = None
    with watch(run.events), tempfile.TemporaryDirectory(prefix="minipc-bench-") as folder:
        run.note(f"load average at the start {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
        try:
            target = _converged_machine(run)
            machine = describe(target, "nspawn")
            with run.phase("write playbook and script", "from what the deploys declare") as detail:
                baselines = write_baselines(target.alias, Path(folder) / "baselines", dict(os.environ))
                detail(f"{baselines.operations} operations, {baselines.tasks} tasks")
            if not names or "noop" in names:
                measured.append(noop.measure(run, target, baselines, rounds))
            if not names or "verify" in names:
                measured.append(checks.measure(run, target, rounds))
            lab.down(MACHINE)
            if not names or "services" in names:
                measured.append(second_service.measure(run, rounds))
            if not names or "blank" in names:
                measured.append(blank.measure(run, baselines, machines))
        except PhaseFailedError as failed:
            run.note(f"{failed}; log: {run.log}")
        finally:
            lab.down(MACHINE)
    if target is None or machine is None:
        sys.exit(f"there was no machine to measure; see {run.log}")
    versions = {"ansible-core": ansible.VERSION}
    record = recorded(run, machine, measured, target.settings.services.runtime, versions)
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    for each in measured:
        each.print(console_for())
    sys.exit(records.exit_code(record))


def _converged_machine(run: Run) -> Target:
    with run.phase("prepare", "programs, base image, secrets"):
        prepare()
    with run.phase("a converged machine"):
        machine = lab.up(MACHINE)
        target = enrol(machine)
        converge(LAB, deploy_files(), log=run.log, limit=machine.name)
    return target


if __name__ == "__main__":
    bench()
