"""The backend for QEMU: a real kernel, boot loader, disk and power switch; KVM where it works, else emulation.

Six to nine times slower without KVM. The machine is one process; everything else is as with the other backend: both
networks, SSH with a host key made before the boot, control groups, state.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from minipc.errors import MinipcError
from minipc.lab import cgroups, disk_image, identity, network, ssh
from minipc.lab.machine import FIRST_HOST, Machine, ProcessId
from minipc.lab.nspawn import tail
from minipc.lab.shell import call, clean_environment, say, spawn_detached, succeeds

BOOT_SECONDS = 420.0
PROGRAM = "qemu-system-x86_64"
FIRMWARE = Path("/usr/share/OVMF")
KVM_DEVICE = Path("/dev/kvm")
MEMORY_MB = 2048
CPUS = 2
# How long a kernel may take to say its first words under KVM.
PROBE_SECONDS = 20.0
# `-cpu max` oopsed under emulation (QEMU 7.2, Debian 13's kernel); this model is complete and old.
EMULATED = ("-accel", "tcg,thread=multi", "-cpu", "Nehalem")
ACCELERATED = ("-accel", "kvm", "-cpu", "host")


def base() -> Path:
    """The disk image."""
    return disk_image.ensure()


def is_emulated(base: Path) -> bool:
    """Whether KVM can't be used; tried once, with the image's own kernel."""
    return not kvm_works(base)


def make_disk(machine: Machine) -> None:
    """A disk of the machine's own with the image on it, and its identity for the first boot."""
    disk_image.copy_to(Path(machine.image), machine.disk, machine.disk_gb * 1024**3)
    files = identity.files(machine)
    for side in network.SIDES:
        files[f"etc/systemd/network/10-{side.interface}.link"] = (identity.render_link(machine, side), 0o644)
    disk_image.give_identity(machine.disk, files)
    shutil.copyfile(_firmware("VARS"), machine.directory / "firmware-variables")


def start(machine: Machine) -> ProcessId:
    """Switches the machine on. Returns QEMU's process."""
    for side in network.SIDES:
        cable = network.cable(machine.index, side)
        call("ip", "tuntap", "add", "dev", cable, "mode", "tap")
        if not network.attach(cable, side):
            raise MinipcError(
                f"{cable} can't be connected to {side.bridge}", "minipc lab down --all mends the networks"
            )
    emulated = is_emulated(Path(machine.image))
    if emulated:
        say(f"lab: {machine.name} is emulated (KVM does not work here): six to nine times slower")
    memory_mb = machine.memory_mb or MEMORY_MB
    pid = spawn_detached(
        qemu_command(machine, accelerated=not emulated),
        log=machine.console_log,
        pid_file=machine.directory / "process.pid",
        # What QEMU needs beside the machine's memory.
        prepare=cgroups.enter_command(cgroups.create(machine.name, memory_mb + 1024 if machine.memory_mb else None)),
    )
    process = ProcessId.of(pid)
    if process is None:
        raise MinipcError(
            f"{machine.name} ended at once: {tail(machine.console_log)}",
            f"all that it said is in {machine.console_log}; `minipc lab down {machine.name}`, then bring it up again",
        )
    return process


def kill(machine: Machine) -> None:
    """Cuts the power. Idempotent; the disk stays as it was at that moment."""
    cgroups.kill_and_remove(machine.name)
    network.remove_cables(machine.index)
    ssh.close_connections(machine.name)


def answers_ssh(machine: Machine) -> bool:
    """Whether its kernel answers at all; only a login tells more, and too many failed ones are refused."""
    return succeeds("ping", "-c", "1", "-W", "1", machine.ssh_host)


def harvest(machine: Machine) -> None:
    """Nothing is kept: its disk can't be read while it runs."""


def qemu_command(machine: Machine, *, accelerated: bool) -> list[str]:
    """The machine as QEMU's command line."""
    host = FIRST_HOST + machine.index
    command = [PROGRAM, "-name", machine.name, "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-machine", "q35", *(ACCELERATED if accelerated else EMULATED)]
    command += ["-smp", str(CPUS), "-m", str(machine.memory_mb or MEMORY_MB)]
    command += ["-drive", f"if=pflash,format=raw,readonly=on,file={_firmware('CODE')}"]
    command += ["-drive", f"if=pflash,format=raw,file={machine.directory / 'firmware-variables'}"]
    command += ["-drive", f"if=virtio,format=raw,discard=unmap,file={machine.disk}"]
    for side in network.SIDES:
        cable = network.cable(machine.index, side)
        command += ["-netdev", f"tap,id={side.name},ifname={cable},script=no,downscript=no"]
        command += ["-device", f"virtio-net-pci,netdev={side.name},mac={side.mac_of(host)}"]
    command += ["-device", "virtio-rng-pci", "-chardev", f"file,id=console,path={machine.console_log},append=on"]
    return [*command, "-serial", "chardev:console"]


@cache
def kvm_works(disk: Path) -> bool:
    """Whether a kernel comes up under KVM within a bounded time. That /dev/kvm is there proves nothing.

    Args:
        disk: an image with a kernel.
    """
    if not KVM_DEVICE.exists():
        return False
    with tempfile.TemporaryDirectory() as folder:
        kernel = disk_image.extract_kernel(disk, Path(folder))
        console = Path(folder) / "console"
        argv = [PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *ACCELERATED, "-m", "512"]
        argv += ["-kernel", str(kernel), "-append", "console=ttyS0 panic=-1", "-serial", f"file:{console}"]
        try:
            # Without a root file system it says so and ends.
            subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, env=clean_environment()
            )
        except subprocess.TimeoutExpired:
            return False
        return console.exists() and "Linux version" in console.read_text(errors="replace")


def _firmware(part: str) -> Path:
    """OVMF's CODE or VARS; newer Debian versions only have the 4 MiB files."""
    found = [FIRMWARE / f"OVMF_{part}{size}.fd" for size in ("_4M", "")]
    return next((path for path in found if path.exists()), found[0])
