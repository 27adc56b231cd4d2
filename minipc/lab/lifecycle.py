"""Bringing machines up and down. One lock serialises every change to what machines share."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minipc.errors import MinipcError, MissingPrerequisiteError, RefusedError
from minipc.lab import cgroups, debs, image, network, nspawn, ssh, tunnel
from minipc.lab.apt_sources import controller_mirrors
from minipc.lab.machine import Machine, ProcessId, check_name, find, free_index, load_all, machines_dir
from minipc.lab.ownership import dismiss_reapers, ensure_reaper, retire
from minipc.lab.prerequisites import ensure_prerequisites
from minipc.lab.shell import kept_open

LOCK = network.RUN_DIR / "lock"
DEFAULT_DISK_GB = 8
SPARE_BYTES = 1024**3
BOOT_SECONDS = 60
READ_BOOT = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait"


def up(
    name: str,
    *,
    disk_gb: int = DEFAULT_DISK_GB,
    memory_mb: int | None = None,
    k3s: bool = False,
    keep: bool = False,
) -> Machine:
    """Make a blank machine and wait until it answers SSH. It goes when the calling process ends, however that ends.

    Args:
        disk_gb: size of its own disk in GiB.
        memory_mb: limit in MiB; None for none.
        k3s: with what K3s needs.
        keep: it stays until `down`.

    Raises:
        ConfigError: the name is not valid.
        MissingPrerequisiteError: the controller lacks something; it names all of it.
        RefusedError: the name is taken, or the controller's disk could not hold the machine's.
        MinipcError: it did not boot; with the end of its console.
    """
    check_name(name)
    ensure_prerequisites(install=True)
    with lock():
        sweep()
        _refuse_taken(name)
        _refuse_without_room(disk_gb)
        base = image.ensure()
        if not keep:
            ensure_reaper(ProcessId.own())
        network.ensure(network.nameservers(), controller_mirrors().web_ports)
        machine = _create(name, base, disk_gb=disk_gb, memory_mb=memory_mb, k3s=k3s, keep=keep)
    try:
        start(machine)
    except BaseException:
        destroy(machine)
        raise
    return machine


def start(machine: Machine, *, timeout: float = BOOT_SECONDS) -> Machine:
    """Boot a machine that is off from the disk it has, and wait until it answers SSH.

    Raises MinipcError with the end of its console when that takes longer than `timeout` seconds.
    """
    if machine.running:
        raise RefusedError(f"{machine.name} is already running", "power it off first")
    with lock():
        nspawn.kill(machine)  # leftovers of a run that ended by itself
        network.ensure(network.nameservers(), controller_mirrors().web_ports)
        machine.process = nspawn.start(machine)
        machine.save()
    wait_until_booted(machine, timeout=timeout)
    return machine


def wait_until_booted(machine: Machine, *, timeout: float = BOOT_SECONDS, not_boot: str = "") -> None:
    """Wait for SSH with the pinned host key, and for systemd to finish booting.

    Args:
        not_boot: the boot id that is to go away, when waiting for a reboot.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and machine.running:
        if not nspawn.answers_ssh(machine):
            time.sleep(0.02)
            continue
        answer = ssh.run(machine, ["sh", "-c", READ_BOOT], check=False, connect_timeout=1)
        boot, _, state = answer.stdout.strip().partition("\n")
        if state in ("running", "degraded") and boot != not_boot:
            return
        if "Host key verification failed" in answer.stderr:
            raise MinipcError(f"{machine.name}: {answer.stderr.strip()}", f"minipc lab down {machine.name}")
        ssh.close_connections(machine.name)  # it is going down, or not up yet
        time.sleep(0.02)
    raise MinipcError(
        f"{machine.name} did not answer SSH within {timeout:.0f} s. The end of its console:\n"
        f"{nspawn.tail(machine.console_log)}",
        f"see {machine.console_log}",
    )


def reboot(machine: Machine, *, timeout: float = BOOT_SECONDS) -> None:
    """Reboot the machine from inside, as an operator would, and wait until it answers again."""
    boot = ssh.run(machine, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()
    ssh.run(machine, ["systemctl", "reboot"], check=False)
    ssh.close_connections(machine.name)
    wait_until_booted(machine, timeout=timeout, not_boot=boot)


def power_off(machine: Machine) -> None:
    """Cut the power: nothing in the machine gets a chance to finish. Its disk stays for `start`."""
    with lock():
        _harvest(machine)
        nspawn.kill(machine)


def destroy(machine: Machine) -> None:
    """Cut the power and delete the disk, as when the hardware is lost."""
    with lock():
        _remove([machine])


def down(names: str | Iterable[str] = "all") -> list[str]:
    """Remove machines by name, or `"all"`; returns the names of those removed. Idempotent.

    With `"all"` it also mends what a crash left: processes, control groups, networks, settings.
    """
    with lock():
        if names == "all":
            removed = load_all()
            _remove(removed, harvest=True)
            _mend()
        else:
            wanted = [names] if isinstance(names, str) else list(names)
            found = {name: find(name) for name in wanted}
            removed = [machine for machine in found.values() if machine]
            _remove(removed, harvest=True)
    return [machine.name for machine in removed]


def ensure_image() -> Path:
    """The base image, built when it is not in the cache (half a minute). Returns its directory."""
    ensure_prerequisites(install=True)
    with lock():
        return image.ensure()


def list_machines() -> list[Machine]:
    """Every machine on this controller, running or powered off."""
    return load_all()


@contextmanager
def machine(
    name: str,
    *,
    disk_gb: int = DEFAULT_DISK_GB,
    memory_mb: int | None = None,
    k3s: bool = False,
    keep: bool = False,
) -> Iterator[Machine]:
    """`with machine("mini") as mini:` a machine for the block; with `keep` it stays afterwards."""
    subject = up(name, disk_gb=disk_gb, memory_mb=memory_mb, k3s=k3s, keep=keep)
    try:
        yield subject
    finally:
        if not keep:
            down(name)


def sweep() -> None:
    """Remove machines whose owner is gone. Call it with the lock held."""
    _remove([machine for machine in load_all() if machine.abandoned])


def remove_owned_by(owner: ProcessId) -> None:
    """Remove what a dead process owned, and the traces of its reaper, which is the caller."""
    with lock():
        _remove([machine for machine in load_all() if not machine.kept and machine.owner == owner])
        retire(owner)


@contextmanager
def lock() -> Iterator[None]:
    """Hold the lab's lock; the kernel drops it when the holder dies.

    Raises MissingPrerequisiteError for anyone but root, RefusedError when another lab is up on this controller.
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


def _create(name: str, base: Path, *, disk_gb: int, memory_mb: int | None, k3s: bool, keep: bool) -> Machine:
    """Everything a machine needs before its first boot."""
    machine = Machine(
        name=name,
        index=free_index(other.index for other in load_all()),
        disk_gb=disk_gb,
        image=str(base),
        memory_mb=memory_mb,
        k3s=k3s,
        kept=keep,
        owner=None if keep else ProcessId.own(),
    )
    machine.save()
    machine.host_key = ssh.generate_host_key(machine.directory, name)
    machine.save()
    nspawn.make_disk(machine)
    debs.make_layer(name)
    ssh.write_client_files()
    return machine


def _remove(doomed: list[Machine], *, harvest: bool = False) -> None:
    for machine in doomed:
        if harvest:
            _harvest(machine)
        nspawn.kill(machine)
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
        debs.harvest(nspawn.upper(machine), nspawn.root(machine) / "var/lib/dpkg/status")


def _mend() -> None:
    """Remove leftovers that no machine's state tells of."""
    for name in cgroups.names():
        cgroups.kill_and_remove(name)
    for directory in machines_dir().iterdir():
        debs.remove_layer(directory.name)
        shutil.rmtree(directory)
    dismiss_reapers(set())
    network.release()
    image.remove_partial()


def _refuse_taken(name: str) -> None:
    existing = find(name)
    if existing:
        state = "running" if existing.running else "powered off"
        raise RefusedError(f"there already is a machine named {name!r} ({state})", f"minipc lab down {name}")
    leftover = machines_dir() / name
    if leftover.exists():  # the state of an `up` that was killed before it wrote machine.json
        shutil.rmtree(leftover)


def _refuse_without_room(disk_gb: int) -> None:
    """Even when every machine fills its disk, the controller's must not be full."""
    claimed = sum(_unused_bytes(machine.disk) for machine in load_all())
    free = shutil.disk_usage(machines_dir()).free
    if claimed + disk_gb * 1024**3 + SPARE_BYTES > free:
        raise RefusedError(
            f"a disk of {disk_gb} GiB could fill the controller's: {free / 1024**3:.1f} GiB are free at "
            f"{machines_dir()}, other machines may still take {claimed / 1024**3:.1f} GiB",
            "choose a smaller disk, remove machines, or set MINIPC_STATE_DIR to a larger file system",
        )


def _unused_bytes(disk: Path) -> int:
    """How much a sparse file can still grow."""
    if not disk.exists():
        return 0
    stat = os.stat(disk)
    return max(0, stat.st_size - stat.st_blocks * 512)
