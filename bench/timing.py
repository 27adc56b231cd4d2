"""Measure the time of whole processes, alternating between contestants, and compute the ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.paths import ROOT
from rehearsal.lab import cgroups

TAIL_LINES = 20


@dataclass(frozen=True)
class Sample:
    """One run of one contestant.

    Attributes:
        seconds: wall clock.
        cpu_seconds: user and system time: on the controller of the process and those it waited for, and of the machine.
    """

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Series:
    """The runs of one contestant, one for each round."""

    name: str
    samples: Sequence[Sample]

    @property
    def seconds(self) -> float:
        """Return the median wall clock time."""
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def cpu_seconds(self) -> float:
        """Return the median user and system time."""
        return statistics.median(sample.cpu_seconds for sample in self.samples)

    @property
    def spread(self) -> str:
        """Return the fastest and slowest run, as text."""
        walls = [sample.seconds for sample in self.samples]
        return f"{min(walls):.2f} to {max(walls):.2f} s"


def ratio(slower: Series, faster: Series) -> float:
    """Return how many times longer `slower` takes: the median of the ratios of all rounds.

    The two runs of a round follow each other, so other load on the controller affects both.
    """
    rounds = zip(slower.samples, faster.samples, strict=True)
    return statistics.median(one.seconds / other.seconds for one, other in rounds)


def cpu_ratio(slower: Series, faster: Series) -> float:
    """Return the same ratio of user and system times, which other programs on the controller hardly change."""
    rounds = zip(slower.samples, faster.samples, strict=True)
    return statistics.median(one.cpu_seconds / other.cpu_seconds for one, other in rounds)


def alternate(contestants: Mapping[str, Callable[[int], Sample]], rounds: int) -> list[Series]:
    """Run all contestants in turn, A B C A B C …, and return their samples. Each gets its round, from 1."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, run in contestants.items():
            samples[name].append(run(number))
    return [Series(name, taken) for name, taken in samples.items()]


def timed(argv: Sequence[str], log: Path, machine: str, env: Mapping[str, str] | None = None) -> Sample:
    """Run a program to its end, in the repository's folder.

    Args:
        log: where its output is appended.
        machine: the lab machine that it works on.
        env: more variables.

    Raises:
        MinipcError: it failed; the message contains the end of its output.
    """
    with log.open("ab") as output:
        began, before = time.monotonic(), machine_cpu_seconds(machine)
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(env or {}),
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise MinipcError(f"{' '.join(argv)} ended with {process.returncode}\n{tail}", f"read {log}")
    there = machine_cpu_seconds(machine) - before
    return Sample(seconds, usage.ru_utime + usage.ru_stime + there)


def machine_cpu_seconds(name: str) -> float:
    """Return user and system time of all processes of a lab machine, from its control group; 0 if there is none.

    Source: the kernel's documentation of control groups, `cpuacct.usage` (v1, nanoseconds) and `cpu.stat` (v2).
    """
    for hierarchy in cgroups.hierarchies():
        group = hierarchy / cgroups.PARENT / name
        if (group / "cpuacct.usage").exists():
            return int((group / "cpuacct.usage").read_text()) / 1e9
        if cgroups.is_unified() and (group / "cpu.stat").exists():
            return int((group / "cpu.stat").read_text().split()[1]) / 1e6
    return 0.0
