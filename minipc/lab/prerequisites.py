"""What the controller must have for the nspawn lab, and installing what apt can install."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from minipc.errors import MissingPrerequisiteError
from minipc.lab.shell import clean_environment, say, succeeds

# program → Debian package
PROGRAMS = {
    "curl": "curl",  # curl and nmap: the verification, as a client of the machine
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nft": "nftables",
    "nmap": "nmap",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
    "wg": "wireguard-tools",
    "wireguard-go": "wireguard-go",  # for kernels without WireGuard
}
QEMU_PROGRAMS = {
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "ping": "iputils-ping",
    "qemu-system-x86_64": "qemu-system-x86",
    "sfdisk": "fdisk",
}
FIRMWARE = Path("/usr/share/OVMF")
# Debian 13's archive keys; Debian 12 has them since 12.11 (debian-archive-keyring 2023.3+deb12u2).
ARCHIVE_KEYS = {
    Path("/usr/share/keyrings/debian-archive-trixie-stable.gpg"): "debian-archive-keyring",
    Path("/usr/share/keyrings/debian-archive-trixie-security-automatic.gpg"): "debian-archive-keyring",
}
CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_MKNOD = 12, 21, 27
OLDEST_KERNEL = (5, 19)  # overlay file systems on id-mapped layers


def ensure_prerequisites(*, install: bool, qemu: bool = False) -> None:
    """Check everything the lab needs; with `install`, let apt install what is missing and say so.

    Args:
        qemu: also what disk images and the backend for QEMU need.

    Raises MissingPrerequisiteError that names all that is missing.
    """
    lacking = missing_support()
    packages = missing_packages(qemu=qemu)
    if packages and install and not lacking and shutil.which("apt-get"):
        _install(packages)
        packages = missing_packages(qemu=qemu)
    if lacking or packages:
        named = lacking + [f"package {name}" for name in packages]
        steps = [f"apt-get install {' '.join(packages)}"] if packages else []
        if os.geteuid() != 0:
            steps.insert(0, "run as root")
        raise MissingPrerequisiteError(
            f"the lab needs what this controller lacks: {'; '.join(named)}",
            " and ".join(steps) or "use a controller with that support",
        )


def missing_packages(*, qemu: bool = False) -> list[str]:
    """Debian packages of the programs and keys that are not there."""
    path = clean_environment()["PATH"]
    programs = PROGRAMS | (QEMU_PROGRAMS if qemu else {})
    absent = {package for program, package in programs.items() if not shutil.which(program, path=path)}
    absent |= {package for key, package in ARCHIVE_KEYS.items() if not key.exists()}
    if qemu and not FIRMWARE.exists():
        absent.add("ovmf")
    return sorted(absent)


def missing_support() -> list[str]:
    """Privileges and kernel features that no package brings."""
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


def _install(packages: list[str]) -> None:
    say(f"lab: installing with apt: {' '.join(packages)}")
    environment = {**clean_environment(), "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=120", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode != 0:
            raise MissingPrerequisiteError(
                f"apt-get {arguments[0]} failed: {done.stderr.strip()[-500:]}",
                f"apt-get install {' '.join(packages)}",
            )


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
