"""Assign the controller's processors to the machines of a measurement, which share them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rehearsal.lab import cgroups


def halves(cpus: int) -> tuple[set[int], set[int]]:
    """Return the CPUs that a drill leaves to the service, and those it uses (templates/backups/half-of-the-cpus.j2).

    >>> halves(2), halves(1)
    (({0}, {1}), ({0}, {0}))
    """
    middle = (cpus + 1) // 2
    return set(range(middle)), set(range(middle, cpus)) or {0}


@contextmanager
def confined(machine: str, cpus: set[int]) -> Iterator[None]:
    """Restrict a lab machine's processes to these CPUs within the block."""
    _allow(machine, cpus)
    try:
        yield
    finally:
        _allow(machine, set(range(os.cpu_count() or 1)))


def _allow(machine: str, cpus: set[int]) -> None:
    for process in cgroups.processes(machine):
        with suppress(OSError):  # it has ended
            for thread in Path(f"/proc/{process}/task").iterdir():
                os.sched_setaffinity(int(thread.name), cpus)
