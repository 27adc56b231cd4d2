"""Images of services whose archives are on the machine."""

from __future__ import annotations

import re
import shlex

from pyinfra.api import FactBase

from minipc.pyinfra_ext.facts.k3s import PROGRAM
from minipc.services.images import ON_MACHINE

K3S_IMAGES = "/var/lib/rancher/k3s/agent/images"
"""K3s imports the files in this folder when it starts and when one changes."""
_LINE = re.compile(r"([a-z0-9-]+)/released ([0-9a-f]{64})")


class ImageFolders(FactBase[list[str]]):
    """Names of the services of which the machine has archives of images."""

    def command(self) -> str:
        return (
            f"{{ ls {ON_MACHINE}; ls {K3S_IMAGES} | sed -n 's/^service-\\(.*\\)\\.tar$/\\1/p'; }} 2>/dev/null || true"
        )

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return sorted({line.strip() for line in output if line.strip()})


NAMES = """\
import json, sys, tarfile
for path in sys.argv[1:]:
    archive = tarfile.open(path)
    read = lambda name: json.load(archive.extractfile(name))
    if "manifest.json" in archive.getnames():
        names = [tag for image in read("manifest.json") for tag in image["RepoTags"]]
    else:
        names = [each["annotations"]["org.opencontainers.image.ref.name"] for each in read("index.json")["manifests"]]
    print(*names, sep="\\n")
"""
"""Program for Python: it prints the names of the images in the archives that are its arguments."""


class ArchivesNotImported(FactBase[list[str]]):
    """Archives in K3s's folder with an image that containerd does not have; none if containerd does not answer.

    K3s imports an archive only if it changed. K3s's own images are in a compressed archive, and are not compared.
    """

    def command(self) -> str:
        return (
            f"there=$({PROGRAM} ctr -n k8s.io images ls -q 2>/dev/null) && for file in {K3S_IMAGES}/*.tar; do "
            f'for name in $(python3 -c {shlex.quote(NAMES)} "$file" 2>/dev/null); do '
            'printf "%s\\n" "$there" | grep -qxF -- "$name" || { echo "$file"; break; }; done; done; true'
        )

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line.strip() for line in output if line.startswith(K3S_IMAGES)]


class ReleasedImages(FactBase[dict[str, str]]):
    """Digest of the image that was released last, by service; only of those whose archive is on the machine."""

    def command(self) -> str:
        print_each = 'for each in */released; do echo "$each $(head -n 1 "$each")"; done'
        return f"cd {ON_MACHINE} 2>/dev/null && {print_each} 2>/dev/null || true"

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        found = (_LINE.fullmatch(line.strip()) for line in output)
        return {each[1]: f"sha256:{each[2]}" for each in found if each}
