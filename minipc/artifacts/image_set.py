"""Save container images from their registries into one archive: an OCI layout in a tar, which containerd imports.

The same images give the same bytes, so the archive has a hash that can be locked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minipc.artifacts.errors import UnobtainableError
from minipc.core.process import clean_environment, network_environment

TIMEOUT_S = 900.0  # for one image


def named_in(manifest: str) -> list[str]:
    """Return the images that Kubernetes manifests name, sorted, each once."""
    return sorted(set(re.findall(r"""^[ -]*image: ["']?([^\s"'#]+)""", manifest, re.MULTILINE)))


def save(images: Sequence[str], arch: str, target: Path) -> None:
    """Write the images for one architecture into a new archive.

    Args:
        images: names with a tag or a digest, which become the names in the archive.
        arch: as Debian names it.

    Raises:
        UnobtainableError: there is no image, skopeo is not installed, or an image cannot be pulled.
    """
    if not images:
        raise UnobtainableError("the manifest names no image")
    program = shutil.which("skopeo", path=clean_environment()["PATH"])
    if program is None:
        raise UnobtainableError("skopeo is not installed, which saves images: apt-get install skopeo")
    with tempfile.TemporaryDirectory(prefix="images-", dir=target.parent) as folder:
        layout = Path(folder, "layout")
        for image in images:
            _copy(program, image, arch, layout)
        with tarfile.open(target, "w") as tar:
            for path in sorted(each for each in layout.rglob("*") if each.is_file()):
                tar.add(path, str(path.relative_to(layout)), filter=_without_owner)


def _copy(program: str, image: str, arch: str, layout: Path) -> None:
    argv = [program, "--insecure-policy", "--override-os", "linux", "--override-arch", arch, "copy", "--quiet"]
    argv += [f"docker://{image}", f"oci:{layout}:{image}"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=TIMEOUT_S, env=network_environment(), stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UnobtainableError(f"{image}: not pulled within {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnobtainableError(f"{image} cannot be pulled: {last[-300:]}")


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
