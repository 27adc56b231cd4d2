"""From a blank machine to a service that answers, compared with a shell script that installs the same.

Both sides end with the same check: healthy, through the public ingress, with a valid certificate. A script has no more
checks than that; ours then runs all it has, which is shown but not compared.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.baselines import Baselines
from bench.machine import enrol, wait_for_answer
from bench.results import Measurement, operations, shares_of
from bench.script import MARK
from bench.timing import Sample, alternate, cpu_ratio, machine_cpu_seconds, ratio
from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.evidence.event_stream import read
from minipc.evidence.records import Gate
from minipc.evidence.run import Run
from minipc.pyinfra_ext.converge import converge
from minipc.remote.inventory import the_target
from minipc.verification.runner import verify
from rehearsal import lab

TIMES_THE_SCRIPT = 1.3
SCRIPT_TIMEOUT_S = 900
UNPACK_AND_RUN = "mkdir -p /root/kit && tar -x -C /root/kit && cd /root/kit && sh install.sh"

ALL_CHECKS = "all checks (not compared)"

Stages = dict[str, float]


def measure(run: Run, baselines: Baselines, rounds: int) -> Measurement:
    """Measure each run on a new machine."""
    stages: dict[str, Stages] = {}

    def in_phase(name: str, contestant: Callable[[Stages, int], float]) -> Callable[[int], Sample]:
        def once(number: int) -> Sample:
            taken = stages[name] = {}
            with run.phase(f"blank, {name}: {number} of {rounds}") as detail:
                cpu_seconds = contestant(taken, number)
                detail(_words(taken))
            compared = sum(seconds for stage, seconds in taken.items() if stage != ALL_CHECKS)
            return Sample(compared, cpu_seconds)

        return once

    began = time.time()
    contestants: dict[str, Callable[[Stages, int], float]] = {
        "minipc": lambda taken, number: _ours(run, taken, check_all=number == rounds),
        "shell script": lambda taken, number: _script(run, baselines, taken),
    }
    ours, theirs = alternate({name: in_phase(name, each) for name, each in contestants.items()}, rounds)
    last = operations(read(run.events), since=began)
    gate = Gate.judge(
        "blank to answering: times the script", budget=TIMES_THE_SCRIPT, seen=ratio(ours, theirs), unit="×"
    )
    remarks = [f"CPU: minipc takes {cpu_ratio(ours, theirs):.2f} × the script"]
    remarks += [f"{name}, last run: {_words(taken)}" for name, taken in stages.items()]
    remarks += [f"the script is spared: {what}" for what in baselines.left_out_of_script]
    return Measurement(
        "From nothing to a service that answers",
        [ours, theirs],
        [gate],
        shares_of(last[-baselines.operations :]),
        remarks,
    )


def _ours(run: Run, taken: Stages, *, check_all: bool) -> float:
    """Return user and system time until the service answered."""
    before = _cpu_seconds()
    with _stage(taken, "boot"):
        machine = lab.up("bench-blank")
    try:
        with _stage(taken, "adopt"):
            target = enrol(machine)
        with _stage(taken, "converge"):
            converge(LAB, deploy_files(), log=run.log, events=run.events, limit=machine.name)
        with _stage(taken, "answers"):
            wait_for_answer(target, machine.public_ipv4)
        used = _cpu_seconds() - before + machine_cpu_seconds(machine.name)
        if check_all:
            with _stage(taken, ALL_CHECKS):
                verify(LAB, target, [], events=run.events, log=run.log).demand()
    finally:
        lab.down(machine.name)
    return used


def _script(run: Run, baselines: Baselines, taken: Stages) -> float:
    """Return user and system time until the service answered."""
    before = _cpu_seconds()
    with _stage(taken, "boot"):
        machine = lab.up("bench-script")
    try:
        _install(machine, baselines.folder / "kit", run.log, taken)
        with _stage(taken, "answers"):
            wait_for_answer(the_target(LAB, machine.name), machine.public_ipv4)
        used = _cpu_seconds() - before + machine_cpu_seconds(machine.name)
    finally:
        lab.down(machine.name)
    return used


def _install(machine: lab.Machine, kit: Path, log: Path, taken: Stages) -> None:
    """Run the whole script over one SSH session; its marks separate the stages."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(kit.iterdir()):
            tar.add(path, path.name)
    began, stage = time.monotonic(), "send"
    with log.open("ab") as output:
        process = subprocess.Popen(
            lab.ssh_command(machine, "sh", "-c", UNPACK_AND_RUN),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes to ssh")
        process.stdin.write(packed.getvalue())
        process.stdin.close()
        for line in process.stdout:
            output.write(line)
            if line.startswith(MARK.encode()):
                now = time.monotonic()
                taken[stage] = now - began
                began, stage = now, line.decode().removeprefix(MARK).strip()
        code = process.wait(timeout=SCRIPT_TIMEOUT_S)
    taken[stage] = time.monotonic() - began
    if code:
        raise MinipcError(f"the shell script ended with {code} during `{stage}`", f"read {log}")


@contextmanager
def _stage(taken: Stages, name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    taken[name] = time.monotonic() - began


def _words(taken: Stages) -> str:
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in taken.items())


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the processes it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
