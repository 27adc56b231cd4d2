"""Build a service's image with buildah from the Containerfile in the folder that its service file names.

The base image `localhost/debian:13` is made here from Debian packages, so that nothing needs a registry of images. A
build reaches the network as this computer does: its Debian mirror, and its configuration of pip and npm, are mounted
while the build runs and are not part of the image.
"""

from __future__ import annotations

import configparser
import fnmatch
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minipc import artifacts
from minipc.config.service import Service
from minipc.core import files
from minipc.core.errors import ConfigError, MinipcError
from minipc.core.paths import cache_dir
from minipc.core.process import call, clean_environment, say, succeeds
from minipc.images.apt_sources import controller_mirrors, render_deb822
from minipc.images.debian_root import SUITE, apt_proxy_conf, bootstrap

CONTAINERFILE = "Containerfile"
BASE = "localhost/debian:13"
PACKAGES = ("ca-certificates", "tzdata")
OPTIONS = (
    "--mode=root",
    "--variant=apt",
    "--format=tar",
    "--skip=output/dev",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/lintian/*",
)
# Runs with the new root as $1. Removes what a container has no use for, and which mirror it came from.
CUSTOMISE = """\
#!/bin/sh
set -eu
cd "$1"
rm -rf var/log/* var/lib/apt/lists/* etc/apt/sources.list etc/apt/sources.list.d/* etc/apt/apt.conf.d/20proxy
rm -rf etc/machine-id var/cache/ldconfig/* var/cache/debconf/*
rm -f etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/resolv.conf etc/hostname var/lib/dpkg/*-old
"""
# Files of the base image that are newer get this time: the day Debian 13 was released. Any fixed day would do.
EPOCH = 1754697600
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Where the files that a build uses are in the container while it runs.
_MOUNTED_CA = "/run/minipc-build/ca-certificates.crt"
_ALWAYS_IGNORED = ("__pycache__", "*.pyc", ".git", ".containerignore", "node_modules")
_TIME_LIMIT_S = 1800.0


@dataclass(frozen=True)
class Source:
    """What an image is built from.

    Attributes:
        folder: with the Containerfile.
        tag: the commit, 40 hexadecimal digits; with uncommitted changes, `-` and 12 digits of a hash of the content;
            outside a git checkout, only those.
        time: when that commit was made, seconds since 1970.
        inputs: hash of the content and of what the base image is made from.
    """

    folder: Path
    tag: str
    time: int
    inputs: str


def source(service: Service) -> Source:
    """Return what the service's image would be built from now.

    Raises:
        ConfigError: the folder has no Containerfile.
    """
    folder = (Path(service.folder) / (service.build or ".")).resolve()
    if not (folder / CONTAINERFILE).is_file():
        raise ConfigError(
            f"{service.name}.yaml: build: {folder} has no {CONTAINERFILE}",
            "write one; docs/howto/your-own-service.md shows an example",
        )
    content = hashlib.sha256()
    for path in _context(folder):
        mode = path.stat().st_mode & 0o111
        content.update(f"{path.relative_to(folder)}\0{mode}\0{files.sha256_of(path)}\n".encode())
    digest = content.hexdigest()
    inputs = hashlib.sha256(f"{digest} {_base_inputs()} {service.image}".encode()).hexdigest()
    try:
        excluded = [f":(exclude){pattern}" for pattern in _ignored(folder)]
        git, paths = ("git", "-C", str(folder)), ("--", ".", *excluded)
        commit, time = _output(*git, "log", "-1", "--format=%H %ct", *paths).split()
        changed = bool(_output(*git, "status", "--porcelain", *paths))
        return Source(folder, f"{commit}-{digest[:12]}" if changed else commit, int(time), inputs)
    except (OSError, subprocess.SubprocessError, ValueError):
        return Source(folder, digest[:12], EPOCH, inputs)


def build(service: Service, made_from: Source, archive: Path, *, fresh: bool = False) -> None:
    """Build the image and write it as an OCI archive. Needs root.

    Args:
        fresh: use no earlier layer, and make the base image again.

    Raises:
        MinipcError: the build failed; contains the end of buildah's output.
    """
    reference = f"{service.image}:{made_from.tag}"
    label = f"org.opencontainers.image.revision={made_from.tag}"
    build_folder(made_from.folder, reference, "--label", label, fresh=fresh)
    call(*_buildah("push", "--quiet", "--format", "oci", reference, f"oci-archive:{archive}:{reference}"), timeout=600)


def build_folder(folder: Path, reference: str, *options: str, fresh: bool = False) -> None:
    """Build the Containerfile of a folder into buildah's store. Needs root.

    Args:
        options: more options of `buildah build`.
        fresh: use no earlier layer, and make the base image again.

    Raises:
        MinipcError: the build failed; contains the end of buildah's output.
    """
    log = store() / f"{reference.rpartition('/')[2].partition(':')[0]}.log"
    with files.lock(store() / "lock", _TIME_LIMIT_S), _mounts() as mounts:
        _ensure_base(fresh=fresh)
        say(f"building {reference} from {folder}")
        with log.open("w") as output:
            done = subprocess.run(
                [
                    *_buildah("build", "--isolation", "chroot", "--network", "host", "--pull-never", "--format", "oci"),
                    *("--no-cache",) * fresh,
                    *("--layers", "--tag", reference, "--file", str(folder / CONTAINERFILE), *options),
                    *(part for each in mounts for part in ("--volume", each)),
                    *_ignore_file(folder),
                    str(folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=clean_environment(),
                timeout=_TIME_LIMIT_S,
            )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise MinipcError(f"the image {reference} could not be built:\n{tail}", f"see {log}")


def store() -> Path:
    """Return the folder with the store of buildah and podman, which may be deleted at any time."""
    return cache_dir("containers")


def _buildah(*arguments: str) -> list[str]:
    return ["buildah", "--root", str(store() / "storage"), "--runroot", str(store() / "run"), *arguments]


def _base_inputs() -> str:
    inputs = [SUITE, PACKAGES, OPTIONS, CUSTOMISE, EPOCH, artifacts.own_arch()]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _ensure_base(*, fresh: bool) -> None:
    """Make the base image if it is not in buildah's store.

    Raises:
        MinipcError: it could not be made.
    """
    named = f"{BASE}-{_base_inputs()}"
    if fresh or not succeeds(*_buildah("inspect", "--type", "image", named)):
        mirrors = controller_mirrors()
        say(f"building the base image {BASE}: {SUITE} from {mirrors.main}")
        with tempfile.TemporaryDirectory(dir=cache_dir("containers")) as scratch:
            root = Path(scratch) / "root.tar"
            bootstrap(
                root,
                Path(scratch),
                mirrors,
                packages=PACKAGES,
                customise=CUSTOMISE,
                options=OPTIONS,
                environment={"SOURCE_DATE_EPOCH": str(EPOCH)},
            )
            container = call(*_buildah("from", "--pull-never", "scratch")).strip()
            call(*_buildah("add", "--quiet", container, str(root), "/"), timeout=300)
            call(*_buildah("config", "--cmd", "bash", "--env", "LANG=C.UTF-8", container))
            call(*_buildah("commit", "--quiet", "--rm", "--timestamp", str(EPOCH), container, named), timeout=300)
    call(*_buildah("tag", named, BASE))


@contextmanager
def _mounts() -> Iterator[list[str]]:
    """Give what a build needs of this computer, as volumes of buildah; it is not in the image afterwards."""
    mirrors = controller_mirrors()
    with tempfile.TemporaryDirectory(dir=cache_dir("containers")) as scratch:
        folder = Path(scratch)
        made = {
            "/etc/apt/sources.list.d/debian.sources": render_deb822(mirrors, SUITE),
            "/etc/apt/apt.conf.d/20proxy": apt_proxy_conf(mirrors),
            "/etc/pip.conf": _pip_configuration(),
            "/root/.npmrc": _npm_configuration(),
        }
        mounts = [f"{CA_BUNDLE}:{_MOUNTED_CA}:ro"] if CA_BUNDLE.exists() else []
        for number, (place, text) in enumerate(made.items()):
            file = folder / str(number)
            file.write_text(text, encoding="utf-8")
            mounts.append(f"{file}:{place}:ro")
        yield [*mounts, f"{cache_dir('containers', 'debs')}:/var/cache/apt/archives"]


def _pip_configuration() -> str:
    """Return pip's settings of this computer: its files and PIP_ variables, with its certificates."""
    found = configparser.ConfigParser(interpolation=None)
    found.read(["/etc/pip.conf", Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"])
    if not found.has_section("global"):
        found.add_section("global")
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "PROXY", "DEFAULT_TIMEOUT"):
        if os.environ.get(f"PIP_{name}"):
            found["global"][name.lower().replace("_", "-")] = os.environ[f"PIP_{name}"]
    if CA_BUNDLE.exists():
        found["global"]["cert"] = _MOUNTED_CA
    return "".join(
        f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in found[section].items())
        for section in found.sections()
    )


def _npm_configuration() -> str:
    """Return npm's settings of this computer, with its certificates."""
    paths = [Path("/etc/npmrc"), Path.home() / ".npmrc"]
    text = "".join(path.read_text(encoding="utf-8").rstrip("\n") + "\n" for path in paths if path.exists())
    return text + (f"cafile={_MOUNTED_CA}\n" if CA_BUNDLE.exists() else "")


def _ignored(folder: Path) -> list[str]:
    """Return patterns of files that are not part of the build: those of .containerignore, and some of ours."""
    file = folder / ".containerignore"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [*_ALWAYS_IGNORED, *(line.strip().strip("/") for line in lines if line.strip() and line[0] != "#")]


def _ignore_file(folder: Path) -> list[str]:
    file = folder / ".containerignore"
    return ["--ignorefile", str(file)] if file.exists() else []


def _context(folder: Path) -> list[Path]:
    """Return the files of a build, sorted."""
    patterns = _ignored(folder)
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        names = [*inside.parts, *(str(each) for each in (inside, *inside.parents))]
        if path.is_file() and not any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns):
            found.append(path)
    return found


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
