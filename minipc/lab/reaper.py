"""Removes the machines of a process that died without doing it: `python -m minipc.lab.reaper PID STARTED`.

One small detached process for each owner. It waits on the owner's pidfd, so that not even `kill -9` of the owner
leaves anything behind. `minipc lab down --all` mends what is left when the reaper is killed too.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

from minipc.lab import lifecycle
from minipc.lab.machine import ProcessId, lab_dir
from minipc.lab.shell import spawn_detached
from minipc.paths import state_dir


def main(owner: ProcessId) -> None:
    wait_for_end(owner)
    lifecycle.remove_owned_by(owner)
    _pid_file(owner).unlink(missing_ok=True)


def wait_for_end(process: ProcessId) -> None:
    """Return when the process is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    if process.is_running():  # and not a later one with the same number
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()


def ensure(owner: ProcessId) -> None:
    """Start the owner's reaper unless it runs. Call it with the lab's lock held."""
    pid_file = _pid_file(owner)
    if _running(pid_file) is None:
        argv = [sys.executable, "-m", "minipc.lab.reaper", str(owner.pid), str(owner.started)]
        spawn_detached(argv, log=lab_dir() / "reaper.log", pid_file=pid_file)


def dismiss_idle(owners: set[ProcessId]) -> None:
    """End reapers whose owner is not among `owners`, except the calling one. Call it with the lab's lock held."""
    needed = {_pid_file(owner).name for owner in owners}
    for pid_file in _directory().iterdir():
        pid = _running(pid_file)
        if pid_file.name in needed or pid == os.getpid():
            continue
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        pid_file.unlink(missing_ok=True)


def _running(pid_file: Path) -> int | None:
    """The reaper's pid, when that number still is this reaper."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"minipc.lab.reaper" in command else None


def _directory() -> Path:
    return state_dir("lab", "reapers")


def _pid_file(owner: ProcessId) -> Path:
    return _directory() / f"{owner.pid}-{owner.started}"


if __name__ == "__main__":
    main(ProcessId(int(sys.argv[1]), int(sys.argv[2])))
