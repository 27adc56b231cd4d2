"""Prerequisites of the lab on this computer: check them, and install what apt can install."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from minipc.core.errors import MissingPrerequisiteError
from minipc.core.process import succeeds
from minipc.images import prerequisites

# Program → Debian package.
PROGRAMS = {
    **prerequisites.ROOT_PROGRAMS,
    "curl": "curl",  # curl and nmap: verification, as a client of the machine
    "ip": "iproute2",
    "nft": "nftables",
    "nmap": "nmap",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "systemd-nspawn": "systemd-container",
    "wg": "wireguard-tools",
    "wireguard-go": "wireguard-go",  # for kernels without WireGuard
}
QEMU_PROGRAMS = {
    **prerequisites.DISK_PROGRAMS,
    "ping": "iputils-ping",
    "qemu-system-x86_64": "qemu-system-x86",
}
FIRMWARE = {Path("/usr/share/OVMF"): "ovmf"}
CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_MKNOD = 12, 21, 27
OLDEST_KERNEL = (5, 19)  # overlay file systems on id-mapped layers


def ensure_prerequisites(*, install: bool, qemu: bool = False) -> None:
    """Check everything the lab needs. With `install`, install missing packages with apt.

    Args:
        qemu: also what disk images and the backend for QEMU need.

    Raises MissingPrerequisiteError that names all that is missing.
    """
    lacking = missing_support()
    packages = missing_packages(qemu=qemu)
    if packages and install and not lacking and shutil.which("apt-get"):
        prerequisites.install(packages)
        packages = missing_packages(qemu=qemu)
    if lacking or packages:
        named = lacking + [f"package {name}" for name in packages]
        steps = [f"apt-get install {' '.join(packages)}"] if packages else []
        if os.geteuid() != 0:
            steps.insert(0, "run as root")
        raise MissingPrerequisiteError(
            f"the lab needs what this computer lacks: {'; '.join(named)}",
            f"{' and '.join(steps) or 'use a computer with that support'}; or `minipc rehearse --on HOST`",
        )


def missing_packages(*, qemu: bool = False) -> list[str]:
    """Return the Debian packages of the programs and keys that are not on this computer."""
    programs = PROGRAMS | (QEMU_PROGRAMS if qemu else {})
    return prerequisites.missing_packages(programs, prerequisites.ARCHIVE_KEYS | (FIRMWARE if qemu else {}))


def missing_support() -> list[str]:
    """Return the missing privileges and kernel features, which no package provides."""
    lacking = []
    if os.geteuid() != 0:
        lacking.append("root")
    elif not _has_capabilities(CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_MKNOD):
        lacking.append("the capabilities NET_ADMIN, SYS_ADMIN and MKNOD (an unprivileged container can't host the lab)")
    release = os.uname().release
    if _kernel_version(release) < OLDEST_KERNEL:
        lacking.append(f"Linux 5.19 or newer (this is {release})")
    if not _kernel_has_filesystem("overlay"):
        lacking.append("the kernel's overlay file system")
    if not Path("/dev/loop-control").exists() and not succeeds("modprobe", "loop"):
        lacking.append("loop devices (/dev/loop-control)")
    if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        lacking.append("user namespaces (sysctl user.max_user_namespaces is 0)")
    if not Path("/proc/sys/net/ipv6").exists():
        lacking.append("IPv6 in the kernel")
    return lacking


def _has_capabilities(*numbers: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    return all(effective >> number & 1 for number in numbers)


def _kernel_version(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(minor)


def _kernel_has_filesystem(name: str) -> bool:
    def listed() -> bool:
        return any(line.split()[-1] == name for line in Path("/proc/filesystems").read_text().splitlines())

    return listed() or (succeeds("modprobe", name) and listed())
