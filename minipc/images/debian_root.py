"""Debian 13 root file systems made by mmdebstrap, and the base image: like a fresh server installation with SSH.

It is cached under a hash of everything it is made from, never changed afterwards, and shared read-only by all machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from minipc.core import files
from minipc.core.errors import MinipcError, MissingPrerequisiteError
from minipc.core.paths import cache_dir
from minipc.core.process import call, clean_environment, say
from minipc.images.apt_sources import KEYRING, Mirrors, controller_mirrors, render_deb822

SUITE = "trixie"
BUILD_TIMEOUT_S = 1800
"""Longest wait for a build in another process, seconds."""

# A Debian server installed without a task but "SSH server": packages of priority required and important
# that are useful in a container. Without kernel, boot loader, firmware and udev, because there is no hardware.
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "logrotate",
    "netbase",
    "nftables",
    "openssh-server",
    "procps",
    "systemd",
    "systemd-sysv",
    "tzdata",
)

OPTIONS = ("--mode=root", "--variant=minbase", "--skip=cleanup/apt/lists")

# Run with the new root as $1. It removes every identity: each machine gets a separate one before it boots.
CUSTOMISE = """\
#!/bin/sh
set -eu
chroot "$1" env --unset=APT_CONFIG apt-get --quiet --quiet --option=Acquire::Languages=en update
cd "$1"
rm -f etc/ssh/ssh_host_* etc/hostname etc/resolv.conf var/lib/dbus/machine-id etc/apt/sources.list
: > etc/machine-id
echo LANG=C.UTF-8 > etc/default/locale
echo 'APT::Keep-Downloaded-Packages "true";' > etc/apt/apt.conf.d/20keep-downloads
systemctl --root="$1" --quiet enable systemd-networkd.service
systemctl --root="$1" --quiet mask console-getty.service
: > etc/.updated
: > var/.updated
touch --reference=usr etc/.updated var/.updated
"""


def ensure() -> Path:
    """Return the directory of the base image. Build it if it is not in the cache (half a minute; needs root).

    Raise MinipcError with the end of mmdebstrap's output if the build fails.
    """
    mirrors = controller_mirrors()
    architecture = call("dpkg", "--print-architecture").strip()
    image = cache_dir("images") / inputs_hash(mirrors, architecture=architecture)
    with lock():
        if not image.exists():
            _build(image, mirrors)
    return image


def remove_partial() -> None:
    """Remove what a build that was killed left in the cache."""
    with lock():
        for leftover in (*cache_dir("images").glob(".build-*"), *cache_dir("disk-images").glob(".build-*")):
            shutil.rmtree(leftover)


def inputs_hash(mirrors: Mirrors, *, architecture: str) -> str:
    """Return 16 hexadecimal digits that change if any input of the image changes."""
    inputs = [SUITE, PACKAGES, OPTIONS, CUSTOMISE, render_deb822(mirrors, SUITE), apt_proxy_conf(mirrors), architecture]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def apt_proxy_conf(mirrors: Mirrors) -> str:
    return f'Acquire::http::Proxy "{mirrors.proxy}";\n' if mirrors.proxy else ""


def lock() -> AbstractContextManager[None]:
    """Hold the lock of all images, so that two builds do not meet."""
    return files.lock(cache_dir("images"), wait_s=BUILD_TIMEOUT_S)


def _build(image: Path, mirrors: Mirrors) -> None:
    """Build under a temporary name, then rename. A build that was killed leaves nothing mounted or running."""
    work = image.parent / f".build-{image.name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    started = time.monotonic()
    say(f"lab: building the base image: {SUITE} from {mirrors.main} with {', '.join(PACKAGES)}")
    root = work / "root"
    bootstrap(root, work, mirrors, packages=PACKAGES, customise=CUSTOMISE)
    call("sync", "--file-system", str(root))
    root.rename(image)
    shutil.rmtree(work)
    say(f"lab: base image ready after {time.monotonic() - started:.0f} s: {image}")


def bootstrap(
    root: Path,
    work: Path,
    mirrors: Mirrors,
    *,
    packages: Iterable[str],
    customise: str,
    options: Sequence[str] = OPTIONS,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Build a Debian root file system. A build that is killed leaves nothing mounted or running.

    Args:
        root: the directory to make, or with `--format=tar` the file.
        work: directory for temporary files; the `log` stays there.
        customise: script that runs with the new root as its first argument.
        options: of mmdebstrap.
        environment: additional variables.

    Raises:
        MissingPrerequisiteError: not root, or mmdebstrap is not installed.
        MinipcError: the build failed; contains the end of mmdebstrap's output.
    """
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        raise MissingPrerequisiteError(
            "mmdebstrap builds the image, and it needs root", "apt-get install mmdebstrap, then run as root"
        )
    hook, sources, log = work / "customise", work / "debian.sources", work / "log"
    hook.write_text(customise)
    hook.chmod(0o755)
    sources.write_text(render_deb822(mirrors, SUITE))
    (work / "20proxy").write_text(apt_proxy_conf(mirrors))
    with log.open("w") as output:
        done = subprocess.run(
            [
                *("setpriv", "--pdeathsig", "KILL", "--"),
                *("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("mmdebstrap", *options, f"--include={','.join(packages)}", f"--keyring={KEYRING}"),
                *([f"--aptopt={apt_proxy_conf(mirrors).strip()}"] if mirrors.proxy else []),
                f"--customize-hook=copy-in {sources} /etc/apt/sources.list.d",
                f'--customize-hook=rm "$1/etc/apt/sources.list.d/0000{sources.name}"',
                *([f"--customize-hook=copy-in {work / '20proxy'} /etc/apt/apt.conf.d"] if mirrors.proxy else []),
                f"--customize-hook={hook}",
                *(SUITE, str(root), str(sources)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=clean_environment() | dict(environment or {}),
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise MinipcError(
            f"mmdebstrap failed ({done.returncode}):\n{tail}", f"see {log}; check the mirror {mirrors.main}"
        )
