"""The base image: a Debian 13 root file system like a fresh server installation with SSH, made by mmdebstrap.

It is cached under a hash of everything it is made from, never changed afterwards, and shared read-only by all machines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minipc.errors import MinipcError
from minipc.lab.apt_sources import KEYRING, Mirrors, controller_mirrors, render_deb822
from minipc.lab.shell import call, clean_environment, say
from minipc.paths import cache_dir

SUITE = "trixie"

# A Debian server installed without a task but "SSH server": packages of priority required and important
# that a container has a use for. Kernel, boot loader, firmware and udev are left out: there is no hardware.
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

# Run with the new root as $1. No identity is left in it: every machine gets its own before it boots.
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
    """The directory of the base image; built when it is not in the cache, in half a minute. Needs root.

    Raises MinipcError with the end of mmdebstrap's output when the build fails.
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
    """16 hexadecimal digits that change when anything the image is made from changes."""
    inputs = [SUITE, PACKAGES, OPTIONS, CUSTOMISE, render_deb822(mirrors, SUITE), apt_proxy_conf(mirrors), architecture]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def apt_proxy_conf(mirrors: Mirrors) -> str:
    return f'Acquire::http::Proxy "{mirrors.proxy}";\n' if mirrors.proxy else ""


@contextmanager
def lock() -> Iterator[None]:
    with (cache_dir("images") / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def bootstrap(root: Path, work: Path, mirrors: Mirrors, *, packages: Iterable[str], customise: str) -> None:
    """A Debian root file system in a directory.

    Args:
        root: made by this.
        work: for what the build needs beside it; its `log` stays.
        customise: a script, run with the new root as its first argument.

    Raises:
        MinipcError: with the end of mmdebstrap's output.
    """
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
                *("mmdebstrap", *OPTIONS, f"--include={','.join(packages)}", f"--keyring={KEYRING}"),
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
            env=clean_environment(),
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise MinipcError(
            f"mmdebstrap failed ({done.returncode}):\n{tail}", f"see {log}; check the mirror {mirrors.main}"
        )
