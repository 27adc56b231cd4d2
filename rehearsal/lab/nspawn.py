"""Backend for systemd-nspawn.

A machine has a separate user namespace: its root controls its network, mounts and processes, but not the controller's
clock, sysctls, audit, kernel log or devices.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.polling import wait_until
from minipc.core.process import call
from minipc.images import debian_root
from rehearsal.lab import cgroups, debs, network, power
from rehearsal.lab.machine import Machine, ProcessId
from rehearsal.lab.mounts import UID_COUNT

# systemd keeps 0x00080000 to 0x6fffffff for containers (https://systemd.io/UIDS-GIDS).
FIRST_UID = 0x60000000

DROPPED_CAPABILITIES = ("CAP_AUDIT_CONTROL", "CAP_AUDIT_WRITE", "CAP_SYS_TIME")
ADDED_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_IPC_LOCK")
# Container runtimes create a session keyring and, on cgroup v2, a device filter for each container.
K3S_SYSTEM_CALLS = ("add_key", "keyctl", "bpf")
# Part of the default set of every pod: runc cannot grant what the machine does not have. Audit stays out of reach:
# nspawn refuses its sockets, and the kernel accepts nothing from another user namespace.
K3S_CAPABILITIES = ("CAP_AUDIT_WRITE",)
# Container images are overlays and need ext4: an overlay cannot be on the machine's own overlay.
K3S_DIRECT = ("/var/lib/rancher", "/var/lib/kubelet", "/var/lib/containers")

# Time limit until a machine answers SSH, seconds.
BOOT_SECONDS = 60.0


def base() -> Path:
    """Return the directory of the base image."""
    return debian_root.ensure()


def is_emulated(base: Path) -> bool:
    """Return False: machines use the controller's kernel."""
    return False


def make_disk(machine: Machine) -> None:
    """Create the machine's writable disk: a sparse file with an ext4 file system of a fixed size."""
    with machine.disk.open("xb") as disk:
        disk.truncate(machine.disk_gb * 1024**3)
    options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    call("mkfs.ext4", "-q", "-m", "5", "-E", options, str(machine.disk))
    debs.make_layer(machine.name)


def start(machine: Machine) -> ProcessId:
    """Boot the machine from its disk, in the background. Returns the process whose end stops the machine.

    Mounts propagate into its namespace and not out of it: the controller never sees the machine's mounts, and the
    machine does not hold what the controller unmounts.
    """
    unshare = ("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc")
    supervisor = (sys.executable, "-m", "rehearsal.lab.supervisor", str(machine.directory))
    return power.start(machine, [*unshare, *supervisor], machine.memory_mb)


def kill(machine: Machine) -> None:
    """Cut the power: end every process of the machine at once. Idempotent; its disk stays."""
    if machine.process and machine.process.is_running():
        os.kill(machine.process.pid, signal.SIGKILL)
    power.kill(machine)
    _wait_until_detached(machine.disk)


def harvest(machine: Machine) -> None:
    """Keep the packages that a running machine downloaded."""
    debs.harvest(upper(machine), root(machine) / "var/lib/dpkg/status")


def first_uid(machine: Machine) -> int:
    """Return the controller's user id of the machine's root."""
    return FIRST_UID + machine.index * UID_COUNT


def nspawn_command(machine: Machine, root: Path) -> list[str]:
    return [
        *("systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--boot", "--console=read-only"),
        *("--directory", str(root), f"--machine={machine.name}"),
        *(f"--private-users={first_uid(machine)}:{UID_COUNT}", "--private-users-ownership=off"),
        *capability_options(machine),
        *(k3s_options(machine, root) if machine.runs_containers else []),
        "--private-network",
        *(f"--network-veth-extra={network.cable(machine.index, side)}:{side.interface}" for side in network.SIDES),
        *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
    ]


def capability_options(machine: Machine) -> list[str]:
    """Return the options that add capabilities to nspawn's default and drop others."""
    needed = K3S_CAPABILITIES if machine.runs_containers else ()
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
    """Return the variables that select the control groups of the machine.

    It gets v2 like every Debian 13. On a controller with v1 that means no resource limits for single services. K3s
    needs limits, so its machine gets v1 there, which the systemd of Debian 13 accepts only with this setting.
    """
    if machine.runs_containers and not unified_controller:
        return {
            "TERM": "dumb",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0",
            "SYSTEMD_PROC_CMDLINE": "systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
        }
    return {"TERM": "dumb", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}


def answers_ssh(machine: Machine) -> bool:
    """Return whether something in the machine listens on the SSH port, without connecting to it.

    sshd would log, and finally refuse, connections without a login.
    """
    ours = os.stat("/proc/self/ns/net").st_ino
    for pid in cgroups.processes(machine.name):
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino != ours:
                return any(listens(Path(f"/proc/{pid}/net/{table}").read_text(), 22) for table in ("tcp", "tcp6"))
        except OSError:
            continue  # it has ended meanwhile
    return False


def listens(table: str, port: int) -> bool:
    """Return whether a socket of a /proc/PID/net/tcp table listens (state 0A) on `port`; see proc_pid_net(5)."""
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def upper(machine: Machine) -> Path:
    """Return the writable layer of a running machine, seen from outside its mount namespace."""
    return _seen_from_outside(machine, "rw") / "upper"


def root(machine: Machine) -> Path:
    """Return the root of a running machine, seen from outside its mount namespace."""
    return _seen_from_outside(machine, "root")


def console_command(machine: Machine, *argv: str) -> list[str]:
    """Return the command that runs `argv` (or a shell) as root on the machine without any network.

    It represents a person at the machine's keyboard.

    Raises:
        MinipcError: the machine is not running.
    """
    if machine.backend != "nspawn":
        raise MinipcError(f"{machine.name} has no interactive console", f"read its console log: {machine.console_log}")
    for pid in cgroups.processes(machine.name):
        numbers = re.search(r"^NSpid:\s+(.*)$", _status(pid), re.M)
        # The machine's first process: number 1 in its own namespace, which is the innermost of three.
        if numbers and len(numbers[1].split()) > 2 and numbers[1].split()[-1] == "1":
            enter = ["nsenter", f"--target={pid}", "--user", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
            home = ["env", "-i", "-C", "/", path, "HOME=/root", f"TERM={os.environ.get('TERM', 'dumb')}"]
            return [*enter, "--setuid=0", "--setgid=0", "--", *home, *(argv or ("bash", "-l"))]
    raise MinipcError(f"{machine.name} is not running", f"run `minipc lab start {machine.name}`")


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""  # it has ended meanwhile


def _seen_from_outside(machine: Machine, mountpoint: str) -> Path:
    if machine.process is None:
        raise MinipcError(f"{machine.name} is not running", f"`minipc lab start {machine.name}` boots it")
    return Path(f"/proc/{machine.process.pid}/root{machine.directory / mountpoint}")


def _wait_until_detached(disk: Path, timeout: float = 10) -> None:
    """Wait until the kernel has unmounted the disk, shortly after the last process is gone."""
    if not wait_until(lambda: _loop_device_of(disk) is None, within_s=timeout, every_s=0.01):
        raise MinipcError(f"{disk} is still attached to {_loop_device_of(disk)}", f"losetup -j {disk}")


def _loop_device_of(disk: Path) -> str | None:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip() == str(disk):
                return backing.parts[3]
        except OSError:
            continue  # detached meanwhile
    return None
