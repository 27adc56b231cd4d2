"""Which process a machine belongs to, and the reaper that waits for the end of that process."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from minipc.lab import cgroups
from minipc.lab.machine import ProcessId, lab_dir
from minipc.lab.shell import spawn_detached
from minipc.paths import state_dir


def ensure_reaper(owner: ProcessId) -> None:
    """Start the owner's reaper unless it runs. Call it with the lab's lock held."""
    pid_file = reaper_pid_file(owner)
    if _running(pid_file) is None:
        argv = [sys.executable, "-m", "minipc.lab.reaper", str(owner.pid), str(owner.started)]
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
    """So that a reaper is not ended with the service or session of its owner."""
    for entrance in cgroups.create(_group(reaper_pid_file(owner))):
        entrance.write_text("0")


def retire(owner: ProcessId) -> None:
    """The calling reaper has done its work: leave no group and no file behind."""
    pid_file = reaper_pid_file(owner)
    cgroups.leave_and_remove(_group(pid_file))
    pid_file.unlink(missing_ok=True)


def _running(pid_file: Path) -> int | None:
    """The reaper's pid, when that number still is this reaper."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"minipc.lab.reaper" in command else None


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
