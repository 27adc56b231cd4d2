"""The backends, and which one a machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, cast

from minipc.errors import ConfigError
from minipc.lab import nspawn, qemu
from minipc.lab.machine import Machine, ProcessId

BackendName = Literal["nspawn", "qemu"]


class Backend(Protocol):
    """How machines are made, started and killed; each backend is a module with these functions."""

    # How long a machine may take until it answers SSH, seconds.
    BOOT_SECONDS: float

    def base(self) -> Path:
        """What every machine is a copy of, built when it is not in the cache."""

    def is_emulated(self, base: Path) -> bool:
        """Whether machines made of `base` run without the processor's help."""

    def make_disk(self, machine: Machine) -> None:
        """The machine's own disk, with its identity or ready to get it."""

    def start(self, machine: Machine) -> ProcessId:
        """Boots the machine from its disk, in the background. Returns the process whose death ends it."""

    def kill(self, machine: Machine) -> None:
        """Cuts the power. Idempotent; the disk stays."""

    def answers_ssh(self, machine: Machine) -> bool:
        """Whether it is worth trying to log in."""

    def harvest(self, machine: Machine) -> None:
        """Keeps the packages that a running machine has downloaded, for the next one."""


def backend_of(machine: Machine) -> Backend:
    """The machine's backend.

    Raises:
        ConfigError: it is not one that this version knows.
    """
    return named(machine.backend)


def named(name: str) -> Backend:
    """A backend by name.

    Raises:
        ConfigError: there is none.
    """
    known = {"nspawn": nspawn, "qemu": qemu}
    if name not in known:
        raise ConfigError(f"the lab has no backend {name!r}", f"use one of: {', '.join(known)}")
    return cast(Backend, known[name])
