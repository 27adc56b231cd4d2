"""Services under podman, where there is no K3s: their images, and the removal of what is not declared any more."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Generator, Sequence

from pyinfra import context
from pyinfra.api import StringCommand, operation

from minipc.pyinfra_ext.facts.images import K3S_IMAGES, ImageFolders, ReleasedImages
from minipc.pyinfra_ext.facts.memory import recall
from minipc.pyinfra_ext.facts.podman import IMAGES, SERVICES, EarlierUnits, PlacedParts, PodmanImages
from minipc.pyinfra_ext.facts.systemd import STAMPS
from minipc.services.images import ON_MACHINE, keep_script
from minipc_machine.drill import MANIFESTS

# catatonit is the pause container, aardvark-dns resolves the names of a service's processes for each other.
PACKAGES = ["podman", "crun", "netavark", "aardvark-dns", "catatonit", "nftables"]
QUADLETS, UNITS = "/etc/containers/systemd", "/etc/systemd/system"


@operation()
def image_loaded(archive: str, service: str, tag: str) -> Generator[StringCommand, None, None]:
    """Load an image under IMAGES/SERVICE:TAG, whatever the archive calls it. Earlier ones of that name are removed.

    Args:
        archive: path of an OCI or docker archive on the machine.
        tag: identifies the content.
    """
    wanted = f"{IMAGES}/{service}:{tag}"
    there = context.host.get_fact(PodmanImages)
    if wanted in there:
        return
    earlier = [each for each in there if each.startswith(f"{IMAGES}/{service}:")]
    lines = [
        "set -eu",
        f"loaded=$(podman load --quiet --input {shlex.quote(archive)} | sed -n 's/^Loaded image: //p' | tail -n 1)",
        f'podman tag "$loaded" {shlex.quote(wanted)}',
        # Containers that still run with it keep its layers.
        *(f"podman untag {shlex.quote(each)} {shlex.quote(each)}" for each in earlier),
        "podman image prune --force >/dev/null",
    ]
    yield StringCommand("sh", "-c", shlex.quote("\n".join(lines)))


@operation()
def image_kept(service: str, digest: str) -> Generator[StringCommand, None, None]:
    """Remember which image runs, so that backups contain its archive and the one before it.

    Args:
        digest: `sha256:…` of an image whose archive is on the machine.
    """
    if recall(ReleasedImages).get(service) != digest:
        yield StringCommand("sh", "-c", shlex.quote(keep_script(service, digest)))


@operation()
def images_removed(kept: Collection[str]) -> Generator[StringCommand, None, None]:
    """Remove the images of services that are not declared any more.

    Args:
        kept: names of the others.
    """
    for service in recall(ImageFolders):
        if service not in kept:
            quoted = shlex.quote(service)
            files = f"{ON_MACHINE}/{quoted} {K3S_IMAGES}/service-{quoted}.tar"
            loaded = f"podman images --quiet --filter reference={IMAGES}/{quoted}"
            unload = (
                f"! command -v podman >/dev/null || {loaded} | xargs --no-run-if-empty podman rmi --force >/dev/null"
            )
            yield StringCommand(f"rm -rf -- {files}; {unload}")


@operation()
def parts_removed(kept: Sequence[tuple[str, str]]) -> Generator[StringCommand, None, None]:
    """Stop and remove the units of all parts but these.

    Args:
        kept: service and part.
    """
    placed = context.host.get_fact(PlacedParts)
    gone = [each for each in placed if each not in kept]
    if not gone:
        return
    lines = ["set -eu"]
    for service, part in gone:
        unit = shlex.quote(f"minipc-{service}-{part}")
        lines += [
            f"systemctl disable --now --quiet {unit}.timer 2>/dev/null || true",
            f"systemctl stop {unit}.service 2>/dev/null || true",
            f"rm -f {QUADLETS}/{unit}.kube {UNITS}/{unit}.service {UNITS}/{unit}.timer",
            f"rm -f {STAMPS}/{unit}.service {STAMPS}/{unit}.timer {SERVICES}/{shlex.quote(f'{service}/{part}')}.yaml",
        ]
    for service in sorted({service for service, _ in gone} - {service for service, _ in kept}):
        network = shlex.quote(f"minipc-{service}")
        lines += [
            f"systemctl stop {network}-network.service 2>/dev/null || true",
            f"podman network rm --force {network} >/dev/null 2>&1 || true",
            f"rm -rf {QUADLETS}/{network}.network {SERVICES}/{shlex.quote(service)}",
            f"rm -f {MANIFESTS}/{shlex.quote(service)}.yaml",
        ]
    lines.append("systemctl daemon-reload")
    yield StringCommand("sh", "-c", shlex.quote("\n".join(lines)))


@operation()
def earlier_units_removed() -> Generator[StringCommand, None, None]:
    """Stop and remove the units under which minipc 0.2 ran the service without K3s, and its code."""
    units = context.host.get_fact(EarlierUnits)
    if not units:
        return
    lines = [
        "set -eu",
        "systemctl disable --now --quiet 'workload-*.service' 2>/dev/null || true",
        f"rm -f {UNITS}/workload-*.service {UNITS}/multi-user.target.wants/workload-*.service {STAMPS}/workload-*",
        "rm -rf /etc/workload /opt/workload",
        "systemctl daemon-reload",
    ]
    yield StringCommand("sh", "-c", shlex.quote("\n".join(lines)))
