"""Each machine in control groups of its own, in every hierarchy of the controller (v1 and v2).

minipc-lab/NAME             limits
minipc-lab/NAME/supervisor  our processes
minipc-lab/NAME/boot        systemd-nspawn and the machine; new for each boot
minipc-lab/.reaper-OWNER    see ownership.py

So a machine and its reaper outlive the service or session that started them, and no process escapes `kill_and_remove`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from pathlib import Path

from minipc.errors import MinipcError, MissingPrerequisiteError

ROOT = Path("/sys/fs/cgroup")
PARENT = "minipc-lab"
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")  # v2, v1


def is_unified() -> bool:
    """True on a controller with cgroup v2 only."""
    return (ROOT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """The root directory of every hierarchy."""
    if is_unified():
        return [ROOT]
    return sorted(path for path in ROOT.iterdir() if (path / "cgroup.procs").exists() and not path.is_symlink())


def create(name: str, memory_mb: int | None = None) -> list[Path]:
    """Make groups for a machine or a reaper. Returns the files that a process enters them by.

    Args:
        memory_mb: limit in MiB; None for none.

    Raises MissingPrerequisiteError when a limit is asked for and the memory controller is not there.
    """
    limited = False
    entrances = []
    for hierarchy in hierarchies():
        group = hierarchy / PARENT / name
        _make(group.parent)
        _make(group)
        _make(group / "supervisor")
        for ancestor in (hierarchy, group.parent, group):
            _enable_controllers(ancestor)
        for limit in MEMORY_LIMITS:
            if memory_mb is not None and (group / limit).exists():
                (group / limit).write_text(str(memory_mb * 1024**2))
                limited = True
        entrances.append(group / "supervisor" / "cgroup.procs")
    if memory_mb is not None and not limited:
        raise MissingPrerequisiteError("the controller has no memory control group", "run without a memory limit")
    return entrances


def enter_boot(name: str, owner: int) -> list[Path]:
    """Make a machine's `boot` groups anew, owned by its root, and return the files that a process enters them by."""
    entrances = []
    for hierarchy in hierarchies():
        group = hierarchy / PARENT / name / "boot"
        _remove_tree(group)
        _make(group)
        for path in (group, group / "cgroup.procs", group / "tasks", group / "cgroup.subtree_control"):
            if path.exists():
                os.chown(path, owner, owner)
        entrances.append(group / "cgroup.procs")
    return entrances


def kill_and_remove(name: str, *, timeout: float = 10) -> None:
    """End every process of a machine and remove its groups. Idempotent.

    Raises MinipcError when a process survives SIGKILL for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    for hierarchy in hierarchies():
        group = hierarchy / PARENT / name
        while group.exists():
            _kill_tree(group)
            if _remove_tree(group):
                break
            if time.monotonic() > deadline:
                raise MinipcError(
                    f"processes of lab machine {name} can't be ended: see {group}/**/cgroup.procs",
                    "one that waits for a disk can't be killed: run the same command again, else reboot",
                )
            time.sleep(0.01)
        _remove_if_empty(hierarchy / PARENT)


def leave_and_remove(name: str) -> None:
    """Move the calling process out of its own groups, to the top, and remove them."""
    for hierarchy in hierarchies():
        with contextlib.suppress(OSError):  # a controller in a container may have no group above
            (hierarchy / "cgroup.procs").write_text("0")
        _remove_tree(hierarchy / PARENT / name)
        _remove_if_empty(hierarchy / PARENT)


def processes(name: str) -> list[int]:
    """Numbers of all processes of a machine, as the controller sees them."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for group in _tree(hierarchy / PARENT / name):
            found.update(_pids(group))
    return sorted(found)


def names() -> list[str]:
    """Machines and reapers that have a group, known to the lab or not."""
    parents = [hierarchy / PARENT for hierarchy in hierarchies() if (hierarchy / PARENT).exists()]
    return sorted({group.name for parent in parents for group in parent.iterdir() if group.is_dir()})


def enter_command(entrances: list[Path]) -> str:
    """Shell code that moves the shell into groups."""
    return "".join(f"echo 0 > {shlex.quote(str(entrance))}; " for entrance in entrances)


def _make(group: Path) -> None:
    """On v1 a new cpuset has no CPU and no memory node, and no process can enter it until it has."""
    group.mkdir(exist_ok=True)
    for key in ("cpuset.cpus", "cpuset.mems"):
        path, parent = group / key, group.parent / key
        if path.exists() and parent.exists() and not path.read_text().strip():
            path.write_text(parent.read_text())


def _enable_controllers(group: Path) -> None:
    """On v2, let the children of a group have every controller that the group has."""
    available = group / "cgroup.controllers"
    for controller in available.read_text().split() if available.exists() else []:
        with contextlib.suppress(OSError):  # some need what the kernel has not, such as real-time scheduling
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _kill_tree(group: Path) -> None:
    for path in _tree(group):
        for pid in _pids(path):
            if pid not in (0, os.getpid()):
                _kill(pid)


def _pids(group: Path) -> list[int]:
    """Empty when the group went away meanwhile."""
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _tree(group: Path) -> list[Path]:
    """The group and all groups in it, parents first."""
    return [Path(path) for path, _, _ in os.walk(group)] or [group]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _remove_tree(group: Path) -> bool:
    return all(_remove_if_empty(path) for path in reversed(_tree(group)))


def _remove_if_empty(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
