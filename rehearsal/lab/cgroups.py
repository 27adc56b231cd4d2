"""Control groups of each machine, in every hierarchy of the controller (v1 and v2).

minipc-lab/NAME             limits
minipc-lab/NAME/supervisor  our processes
minipc-lab/NAME/boot        systemd-nspawn and the machine; new for each boot
minipc-lab/.reaper-OWNER    see ownership.py

So a machine and its reaper outlive the service or session that started them, and no process escapes `kill_and_remove`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import signal
from pathlib import Path

from minipc.core.errors import MinipcError, MissingPrerequisiteError
from minipc.core.polling import wait_until

ROOT = Path("/sys/fs/cgroup")
PARENT = "minipc-lab"
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")  # v2, v1


def is_unified() -> bool:
    """Return whether the controller has cgroup v2 only."""
    return (ROOT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """Return the root directory of every hierarchy."""
    if is_unified():
        return [ROOT]
    return sorted(path for path in ROOT.iterdir() if (path / "cgroup.procs").exists() and not path.is_symlink())


def create(name: str, memory_mb: int | None = None) -> list[Path]:
    """Create groups for a machine or a reaper. Return the files through which a process enters them.

    Args:
        memory_mb: limit in MiB; None for none.

    Raises MissingPrerequisiteError if a limit is requested and the controller has no memory control group.
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
    """Recreate a machine's `boot` groups, owned by its root. Return the files through which a process enters them."""
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

    Raises MinipcError if a process survives SIGKILL for `timeout` seconds.
    """
    for hierarchy in hierarchies():
        group = hierarchy / PARENT / name
        if not wait_until(functools.partial(_killed_and_removed, group), within_s=timeout, every_s=0.01):
            raise MinipcError(
                f"processes of lab machine {name} cannot be ended: see {group}/**/cgroup.procs",
                "a process that waits for a disk cannot be killed: run the same command again, or reboot",
            )
        _remove_if_empty(hierarchy / PARENT)


def _killed_and_removed(group: Path) -> bool:
    if not group.exists():
        return True
    _kill_tree(group)
    return _remove_tree(group)


def leave_and_remove(name: str) -> None:
    """Move the calling process out of its own groups, to the top, and remove them."""
    for hierarchy in hierarchies():
        with contextlib.suppress(OSError):  # a controller in a container may have no group above
            (hierarchy / "cgroup.procs").write_text("0")
        _remove_tree(hierarchy / PARENT / name)
        _remove_if_empty(hierarchy / PARENT)


def processes(name: str) -> list[int]:
    """Return the pids of all processes of a machine, as the controller sees them."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for group in _tree(hierarchy / PARENT / name):
            found.update(_pids(group))
    return sorted(found)


def names() -> list[str]:
    """Return the names of machines and reapers that have a group, known to the lab or not."""
    parents = [hierarchy / PARENT for hierarchy in hierarchies() if (hierarchy / PARENT).exists()]
    return sorted({group.name for parent in parents for group in parent.iterdir() if group.is_dir()})


def enter_command(entrances: list[Path]) -> str:
    """Return shell code that moves the shell into groups."""
    return "".join(f"echo 0 > {shlex.quote(str(entrance))}; " for entrance in entrances)


def _make(group: Path) -> None:
    """Create a group. On v1 also give a new cpuset CPUs and memory nodes: no process can enter it without."""
    group.mkdir(exist_ok=True)
    for key in ("cpuset.cpus", "cpuset.mems"):
        path, parent = group / key, group.parent / key
        if path.exists() and parent.exists() and not path.read_text().strip():
            path.write_text(parent.read_text())


def _enable_controllers(group: Path) -> None:
    """Enable every controller of a group for its children (v2)."""
    available = group / "cgroup.controllers"
    for controller in available.read_text().split() if available.exists() else []:
        with contextlib.suppress(OSError):  # some need a kernel feature that is missing, such as real-time scheduling
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _kill_tree(group: Path) -> None:
    for path in _tree(group):
        for pid in _pids(path):
            if pid not in (0, os.getpid()):
                _kill(pid)


def _pids(group: Path) -> list[int]:
    """Return the pids in a group; none if the group was removed meanwhile."""
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _tree(group: Path) -> list[Path]:
    """Return the group and all groups below it, parents first."""
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
