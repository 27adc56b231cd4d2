"""The workload's image: Debian packages below, the code of one commit above. No registry, no Dockerfile, no daemon.

Two layers. The lower one is a small Debian 13 root made by mmdebstrap from workload/packages.txt (a minute, kept in
the cache); the upper one is the code (a moment). Same packages and same commit: same digest.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from minipc import artifacts
from minipc.errors import MinipcError, MissingPrerequisiteError
from minipc.lab.apt_sources import KEYRING, Mirrors, controller_mirrors, render_deb822
from minipc.lab.image import SUITE
from minipc.lab.shell import call, clean_environment, say
from minipc.paths import ROOT, cache_dir
from minipc.workload import oci

if TYPE_CHECKING:
    from minipc.artifacts.download import Downloader

ARTIFACT = "workload-image"
NAME = "minipc.local/workload"
SOURCE = ROOT / "workload"
SUFFIXES = {".py", ".sql", ".mako"}
# Beyond the range of Debian's system users; the manifests name the same number.
UID = 10001
# Files newer than this get this time: the day Debian 13 was released. Any fixed day would do.
EPOCH = 1754697600

# Run with the new root as $1. What is left differs from build to build, or is of no use in an image.
CUSTOMISE = f"""\
#!/bin/sh
set -eu
cd "$1"
echo 'workload:x:{UID}:{UID}:workload:/nonexistent:/usr/sbin/nologin' >> etc/passwd
echo 'workload:x:{UID}:' >> etc/group
rm -rf var/log/* etc/apt/sources.list.d/* etc/machine-id var/cache/ldconfig/* var/cache/debconf/*
rm -f etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/resolv.conf etc/hostname var/lib/dpkg/*-old
find . -xdev -name __pycache__ -prune -exec rm -r {{}} +
# Compiled here, once: the root is read-only where it runs. By hash of the source, not by its time.
chroot . env PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3*
"""
OPTIONS = (
    "--mode=root",
    "--variant=essential",
    "--format=tar",
    "--skip=output/dev",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/lintian/*",
)
HEALTHCHECK = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/api/livez', timeout=2)"


@dataclass(frozen=True)
class Source:
    """The code that goes into an image.

    Attributes:
        tag: the commit, 40 hexadecimal digits; with uncommitted changes `-` and 12 digits of a hash of the code.
        commit: the last commit that touched the code, or "unknown" outside a git checkout.
        time: when that commit was made, seconds since 1970.
        files: absolute path in the image and content, sorted.
    """

    tag: str
    commit: str
    time: int
    files: tuple[oci.File, ...]

    @property
    def reference(self) -> str:
        """Name and tag of the image."""
        return f"{NAME}:{self.tag}"


def source(directory: Path = SOURCE) -> Source:
    """The code as it is in a working tree."""
    paths = sorted(path for path in (directory / "minipc_workload").rglob("*") if path.suffix in SUFFIXES)
    files = tuple(oci.File(f"/opt/workload/{path.relative_to(directory)}", path.read_bytes()) for path in paths)
    try:
        git = ["git", "-C", str(directory)]
        commit, time = _output([*git, "log", "-1", "--format=%H %ct", "--", "."]).split()
        dirty = bool(_output([*git, "status", "--porcelain", "--", "."]))
    except (OSError, subprocess.SubprocessError, ValueError):
        commit, time, dirty = "unknown", str(EPOCH), True
    tag = f"{commit}-{_hash([[file.path, file.content.hex()] for file in files])[:12]}" if dirty else commit
    return Source(tag, commit, int(time), files)


def ensure(directory: Path = SOURCE, *, fresh: bool = False) -> artifacts.Artifact:
    """The image of the code as it is now, in the artifact cache; built when it isn't there. Building needs root.

    Args:
        directory: the working tree's `workload/`.
        fresh: build the packages' layer anew, for Debian's security updates.

    Returns:
        The artifact; its `version` is the image's tag.

    Raises:
        MinipcError: the build failed.
    """
    code, arch = source(directory), artifacts.own_arch()
    found = artifacts.resolve(ARTIFACT, arch, fetch=False)
    if not fresh and found.path and found.version == code.tag:
        return found
    with tempfile.TemporaryDirectory(dir=cache_dir("workload")) as scratch:
        archive = Path(scratch) / f"workload-{code.tag}.tar"
        build(code, archive, fresh=fresh)
        return artifacts.default_store(_never).add(ARTIFACT, archive, arch, version=code.tag)


def build(code: Source, output: Path, *, fresh: bool = False) -> oci.Image:
    """Writes the image of this code to `output`.

    Raises:
        MinipcError: the packages' layer could not be built.
    """
    below = base(fresh=fresh)
    with tempfile.TemporaryDirectory(dir=cache_dir("workload")) as scratch:
        above = Path(scratch) / "code.tar"
        above.write_bytes(oci.layer(code.files, code.time))
        created = datetime.datetime.fromtimestamp(code.time, datetime.UTC).isoformat().replace("+00:00", "Z")
        return oci.write(
            output,
            reference=code.reference,
            architecture=cast(Literal["amd64", "arm64"], artifacts.own_arch()),
            created=created,
            config=_config(code, created),
            layers=[(below, "Debian packages of workload/packages.txt"), (above, f"workload at {code.tag}")],
        )


def _config(code: Source, created: str) -> dict[str, object]:
    return {
        "User": f"{UID}:{UID}",
        "WorkingDir": "/opt/workload",
        "Env": [
            "PATH=/usr/bin:/bin",
            "LANG=C.UTF-8",
            "PYTHONPATH=/opt/workload",
            "PYTHONDONTWRITEBYTECODE=1",
            "API_HOST=0.0.0.0",
            "API_PORT=8000",
            "METRICS_HOST=0.0.0.0",
            f"VERSION={code.tag}",
        ],
        "Entrypoint": ["python3", "-m", "minipc_workload"],
        "Cmd": ["api"],
        "ExposedPorts": {"8000/tcp": {}},
        # For docker and podman; Kubernetes has probes of its own.
        "Healthcheck": {
            "Test": ["CMD", "python3", "-c", HEALTHCHECK],
            "Interval": 10_000_000_000,
            "Timeout": 3_000_000_000,
            "Retries": 3,
        },
        "Labels": {
            "org.opencontainers.image.title": "workload",
            "org.opencontainers.image.revision": code.commit,
            "org.opencontainers.image.version": code.tag,
            "org.opencontainers.image.created": created,
        },
    }


def base(*, fresh: bool = False) -> Path:
    """The packages' layer, an uncompressed tar in the cache; built when it is not there. Needs root.

    Raises:
        MissingPrerequisiteError: not root, or mmdebstrap is missing.
        MinipcError: the build failed.
    """
    mirrors = controller_mirrors()
    packages = (SOURCE / "packages.txt").read_text(encoding="utf-8").split()
    inputs = [SUITE, packages, OPTIONS, CUSTOMISE, EPOCH, render_deb822(mirrors, SUITE), artifacts.own_arch()]
    path = cache_dir("workload") / f"base-{_hash(inputs)[:16]}.tar"
    with _lock():
        if fresh or not path.exists():
            _bootstrap(path, packages, mirrors)
    return path


def _bootstrap(path: Path, packages: list[str], mirrors: Mirrors) -> None:
    """Builds under a temporary name, then renames. A build that was killed leaves nothing mounted or running."""
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        raise MissingPrerequisiteError(
            "the workload's image is made by mmdebstrap, as root", "apt-get install mmdebstrap, then run as root"
        )
    say(f"workload: building the packages' layer: {SUITE} from {mirrors.main}")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        work = Path(scratch)
        hook, sources, output, log = work / "customise", work / "debian.sources", work / "base.tar", work / "log"
        hook.write_text(CUSTOMISE)
        hook.chmod(0o755)
        sources.write_text(render_deb822(mirrors, SUITE))
        with log.open("w") as written:
            done = subprocess.run(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    *("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"),
                    *("--mount-proc", "mmdebstrap", *OPTIONS),
                    *(f"--include={','.join(packages)}", f"--keyring={KEYRING}"),
                    *([f'--aptopt=Acquire::http::Proxy "{mirrors.proxy}"'] if mirrors.proxy else []),
                    f"--customize-hook={hook}",
                    *(SUITE, str(output), str(sources)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                env=clean_environment() | {"SOURCE_DATE_EPOCH": str(EPOCH)},
            )
        if done.returncode:
            tail = "\n".join(log.read_text().splitlines()[-15:])
            raise MinipcError(f"mmdebstrap failed ({done.returncode}):\n{tail}", f"check the mirror {mirrors.main}")
        call("sync", "--file-system", str(output))
        output.rename(path)


@contextmanager
def _lock() -> Iterator[None]:
    with (cache_dir("workload") / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _never() -> Downloader:
    raise AssertionError("nothing of this is downloaded")
