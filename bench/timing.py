"""Timing of whole processes, alternating between contestants, and the ratios that come out of it."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minipc.errors import MinipcError
from minipc.paths import ROOT

TAIL_LINES = 20


@dataclass(frozen=True)
class Sample:
    """One run of one contestant.

    Attributes:
        seconds: wall clock.
        cpu_seconds: user and system time on the controller, of the process and those it waited for.
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
        """Median wall clock."""
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def cpu_seconds(self) -> float:
        """Median user and system time on the controller."""
        return statistics.median(sample.cpu_seconds for sample in self.samples)

    @property
    def spread(self) -> str:
        """Fastest and slowest run, in words."""
        walls = [sample.seconds for sample in self.samples]
        return f"{min(walls):.2f} to {max(walls):.2f} s"


def ratio(slower: Series, faster: Series) -> float:
    """How many times longer `slower` takes: the median of the rounds' ratios.

    The two runs of a round follow each other, so what else the controller does weighs on both alike.
    """
    rounds = zip(slower.samples, faster.samples, strict=True)
    return statistics.median(one.seconds / other.seconds for one, other in rounds)


def alternate(contestants: Mapping[str, Callable[[int], Sample]], rounds: int) -> list[Series]:
    """Runs all contestants in turn, A B C A B C …, and returns their samples. Each is told its round, from 1."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, run in contestants.items():
            samples[name].append(run(number))
    return [Series(name, taken) for name, taken in samples.items()]


def timed(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Sample:
    """Runs a program to its end, in the repository's folder.

    Args:
        log: where its output is appended.
        env: more variables.

    Raises:
        MinipcError: it failed; with the end of what it said.
    """
    with log.open("ab") as output:
        began = time.monotonic()
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
    return Sample(seconds, usage.ru_utime + usage.ru_stime)
