"""Reapers: small processes that wait for the end of a machine's owner."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from minipc.core.paths import state_dir
from minipc.core.process import spawn_detached
from rehearsal.lab import cgroups
from rehearsal.lab.machine import ProcessId, lab_dir


def ensure_reaper(owner: ProcessId) -> None:
    """Start the owner's reaper if it does not run. Call it with the lab's lock held."""
    pid_file = reaper_pid_file(owner)
    if _running(pid_file) is None:
        argv = [sys.executable, "-m", "rehearsal.lab.reaper", str(owner.pid), str(owner.started)]
        spawn_detached(argv, log=lab_dir() / "reaper.log", pid_file=pid_file)


def dismiss_reapers(owners: set[ProcessId]) -> None:
    """End reapers whose owner is not among `owners`, except the calling one. Call it with the lab's lock held."""
    needed = {reaper_pid_file(owner).name for owner in owners}
    for pid_file in _directory().iterdir():
        pid = _running(pid_file)
        if pid_file.name in needed or pid == os.getpid():
            continue
        if pid is not None:
            _kill(pid)
        cgroups.kill_and_remove(_group(pid_file))
        pid_file.unlink(missing_ok=True)


def enter_own_group(owner: ProcessId) -> None:
    """Move the caller into its own group, so that it does not end with the service or session of its owner."""
    for entrance in cgroups.create(_group(reaper_pid_file(owner))):
        entrance.write_text("0")


def retire(owner: ProcessId) -> None:
    """Remove the group and the file of the calling reaper."""
    pid_file = reaper_pid_file(owner)
    cgroups.leave_and_remove(_group(pid_file))
    pid_file.unlink(missing_ok=True)


def _running(pid_file: Path) -> int | None:
    """Return the reaper's pid; None if that process is no longer this reaper."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"rehearsal.lab.reaper" in command else None


def _kill(pid: int) -> None:
    """End a process and wait for its end."""
    process = ProcessId.of(pid)
    if process:
        os.kill(pid, signal.SIGKILL)
        while process.is_running():
            time.sleep(0.005)


def _group(pid_file: Path) -> str:
    return f".reaper-{pid_file.name}"


def _directory() -> Path:
    return state_dir("lab", "reapers")


def reaper_pid_file(owner: ProcessId) -> Path:
    return _directory() / f"{owner.pid}-{owner.started}"
