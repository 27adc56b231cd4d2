"""A converge of everything that finds nothing to do: against ansible-core, and against pyinfra doing nothing at all."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from bench import ansible
from bench.results import Measurement, Share, operations, shares_of
from bench.rivals import Rivals
from bench.timing import Sample, alternate, cpu_ratio, ratio, timed
from minipc.components import deploy_files
from minipc.converge import pyinfra_command
from minipc.errors import MinipcError
from minipc.inventory import Target
from minipc.paths import ROOT
from minipc.records import Gate
from minipc.run import Run
from minipc.timeline import read
from minipc.variables import EVENTS_VARIABLE

FASTER_THAN_ANSIBLE = 10.0
TIMES_THE_FLOOR = 3.0
SETTLING_RUNS = 3


def measure(run: Run, target: Target, rivals: Rivals, rounds: int) -> Measurement:
    """Converges until both find nothing to do, then times that in turn."""
    with run.phase("no-op: install Ansible", ansible.VERSION):
        programs = ansible.ensure_ansible()
        ansible.configure(rivals, target.alias, target.data)
    with run.phase("no-op: let Ansible settle") as detail:
        detail(f"{_settle(run, target, rivals, programs)} runs until it found nothing to do")
    contestants: dict[str, Callable[[], Sample]] = {
        "an empty deploy (the floor)": lambda: timed(
            _command(target, str(ROOT / "bench/empty.py")), run.log, target.alias
        ),
        "pyinfra, deploys/site.py": lambda: _converge(run, target),
        "ansible-playbook, the same resources": lambda: _play(run, target, rivals, programs),
    }
    floor, ours, theirs = alternate(
        {name: _in_phase(run, f"no-op, {name}", rounds, contestant) for name, contestant in contestants.items()}, rounds
    )
    remarks = [f"{rivals.operations} operations; Ansible: {rivals.tasks} tasks, {rivals.resources} with loops unrolled"]
    remarks += [f"Ansible is spared: {what}" for what in rivals.left_out_of_playbook]
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


def _in_phase(run: Run, name: str, rounds: int, contestant: Callable[[], Sample]) -> Callable[[int], Sample]:
    def once(number: int) -> Sample:
        with run.phase(f"{name}: {number} of {rounds}") as detail:
            sample = contestant()
            detail(f"{sample.seconds:.2f} s, {sample.cpu_seconds:.2f} s CPU")
        return sample

    return once


def _command(target: Target, *files: str) -> list[str]:
    return pyinfra_command("lab", files, "-y", "--limit", target.alias)


def _converge(run: Run, target: Target, **variables: str) -> Sample:
    sample, changed = _converged(run, target, **variables)
    if changed:
        raise MinipcError(f"{changed} operations changed something: this was no no-op", f"read {run.log}")
    return sample


def _converged(run: Run, target: Target, **variables: str) -> tuple[Sample, int]:
    before = _size(run.log)
    sample = timed(_command(target, *deploy_files()), run.log, target.alias, variables)
    return sample, changed_operations(run.log.read_text(errors="replace")[before:])


def changed_operations(said: str) -> int:
    """From the last line of pyinfra's table of results: operations, changed, failed, unchanged; `-` is none.

    Raises:
        MinipcError: there is none.
    """
    found = re.search(r"Grand total +\d+ +(\d+|-)", said)
    if not found:
        raise MinipcError("pyinfra printed no results", "read the log")
    return 0 if found[1] == "-" else int(found[1])


def _play(run: Run, target: Target, rivals: Rivals, programs: Path) -> Sample:
    sample, changed = ansible.play(rivals, programs, run.log, target.alias)
    if changed:
        raise MinipcError(f"{changed} of Ansible's tasks changed something: this was no no-op", f"read {run.log}")
    return sample


def _settle(run: Run, target: Target, rivals: Rivals, programs: Path) -> int:
    """Both in turn until neither changes anything: an unpacked archive has other times than our files, once."""
    for number in range(1, SETTLING_RUNS + 1):
        _, theirs = ansible.play(rivals, programs, run.log, target.alias)
        _, ours = _converged(run, target)
        if not theirs and not ours:
            return number
    raise MinipcError(
        f"after {SETTLING_RUNS} runs Ansible still changes {theirs} tasks and pyinfra {ours} operations",
        f"read {run.log}: they don't declare the same",
    )


def _profile(run: Run, target: Target) -> list[Share]:
    """One more run, with events kept."""
    with run.phase("no-op: where the time goes"):
        began = time.time()
        _converge(run, target, **{EVENTS_VARIABLE: os.fspath(run.events)})
    return shares_of(operations(read(run.events), since=began))


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
