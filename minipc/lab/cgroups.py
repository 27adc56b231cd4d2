"""Each machine in a control group of its own, `minipc-lab/NAME`, in every hierarchy of the controller (v1 and v2)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from minipc.errors import MinipcError

ROOT = Path("/sys/fs/cgroup")
PARENT = "minipc-lab"


def is_unified() -> bool:
    """True on a controller with cgroup v2 only."""
    return (ROOT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """The root directory of every hierarchy."""
    if is_unified():
        return [ROOT]
    return sorted(path for path in ROOT.iterdir() if (path / "cgroup.procs").exists() and not path.is_symlink())


def enter(name: str, memory_mb: int | None) -> None:
    """Move the calling process into the machine's groups, made when missing.

    Args:
        memory_mb: limit in MiB; None for none. Needs the memory controller.
    """
    for hierarchy in hierarchies():
        for group in (hierarchy / PARENT, hierarchy / PARENT / name):
            group.mkdir(exist_ok=True)
            _inherit_cpuset(group)
        if memory_mb is not None:
            _limit_memory(hierarchy / PARENT, name, memory_mb)
        (hierarchy / PARENT / name / "cgroup.procs").write_text("0")


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
                raise MinipcError(f"processes of lab machine {name} can't be ended: see {group}/**/cgroup.procs")
            time.sleep(0.01)
        _remove_if_empty(hierarchy / PARENT)


def names() -> list[str]:
    """Machines that have a group, known to the lab or not."""
    parents = [hierarchy / PARENT for hierarchy in hierarchies() if (hierarchy / PARENT).exists()]
    return sorted({group.name for parent in parents for group in parent.iterdir() if group.is_dir()})


def _limit_memory(parent: Path, name: str, memory_mb: int) -> None:
    if is_unified():
        (ROOT / "cgroup.subtree_control").write_text("+memory")
        (parent / "cgroup.subtree_control").write_text("+memory")
    for limit in ("memory.max", "memory.limit_in_bytes"):
        path = parent / name / limit
        if path.exists():
            path.write_text(str(memory_mb * 1024**2))


def _inherit_cpuset(group: Path) -> None:
    """On v1 a new cpuset has no CPU and no memory node, and no process can enter it."""
    for key in ("cpuset.cpus", "cpuset.mems"):
        path, parent = group / key, group.parent / key
        if path.exists() and parent.exists() and not path.read_text().strip():
            path.write_text(parent.read_text())


def _kill_tree(group: Path) -> None:
    for procs in group.rglob("cgroup.procs"):
        try:
            pids = [int(pid) for pid in procs.read_text().split()]
        except OSError:
            continue  # the group went away while we looked
        for pid in pids:
            if pid not in (0, os.getpid()):
                _kill(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _remove_tree(group: Path) -> bool:
    children = sorted((path for path in group.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
    return all(_remove_if_empty(child) for child in (*children, group))


def _remove_if_empty(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
