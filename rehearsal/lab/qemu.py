"""Backend for QEMU: a separate kernel, boot loader, disk and power switch. Uses KVM if it works, else emulation.

Emulation is six to nine times slower. The machine is one process. Networks, SSH host key, control groups and state are
the same as in the other backend.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.process import call, clean_environment, say, succeeds
from minipc.images import disk_image
from rehearsal.lab import identity, network, power
from rehearsal.lab.machine import FIRST_HOST, Machine, ProcessId

BOOT_SECONDS = 420.0
PROGRAM = "qemu-system-x86_64"
FIRMWARE = Path("/usr/share/OVMF")
KVM_DEVICE = Path("/dev/kvm")
MEMORY_MB = 2048
CPUS = 2
# Time limit until a kernel prints its first line under KVM, seconds.
PROBE_SECONDS = 20.0
# `-cpu max` made the kernel of Debian 13 oops under emulation (QEMU 7.2). This older model works.
EMULATED = ("-accel", "tcg,thread=multi", "-cpu", "Nehalem")
ACCELERATED = ("-accel", "kvm", "-cpu", "host")


def base() -> Path:
    """Return the disk image."""
    return disk_image.ensure()


def is_emulated(base: Path) -> bool:
    """Return whether KVM does not work. It is tried once, with the kernel of the image."""
    return not kvm_works(base)


def make_disk(machine: Machine) -> None:
    """Create the machine's disk from the image, with the identity for the first boot."""
    disk_image.copy_to(Path(machine.image), machine.disk, machine.disk_gb * 1024**3)
    files = identity.files(machine)
    for side in network.SIDES:
        files[f"etc/systemd/network/10-{side.interface}.link"] = (identity.render_link(machine, side), 0o644)
    disk_image.give_identity(machine.disk, files)
    shutil.copyfile(firmware("VARS"), machine.directory / "firmware-variables")


def start(machine: Machine) -> ProcessId:
    """Boot the machine from its disk, in the background. Returns QEMU's process."""
    for side in network.SIDES:
        cable = network.cable(machine.index, side)
        call("ip", "tuntap", "add", "dev", cable, "mode", "tap")
        if not network.attach(cable, side):
            raise MinipcError(
                f"{cable} cannot be attached to {side.bridge}", "`minipc lab down --all` removes the networks"
            )
    emulated = is_emulated(Path(machine.image))
    if emulated:
        say(f"lab: {machine.name} is emulated (KVM does not work here): six to nine times slower")
    # QEMU needs memory in addition to the machine's.
    memory_mb = machine.memory_mb + 1024 if machine.memory_mb else None
    return power.start(machine, qemu_command(machine, accelerated=not emulated), memory_mb)


def kill(machine: Machine) -> None:
    """Cut the power. The disk stays as it is at that moment. Idempotent."""
    power.kill(machine)


def answers_ssh(machine: Machine) -> bool:
    """Return whether the kernel answers a ping. Failed logins would be refused after a while."""
    return succeeds("ping", "-c", "1", "-W", "1", machine.ssh_host)


def harvest(machine: Machine) -> None:
    """Keep nothing: the disk cannot be read while the machine runs."""


def qemu_command(machine: Machine, *, accelerated: bool) -> list[str]:
    """Return QEMU's command line for the machine."""
    host = FIRST_HOST + machine.index
    variables = machine.directory / "firmware-variables"
    command = hardware(machine.name, machine.disk, variables, machine.console_log, accelerated=accelerated)
    command += ["-m", str(machine.memory_mb or MEMORY_MB)]
    for side in network.SIDES:
        cable = network.cable(machine.index, side)
        command += ["-netdev", f"tap,id={side.name},ifname={cable},script=no,downscript=no"]
        command += ["-device", f"virtio-net-pci,netdev={side.name},mac={side.mac_of(host)}"]
    return command


def hardware(name: str, disk: Path, variables: Path, console_log: Path, *, accelerated: bool) -> list[str]:
    """Return QEMU's command line for everything except memory and network.

    Args:
        variables: the machine's copy of `firmware("VARS")`.
    """
    command = [PROGRAM, "-name", name, "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-machine", "q35", *(ACCELERATED if accelerated else EMULATED), "-smp", str(CPUS)]
    command += ["-drive", f"if=pflash,format=raw,readonly=on,file={firmware('CODE')}"]
    command += ["-drive", f"if=pflash,format=raw,file={variables}"]
    command += ["-drive", f"if=virtio,format=raw,discard=unmap,file={disk}"]
    command += ["-device", "virtio-rng-pci", "-chardev", f"file,id=console,path={console_log},append=on"]
    return [*command, "-serial", "chardev:console"]


@cache
def kvm_works(disk: Path) -> bool:
    """Return whether a kernel starts under KVM within a time limit. The existence of /dev/kvm does not prove it.

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
            # Without a root file system the kernel panics and QEMU ends.
            subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, env=clean_environment()
            )
        except subprocess.TimeoutExpired:
            return False
        return console.exists() and "Linux version" in console.read_text(errors="replace")


def firmware(part: str) -> Path:
    """Return OVMF's CODE or VARS file. Newer Debian versions only have the 4 MiB files."""
    found = [FIRMWARE / f"OVMF_{part}{size}.fd" for size in ("_4M", "")]
    return next((path for path in found if path.exists()), found[0])
