"""Backends of the lab: systemd-nspawn and QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, cast

from minipc.core.errors import ConfigError
from rehearsal.lab import nspawn, qemu
from rehearsal.lab.machine import Machine, ProcessId

BackendName = Literal["nspawn", "qemu"]


class Backend(Protocol):
    """Interface of a backend, which creates, starts and kills machines. Each backend is a module."""

    # Time limit until a machine answers SSH, seconds.
    BOOT_SECONDS: float

    def base(self) -> Path:
        """Return the image that every machine is a copy of. It is built if it is not in the cache."""

    def is_emulated(self, base: Path) -> bool:
        """Return whether machines made of `base` are emulated, without hardware virtualisation."""

    def make_disk(self, machine: Machine) -> None:
        """Create the machine's disk. A backend may add the identity now or at the first boot."""

    def start(self, machine: Machine) -> ProcessId:
        """Boot the machine from its disk, in the background. Returns the process whose end stops the machine."""

    def kill(self, machine: Machine) -> None:
        """Cut the power. The disk stays. Idempotent."""

    def answers_ssh(self, machine: Machine) -> bool:
        """Return whether a login attempt is worthwhile."""

    def harvest(self, machine: Machine) -> None:
        """Keep the packages that a running machine downloaded for later machines."""


def backend_of(machine: Machine) -> Backend:
    """Return the machine's backend.

    Raises:
        ConfigError: this version does not have that backend.
    """
    return named(machine.backend)


def named(name: str) -> Backend:
    """Return the backend of that name.

    Raises:
        ConfigError: there is none.
    """
    known = {"nspawn": nspawn, "qemu": qemu}
    if name not in known:
        raise ConfigError(f"the lab has no backend {name!r}", f"use one of: {', '.join(known)}")
    return cast(Backend, known[name])
