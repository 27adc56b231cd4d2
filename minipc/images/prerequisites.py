"""Programs that the controller needs, the Debian packages they are in, and their installation with apt."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from minipc.core.errors import MissingPrerequisiteError
from minipc.core.process import clean_environment, say

# Program → Debian package.
ROOT_PROGRAMS = {
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "unshare": "util-linux",
}
DISK_PROGRAMS = {
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "sfdisk": "fdisk",
}
CONTAINER_PROGRAMS = {"skopeo": "skopeo"}
BUILD_PROGRAMS = {"buildah": "buildah", **ROOT_PROGRAMS}
RUN_PROGRAMS = {"podman": "podman", "nsenter": "util-linux"}
# Debian 13's archive keys; Debian 12 has them since 12.11 (debian-archive-keyring 2023.3+deb12u2).
ARCHIVE_KEYS = {
    Path("/usr/share/keyrings/debian-archive-trixie-stable.gpg"): "debian-archive-keyring",
    Path("/usr/share/keyrings/debian-archive-trixie-security-automatic.gpg"): "debian-archive-keyring",
}


def ensure_image_tools(*, encrypted: bool = False) -> None:
    """Install what building a disk image needs.

    Raises:
        MissingPrerequisiteError: this user is not root, or apt failed.
    """
    if os.geteuid() != 0:
        raise MissingPrerequisiteError("building a disk image needs root", "run the same command as root")
    encryption = {"cryptsetup": "cryptsetup-bin"} if encrypted else {}
    install(missing_packages(ROOT_PROGRAMS | DISK_PROGRAMS | encryption, ARCHIVE_KEYS))


def ensure_container_tools(*, build: bool = False) -> None:
    """Install what reading an image's archive needs, and with `build` what building an image needs.

    Raises:
        MissingPrerequisiteError: something is missing or a build was asked for, and this user is not root; or apt
            failed.
    """
    lacking = missing_packages(CONTAINER_PROGRAMS | (BUILD_PROGRAMS if build else {}), ARCHIVE_KEYS if build else {})
    if os.geteuid() != 0 and (lacking or build):
        what = f"needs {' '.join(lacking)}" if lacking else "needs root"
        raise MissingPrerequisiteError(f"a container image {what}", "run the same command as root")
    install(lacking)


def ensure_container_runtime() -> str:
    """Install what running a container needs, and return the OCI runtime to use.

    Raises:
        MissingPrerequisiteError: this user is not root, or apt failed.
    """
    # crun refuses the first version of control groups, which is mounted on some older computers.
    runtime = "crun" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "runc"
    if os.geteuid() != 0:
        raise MissingPrerequisiteError("running a container needs root", "run the same command as root")
    install(missing_packages({**RUN_PROGRAMS, runtime: runtime}, {}))
    return runtime


def ensure_postgres_client() -> None:
    """Install pg_dump. Raises MissingPrerequisiteError if this user is not root, or apt failed."""
    lacking = missing_packages({"pg_dump": "postgresql-client"}, {})
    if lacking and os.geteuid() != 0:
        raise MissingPrerequisiteError("pg_dump is not installed", f"apt-get install {' '.join(lacking)}")
    install(lacking)


def missing_packages(programs: Mapping[str, str], files: Mapping[Path, str]) -> list[str]:
    """Return the Debian packages of the programs and files that are not on this computer, sorted."""
    path = clean_environment()["PATH"]
    absent = {package for program, package in programs.items() if not shutil.which(program, path=path)}
    absent |= {package for file, package in files.items() if not file.exists()}
    return sorted(absent)


def install(packages: Sequence[str]) -> None:
    """Install Debian packages with apt. Raises MissingPrerequisiteError if apt fails."""
    if not packages:
        return
    say(f"installing with apt: {' '.join(packages)}")
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
