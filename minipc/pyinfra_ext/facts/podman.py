"""Images and parts of services under podman, where the machine has it."""

from __future__ import annotations

from pyinfra.api import FactBase

from minipc.services.images import ServiceImage
from minipc.services.manifests import Image

SERVICES = "/etc/minipc/services"
"""Folder with one folder for each service, and in it one manifest PART.yaml for each part that runs under podman."""
IMAGES = "localhost/minipc"
"""Prefix of the names that loaded images get: IMAGES/SERVICE:TAG."""


def loaded(image: ServiceImage) -> Image:
    """Return an image under the name that it has on the machine."""
    tag = image.digest.removeprefix("sha256:")[:12]
    return Image(f"{IMAGES}/{image.name}:{tag}", image.revision, image.digest)


class PodmanImages(FactBase[list[str]]):
    """Names and tags of the loaded images of services; empty without podman."""

    def command(self) -> str:
        names = "podman images --format '{{.Repository}}:{{.Tag}}' --filter 'reference=" + IMAGES + "/*' 2>/dev/null"
        return f"command -v podman >/dev/null && {names} || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line.strip() for line in output if line.startswith(IMAGES)]


class PlacedParts(FactBase[list[tuple[str, str]]]):
    """Service and part of each manifest on the machine."""

    def command(self) -> str:
        return f"find {SERVICES} -mindepth 2 -maxdepth 2 -name '*.yaml' -printf '%P\\n' 2>/dev/null || true"

    @staticmethod
    def default() -> list[tuple[str, str]]:
        return []

    def process(self, output: list[str]) -> list[tuple[str, str]]:
        paths = (line.strip().removesuffix(".yaml").partition("/") for line in output if "/" in line)
        return sorted((service, part) for service, _, part in paths)


class EarlierUnits(FactBase[list[str]]):
    """Units of the service as minipc 0.2 ran it without K3s: as files of this repository, under systemd."""

    def command(self) -> str:
        return "cd /etc/systemd/system && ls workload-*.service 2>/dev/null || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line.strip() for line in output if line.strip().endswith(".service")]
