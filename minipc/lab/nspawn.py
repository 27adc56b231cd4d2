"""The backend for systemd-nspawn: how a machine is started and killed.

A machine is a user namespace of its own: its root may do what a machine's root does to its own network, mounts and
processes, and nothing to the controller's clock, sysctls, audit, kernel log or devices.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

from minipc.errors import MinipcError
from minipc.lab import cgroups, debs, image, network, ssh
from minipc.lab.machine import Machine, ProcessId
from minipc.lab.mounts import UID_COUNT
from minipc.lab.shell import call, spawn_detached

# systemd keeps 0x00080000 to 0x6fffffff for containers (https://systemd.io/UIDS-GIDS).
FIRST_UID = 0x60000000

DROPPED_CAPABILITIES = ("CAP_AUDIT_CONTROL", "CAP_AUDIT_WRITE", "CAP_SYS_TIME")
ADDED_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_IPC_LOCK")
# Container runtimes give each container a session keyring and, on cgroup v2, a device filter.
K3S_SYSTEM_CALLS = ("add_key", "keyctl", "bpf")
# It is in the default set of every pod, and runc can't give what the machine doesn't have. Audit stays out of reach:
# nspawn refuses its sockets, and the kernel takes nothing from another user namespace.
K3S_CAPABILITIES = ("CAP_AUDIT_WRITE",)
# Container images are overlays, which can't lie on the machine's own overlay: these are on its ext4 file system.
K3S_DIRECT = ("/var/lib/rancher", "/var/lib/kubelet", "/var/lib/containers")


# How long a machine may take until it answers SSH, seconds.
BOOT_SECONDS = 60.0


def base() -> Path:
    """The directory of the base image."""
    return image.ensure()


def is_emulated(base: Path) -> bool:
    """Never: it is the controller's own kernel."""
    return False


def make_disk(machine: Machine) -> None:
    """The machine's own writable disk: a sparse file with an ext4 file system of a fixed size."""
    with machine.disk.open("xb") as disk:
        disk.truncate(machine.disk_gb * 1024**3)
    options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    call("mkfs.ext4", "-q", "-m", "0", "-E", options, str(machine.disk))
    debs.make_layer(machine.name)


def start(machine: Machine) -> ProcessId:
    """Boot the machine from its disk, in the background. Returns the process whose death ends it.

    Mounts propagate into its namespace and not out of it: the machine's are never seen on the controller, and what
    the controller unmounts is not held by the machine.
    """
    pid = spawn_detached(
        [
            *("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, "-m", "minipc.lab.supervisor", str(machine.directory)),
        ],
        log=machine.console_log,
        pid_file=machine.directory / "process.pid",
        prepare=cgroups.enter_command(cgroups.create(machine.name, machine.memory_mb)),
    )
    process = ProcessId.of(pid)
    if process is None:
        raise MinipcError(
            f"{machine.name} ended at once: {tail(machine.console_log)}",
            f"all that it said is in {machine.console_log}; `minipc lab down {machine.name}`, then bring it up again",
        )
    return process


def kill(machine: Machine) -> None:
    """Cut the power: end every process of the machine at once. Idempotent; its disk stays."""
    if machine.process and machine.process.is_running():
        os.kill(machine.process.pid, signal.SIGKILL)
    cgroups.kill_and_remove(machine.name)
    network.remove_cables(machine.index)
    ssh.close_connections(machine.name)
    _wait_until_detached(machine.disk)


def harvest(machine: Machine) -> None:
    """Keeps the packages that a running machine has downloaded."""
    debs.harvest(upper(machine), root(machine) / "var/lib/dpkg/status")


def first_uid(machine: Machine) -> int:
    """The controller's user id of the machine's root."""
    return FIRST_UID + machine.index * UID_COUNT


def nspawn_command(machine: Machine, root: Path) -> list[str]:
    return [
        *("systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--boot", "--console=read-only"),
        *("--directory", str(root), f"--machine={machine.name}"),
        *(f"--private-users={first_uid(machine)}:{UID_COUNT}", "--private-users-ownership=off"),
        *capability_options(machine),
        *(k3s_options(machine, root) if machine.k3s else []),
        "--private-network",
        *(f"--network-veth-extra={network.cable(machine.index, side)}:{side.interface}" for side in network.SIDES),
        *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
    ]


def capability_options(machine: Machine) -> list[str]:
    """What root in the machine may do beyond nspawn's default, and less than it."""
    needed = K3S_CAPABILITIES if machine.k3s else ()
    dropped = [name for name in DROPPED_CAPABILITIES if name not in needed]
    return [f"--capability={','.join([*ADDED_CAPABILITIES, *needed])}", f"--drop-capability={','.join(dropped)}"]


def k3s_options(machine: Machine, root: Path) -> list[str]:
    options = [f"--system-call-filter={' '.join(K3S_SYSTEM_CALLS)}"]
    for target in K3S_DIRECT:
        source = root.parent / "rw" / "direct" / Path(target).name
        if not source.exists():
            source.mkdir(parents=True, mode=0o755)
            os.chown(source, first_uid(machine), first_uid(machine))
        options.append(f"--bind={source}:{target}")
    return options


def nspawn_environment(machine: Machine, *, unified_controller: bool) -> dict[str, str]:
    """Which control groups the machine sees.

    It gets v2, as every Debian 13 does; on a controller with v1 that means without resource limits for single
    services. K3s can't do without limits, so there its machine gets v1, which Debian 13's systemd must be talked into.
    """
    if machine.k3s and not unified_controller:
        return {
            "TERM": "dumb",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0",
            "SYSTEMD_PROC_CMDLINE": "systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
        }
    return {"TERM": "dumb", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}


def answers_ssh(machine: Machine) -> bool:
    """Whether something in the machine listens on the SSH port, without connecting to it.

    sshd would log, and in the end refuse, connections that only look whether it is there.
    """
    ours = os.stat("/proc/self/ns/net").st_ino
    for pid in cgroups.processes(machine.name):
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino != ours:
                return any(listens(Path(f"/proc/{pid}/net/{table}").read_text(), 22) for table in ("tcp", "tcp6"))
        except OSError:
            continue  # it ended while we looked
    return False


def listens(table: str, port: int) -> bool:
    """Whether a socket of a /proc/PID/net/tcp table listens (state 0A) on `port`; see proc_pid_net(5)."""
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def upper(machine: Machine) -> Path:
    """The writable layer of a running machine, seen from outside its mount namespace."""
    return _seen_from_outside(machine, "rw") / "upper"


def root(machine: Machine) -> Path:
    """The root of a running machine, seen from outside its mount namespace."""
    return _seen_from_outside(machine, "root")


def console_command(machine: Machine, *argv: str) -> list[str]:
    """The controller's command line that runs `argv` (or a shell) as root on the machine, without any network.

    It stands for a person at the machine's own keyboard.

    Raises:
        MinipcError: the machine is not running.
    """
    if machine.backend != "nspawn":
        raise MinipcError(f"{machine.name} has no keyboard here", f"read its console: {machine.console_log}")
    for pid in cgroups.processes(machine.name):
        numbers = re.search(r"^NSpid:\s+(.*)$", _status(pid), re.M)
        # The machine's first process: number 1 in its own namespace, which is the innermost of three.
        if numbers and len(numbers[1].split()) > 2 and numbers[1].split()[-1] == "1":
            enter = ["nsenter", f"--target={pid}", "--user", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
            home = ["env", "-i", "-C", "/", path, "HOME=/root", f"TERM={os.environ.get('TERM', 'dumb')}"]
            return [*enter, "--setuid=0", "--setgid=0", "--", *home, *(argv or ("bash", "-l"))]
    raise MinipcError(f"{machine.name} is not running", f"minipc lab up {machine.name}")


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""  # it ended while we looked


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _seen_from_outside(machine: Machine, mountpoint: str) -> Path:
    if machine.process is None:
        raise MinipcError(f"{machine.name} is not running", f"`minipc lab start {machine.name}` boots it")
    return Path(f"/proc/{machine.process.pid}/root{machine.directory / mountpoint}")


def _wait_until_detached(disk: Path, timeout: float = 10) -> None:
    """Wait until the kernel has unmounted the disk, shortly after the last process is gone."""
    deadline = time.monotonic() + timeout
    while _loop_device_of(disk):
        if time.monotonic() > deadline:
            raise MinipcError(f"{disk} is still attached to {_loop_device_of(disk)}", f"losetup -j {disk}")
        time.sleep(0.01)


def _loop_device_of(disk: Path) -> str | None:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip() == str(disk):
                return backing.parts[3]
        except OSError:
            continue  # detached while we looked
    return None
