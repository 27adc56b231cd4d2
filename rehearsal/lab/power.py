"""Start and kill the processes of a machine. All backends use this."""

from __future__ import annotations

from collections.abc import Sequence

from minipc.core.errors import MinipcError
from minipc.core.process import spawn_detached
from rehearsal.lab import cgroups, network, ssh
from rehearsal.lab.machine import Machine, ProcessId

CONSOLE_LINES = 20


def start(machine: Machine, argv: Sequence[str], memory_mb: int | None) -> ProcessId:
    """Start a machine's outermost process in the background, in the machine's control groups.

    Args:
        memory_mb: limit of all its processes in MiB; None for none.

    Raises:
        MinipcError: it ended at once; the error contains the end of the console.
    """
    pid = spawn_detached(
        argv,
        log=machine.console_log,
        pid_file=machine.directory / "process.pid",
        prepare=cgroups.enter_command(cgroups.create(machine.name, memory_mb)),
    )
    process = ProcessId.of(pid)
    if process is None:
        raise MinipcError(
            f"{machine.name} stopped immediately: {end_of_console(machine)}",
            f"read {machine.console_log}; `minipc lab down {machine.name}`, then bring it up again",
        )
    return process


def kill(machine: Machine) -> None:
    """Kill every process of a machine, and remove its cables and shared SSH connections. Idempotent."""
    cgroups.kill_and_remove(machine.name)
    network.remove_cables(machine.index)
    ssh.close_connections(machine.name)


def end_of_console(machine: Machine) -> str:
    """Return the last lines of a machine's console."""
    log = machine.console_log
    return "\n".join(log.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]) if log.exists() else ""
