"""Create, start, stop and remove machines. One lock serialises all changes to what machines share."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minipc.core.errors import MinipcError, MissingPrerequisiteError, RefusedError
from minipc.core.polling import wait_until
from minipc.core.process import kept_open
from minipc.images import debian_root
from minipc.images.apt_sources import controller_mirrors
from minipc.remote.host_keys import generate_host_key
from rehearsal.lab import cgroups, debs, network, power, ssh, tunnel
from rehearsal.lab.backends import BackendName, backend_of, named
from rehearsal.lab.machine import Machine, ProcessId, check_name, find, free_index, load_all, machines_dir
from rehearsal.lab.ownership import dismiss_reapers, ensure_reaper, retire
from rehearsal.lab.prerequisites import ensure_prerequisites

LOCK = network.RUN_DIR / "lock"
DEFAULT_DISK_GB = 8
CONNECT_S = 5
SPARE_BYTES = 1024**3
READ_BOOT = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait"


def up(
    name: str,
    *,
    disk_gb: int = DEFAULT_DISK_GB,
    memory_mb: int | None = None,
    k3s: bool = False,
    podman: bool = False,
    keep: bool = False,
    backend: BackendName = "nspawn",
) -> Machine:
    """Create a blank machine and wait until it answers SSH. It is removed when the calling process ends.

    Args:
        disk_gb: size of its own disk in GiB.
        memory_mb: limit in MiB; None for none.
        k3s: allow what K3s needs, and converge it with K3s.
        podman: allow the same for containers without K3s.
        keep: keep it until `down`.
        backend: "nspawn", or "qemu" for a real kernel and disk.

    Raises:
        ConfigError: the name is not valid.
        MissingPrerequisiteError: the controller lacks something; the error names everything that is missing.
        RefusedError: the name is taken, or the machine's disk could fill the controller's.
        MinipcError: it did not boot; the error contains the end of its console.
    """
    check_name(name)
    ensure_prerequisites(install=True, qemu=backend == "qemu")
    base = named(backend).base()
    with lock():
        sweep()
        _refuse_taken(name)
        _refuse_if_disk_too_small(disk_gb)
        if not keep:
            ensure_reaper(ProcessId.own())
        network.ensure(network.nameservers(), controller_mirrors().web_ports)
        machine = Machine(
            name=name,
            index=free_index(other.index for other in load_all()),
            backend=backend,
            disk_gb=disk_gb,
            image=str(base),
            memory_mb=memory_mb,
            k3s=k3s,
            podman=podman,
            kept=keep,
            owner=None if keep else ProcessId.own(),
        )
        _prepare(machine)
    try:
        start(machine)
    except BaseException:
        destroy(machine)
        raise
    return machine


def start(machine: Machine, *, timeout: float | None = None) -> Machine:
    """Boot a machine that is off from its disk, and wait until it answers SSH.

    Args:
        timeout: seconds; None for the limit of the backend.

    Raises MinipcError with the end of its console if it takes longer.
    """
    if machine.running:
        raise RefusedError(f"{machine.name} is already running", "power it off first")
    with lock():
        backend_of(machine).kill(machine)  # leftovers of a machine that stopped by itself
        network.ensure(network.nameservers(), controller_mirrors().web_ports)
        machine.process = backend_of(machine).start(machine)
        machine.save()
    wait_until_booted(machine, timeout=timeout)
    return machine


def wait_until_booted(machine: Machine, *, timeout: float | None = None, not_boot: str = "") -> None:
    """Wait for SSH with the pinned host key, and for systemd to finish booting.

    Args:
        not_boot: boot id from before a reboot; wait until it is another one.
    """
    backend = backend_of(machine)
    timeout = timeout or backend.BOOT_SECONDS
    booted = False

    def has_booted_or_ended() -> bool:
        nonlocal booted
        if not machine.running or not backend.answers_ssh(machine):
            return not machine.running
        answer = ssh.run(machine, ["sh", "-c", READ_BOOT], check=False, timeout=timeout, connect_timeout=CONNECT_S)
        boot, _, state = answer.stdout.strip().partition("\n")
        booted = state in ("running", "degraded") and boot != not_boot
        if "Host key verification failed" in answer.stderr:
            raise MinipcError(f"{machine.name}: {answer.stderr.strip()}", f"minipc lab down {machine.name}")
        if not booted:
            ssh.close_connections(machine.name)  # it is going down, or not up yet
        return booted

    wait_until(has_booted_or_ended, within_s=timeout, every_s=0.02)
    if not booted:
        raise MinipcError(
            f"{machine.name} did not answer SSH within {timeout:.0f} s. The end of its console:\n"
            f"{power.end_of_console(machine)}",
            f"see {machine.console_log}",
        )


def reboot(machine: Machine, *, timeout: float | None = None) -> None:
    """Reboot the machine from inside, as an operator would, and wait until it answers again."""
    boot = ssh.run(machine, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()
    ssh.run(machine, ["systemctl", "reboot"], check=False)
    ssh.close_connections(machine.name)
    wait_until_booted(machine, timeout=timeout, not_boot=boot)


def power_off(machine: Machine) -> None:
    """Cut the power: nothing in the machine gets a chance to finish. Its disk stays for `start`."""
    with lock():
        _harvest(machine)
        backend_of(machine).kill(machine)


def destroy(machine: Machine) -> None:
    """Cut the power and delete the disk, as when the hardware is lost."""
    with lock():
        _remove([machine])


def down(names: str | Iterable[str] = "all") -> list[str]:
    """Remove machines by name, or `"all"`. Returns the names of the removed machines. Idempotent.

    With `"all"` also remove leftovers of a crash: processes, control groups, networks, settings.
    """
    with lock():
        if names == "all":
            removed = load_all()
            _remove(removed, harvest=True)
            _remove_leftovers()
        else:
            wanted = dict.fromkeys([names] if isinstance(names, str) else names)
            removed = [machine for name in wanted if (machine := find(name))]
            _remove(removed, harvest=True)
    return [machine.name for machine in removed]


def ensure_image() -> Path:
    """Build the base image if it is not in the cache (half a minute). Returns its directory."""
    ensure_prerequisites(install=True)
    with lock():
        return debian_root.ensure()


def ensure_backend(name: BackendName) -> bool:
    """Install and build everything that a backend needs. Returns whether its machines are emulated, and so slow."""
    ensure_prerequisites(install=True, qemu=name == "qemu")
    backend = named(name)
    return backend.is_emulated(backend.base())


def list_machines() -> list[Machine]:
    """Return every machine on this controller, running or powered off."""
    return load_all()


@contextmanager
def machine(
    name: str,
    *,
    disk_gb: int = DEFAULT_DISK_GB,
    memory_mb: int | None = None,
    k3s: bool = False,
    podman: bool = False,
    keep: bool = False,
    backend: BackendName = "nspawn",
) -> Iterator[Machine]:
    """Provide a machine for a `with` block. With `keep` it stays afterwards."""
    subject = up(name, disk_gb=disk_gb, memory_mb=memory_mb, k3s=k3s, podman=podman, keep=keep, backend=backend)
    try:
        yield subject
    finally:
        if not keep:
            down(name)


def sweep() -> None:
    """Remove machines whose owner is gone. Call it with the lock held."""
    _remove([machine for machine in load_all() if machine.abandoned])


def remove_owned_by(owner: ProcessId) -> None:
    """Remove the machines of a dead process, and the files of its reaper, which is the caller."""
    with lock():
        _remove([machine for machine in load_all() if not machine.kept and machine.owner == owner])
        retire(owner)


@contextmanager
def lock() -> Iterator[None]:
    """Hold the lab's lock; the kernel drops it when the holder dies.

    Raises MissingPrerequisiteError without root, and RefusedError if another lab is up on this controller.
    """
    if os.geteuid() != 0:
        raise MissingPrerequisiteError("changing the lab's machines needs root", "run as root")
    LOCK.parent.mkdir(mode=0o700, exist_ok=True)
    with LOCK.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        kept_open.add(file.fileno())
        try:
            network.refuse_other_lab()
            yield
        finally:
            kept_open.discard(file.fileno())


def _prepare(machine: Machine) -> None:
    """Create everything that a machine needs before its first boot."""
    machine.save()
    machine.host_key = generate_host_key(machine.directory, machine.name)
    machine.save()
    backend_of(machine).make_disk(machine)
    ssh.write_client_files()


def _remove(doomed: list[Machine], *, harvest: bool = False) -> None:
    for machine in doomed:
        if harvest:
            _harvest(machine)
        backend_of(machine).kill(machine)
        tunnel.remove_all(machine)
        debs.remove_layer(machine.name)
        shutil.rmtree(machine.directory)
    remaining = load_all()
    dismiss_reapers({machine.owner for machine in remaining if machine.owner})
    if remaining:
        ssh.write_client_files()
    else:
        network.release()
        ssh.remove_client_files()


def _harvest(machine: Machine) -> None:
    if machine.running:
        backend_of(machine).harvest(machine)


def _remove_leftovers() -> None:
    """Remove leftovers that belong to no known machine."""
    for name in cgroups.names():
        cgroups.kill_and_remove(name)
    for directory in machines_dir().iterdir():
        debs.remove_layer(directory.name)
        shutil.rmtree(directory)
    dismiss_reapers(set())
    tunnel.remove_leftovers()
    network.release()
    debian_root.remove_partial()


def _refuse_taken(name: str) -> None:
    existing = find(name)
    if existing:
        state = "running" if existing.running else "powered off"
        raise RefusedError(f"there is already a machine named {name!r} ({state})", f"minipc lab down {name}")
    leftover = machines_dir() / name
    if leftover.exists():  # the state of an `up` that was killed before it wrote machine.json
        shutil.rmtree(leftover)


def _refuse_if_disk_too_small(disk_gb: int) -> None:
    """Raise RefusedError if the controller's disk could become full when every machine fills its own."""
    claimed = sum(_unused_bytes(machine.disk) for machine in load_all())
    free = shutil.disk_usage(machines_dir()).free
    if claimed + disk_gb * 1024**3 + SPARE_BYTES > free:
        raise RefusedError(
            f"a disk of {disk_gb} GiB could fill the controller's: {free / 1024**3:.1f} GiB are free at "
            f"{machines_dir()}, other machines may still take {claimed / 1024**3:.1f} GiB",
            "choose a smaller disk, remove machines, or set MINIPC_STATE_DIR to a larger file system",
        )


def _unused_bytes(disk: Path) -> int:
    """Return by how many bytes a sparse file can still grow."""
    if not disk.exists():
        return 0
    stat = os.stat(disk)
    return max(0, stat.st_size - stat.st_blocks * 512)
