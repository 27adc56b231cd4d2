"""Mount a machine's root inside the mount namespace of its supervisor.

overlay( writable layer on the machine's own ext4 image : cached packages : base image ). The read-only layers are
id-mapped, so that the machine's root is not the controller's: user 0 in the machine is user `first_uid` outside.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from pathlib import Path

from minipc.core.errors import MissingPrerequisiteError
from minipc.core.process import call, clean_environment

UID_COUNT = 65536

# From <linux/mount.h> and <asm-generic/unistd.h>; Python 3.11 has no wrappers. The numbers of system calls
# after 424 are the same on every architecture.
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_IDMAP = 0x00100000

_libc = ctypes.CDLL(None, use_errno=True)


def mount_root(directory: Path, disk: Path, layers: list[Path], first_uid: int) -> Path:
    """Mount a machine's root under `directory` and return it.

    Args:
        layers: read-only, the topmost first.
        first_uid: user and group id outside of the machine's root; 0 for no mapping.
    """
    writable = _mountpoint(directory / "rw")
    # No flushes to the disk below (barrier=0): a power cut of the machine is a kill, which the page cache survives.
    call("mount", "-o", "loop,noatime,barrier=0,noinit_itable", str(disk), str(writable))
    lowers = [_lower(directory / f"lower{number}", layer, first_uid) for number, layer in enumerate(layers)]

    upper, work = writable / "upper", writable / "work"
    if not upper.exists():
        upper.mkdir(mode=0o755)
        os.chown(upper, first_uid, first_uid)
    work.mkdir(exist_ok=True)
    root = _mountpoint(directory / "root")
    options = f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work}"
    call("mount", "-t", "overlay", "-o", options, "minipc-lab", str(root))
    return root


def _lower(target: Path, layer: Path, first_uid: int) -> str:
    if first_uid == 0:
        return str(layer)
    _bind_idmapped(layer, _mountpoint(target), first_uid)
    return str(target)


def _bind_idmapped(source: Path, target: Path, first_uid: int) -> None:
    """Bind-mount `source` so that its ids 0–65535 appear as `first_uid` and following; see mount_setattr(2)."""
    tree = _system_call(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    namespace = _user_namespace(first_uid)
    try:
        attributes = struct.pack("QQQQ", MOUNT_ATTR_IDMAP, 0, 0, namespace)
        _system_call(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes))
        _system_call(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(namespace)
        os.close(tree)


def _user_namespace(first_uid: int) -> int:
    """Return a descriptor of a user namespace that maps 0–65535 to `first_uid` and following."""
    helper = subprocess.Popen(
        ["unshare", "--user", "--", "sh", "-c", "echo ready; exec sleep 60"],
        stdout=subprocess.PIPE,
        env=clean_environment(),
    )
    try:
        assert helper.stdout is not None  # noqa: S101 - for mypy: stdout=PIPE
        helper.stdout.readline()
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{helper.pid}/{table}").write_text(f"0 {first_uid} {UID_COUNT}\n")
        return os.open(f"/proc/{helper.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        helper.kill()
        helper.communicate()


def _system_call(number: int, *arguments: int | bytes) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise MissingPrerequisiteError(
            f"the kernel refused an id-mapped mount (system call {number}: {os.strerror(code)})",
            "the lab needs Linux 5.19 or newer and its cache on ext4, xfs or btrfs",
        )
    return result


def _mountpoint(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path
