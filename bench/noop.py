"""A converge of everything without changes, compared with ansible-core and with an empty pyinfra deploy."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from bench import ansible
from bench.baselines import Baselines
from bench.results import Measurement, Share, operations, shares_of
from bench.timing import Sample, alternate, cpu_ratio, ratio, timed
from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.core.paths import ROOT
from minipc.core.variables import EVENTS_VARIABLE
from minipc.evidence.event_stream import read
from minipc.evidence.records import Gate
from minipc.evidence.run import Run
from minipc.pyinfra_ext.converge import pyinfra_command
from minipc.remote.inventory import Target

FASTER_THAN_ANSIBLE = 10.0
TIMES_THE_FLOOR = 3.0
SETTLING_RUNS = 3


def measure(run: Run, target: Target, baselines: Baselines, rounds: int) -> Measurement:
    """Converge until both find nothing to change, then time both, one after the other."""
    with run.phase("no-op: install Ansible", ansible.VERSION):
        programs = ansible.ensure_ansible()
        ansible.configure(baselines, target.alias, target.data)
    with run.phase("no-op: let Ansible settle") as detail:
        detail(f"{_settle(run, target, baselines, programs)} runs until it found nothing to do")
    contestants: dict[str, Callable[[], Sample]] = {
        "an empty deploy (the floor)": lambda: timed(
            _command(target, str(ROOT / "bench/empty.py")), run.log, target.alias
        ),
        "pyinfra, deploys/site.py": lambda: _converge(run, target),
        "ansible-playbook, the same resources": lambda: _play(run, target, baselines, programs),
    }
    floor, ours, theirs = alternate(
        {name: in_phase(run, f"no-op, {name}", rounds, contestant) for name, contestant in contestants.items()}, rounds
    )
    tasks = f"{baselines.tasks} tasks, {baselines.resources} with loops unrolled"
    remarks = [f"{baselines.operations} operations; Ansible: {tasks}"]
    remarks += [f"Ansible is spared: {what}" for what in baselines.left_out_of_playbook]
    remarks.append(
        f"CPU: Ansible takes {cpu_ratio(theirs, ours):.1f} × ours, ours {cpu_ratio(ours, floor):.1f} × the floor"
    )
    return Measurement(
        "A converge of everything that finds nothing to do",
        [floor, ours, theirs],
        [
            Gate.judge(
                "no-op: Ansible takes", budget=FASTER_THAN_ANSIBLE, seen=ratio(theirs, ours), unit="×", bound="at-least"
            ),
            Gate.judge("no-op: times the floor", budget=TIMES_THE_FLOOR, seen=ratio(ours, floor), unit="×"),
        ],
        [Share("start, inventory, connect (the floor)", floor.seconds), *_profile(run, target)],
        remarks,
    )


def in_phase(run: Run, name: str, rounds: int, contestant: Callable[[], Sample]) -> Callable[[int], Sample]:
    """Return a function that runs a contestant once, in a phase that names the round."""

    def once(number: int) -> Sample:
        with run.phase(f"{name}: {number} of {rounds}") as detail:
            sample = contestant()
            detail(f"{sample.seconds:.2f} s, {sample.cpu_seconds:.2f} s CPU")
        return sample

    return once


def _command(target: Target, *files: str) -> list[str]:
    return pyinfra_command(LAB, files, "-y", "--limit", target.alias)


def _converge(run: Run, target: Target, **variables: str) -> Sample:
    sample, changed = _converged(run, target, **variables)
    if changed:
        raise MinipcError(f"{changed} operations changed something, so this was not a no-op", f"read {run.log}")
    return sample


def _converged(run: Run, target: Target, **variables: str) -> tuple[Sample, int]:
    before = _size(run.log)
    sample = timed(_command(target, *deploy_files()), run.log, target.alias, variables)
    return sample, changed_operations(run.log.read_text(errors="replace")[before:])


def changed_operations(said: str) -> int:
    """Return the changed operations, from the last line of pyinfra's results: operations, changed, failed, unchanged.

    Raises:
        MinipcError: there is none.
    """
    found = re.search(r"Grand total +\d+ +(\d+|-)", said)
    if not found:
        raise MinipcError("pyinfra printed no results", "read the log")
    return 0 if found[1] == "-" else int(found[1])


def _play(run: Run, target: Target, baselines: Baselines, programs: Path) -> Sample:
    sample, changed = ansible.play(baselines, programs, run.log, target.alias)
    if changed:
        raise MinipcError(f"{changed} of Ansible's tasks changed something, so this was not a no-op", f"read {run.log}")
    return sample


def _settle(run: Run, target: Target, baselines: Baselines, programs: Path) -> int:
    """Run both until neither changes anything. An unpacked archive first has other file times than our files."""
    for number in range(1, SETTLING_RUNS + 1):
        _, theirs = ansible.play(baselines, programs, run.log, target.alias)
        _, ours = _converged(run, target)
        if not theirs and not ours:
            return number
    raise MinipcError(
        f"after {SETTLING_RUNS} runs Ansible still changes {theirs} tasks and pyinfra {ours} operations",
        f"read {run.log}: they don't declare the same",
    )


def _profile(run: Run, target: Target) -> list[Share]:
    """Run once more, with an event file."""
    with run.phase("no-op: where the time goes"):
        began = time.time()
        _converge(run, target, **{EVENTS_VARIABLE: os.fspath(run.events)})
    return shares_of(operations(read(run.events), since=began))


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
