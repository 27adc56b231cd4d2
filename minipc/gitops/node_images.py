"""The images of a release on the machine: where no registry has them, they are copied from this controller."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence

from minipc.config.service import Service
from minipc.core.errors import RefusedError
from minipc.gitops.cluster import Cluster, Object
from minipc.gitops.contract import templates
from minipc.gitops.trace import DIGEST, imported
from minipc.services import images

TIMEOUT_S = 600
PINNED = "io.cri-containerd.pinned"
"""Label of an image that came from a file."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def copy_missing(cluster: Cluster, service: Service, objects: Sequence[Object], say: Callable[[str], None]) -> None:
    """Copy the images of a release that the machine does not have and whose archive is in the cache here.

    A converge copies the image that was added last; what was approved, or is gone back to, may be an earlier one.
    An image of which there is no archive is the registry's.

    Raises:
        RefusedError: a file gave the machine another image under that name, and there is no archive to replace it.
        CouldNotVerifyError: the machine cannot be reached, or its runtime does not take the image.
    """
    wanted = dict(_named(objects))
    listing = cluster.run("k3s ctr -n k8s.io images ls") if wanted else ""
    there = imported(listing)
    from_files = {line.split()[0] for line in listing.splitlines() if f"{PINNED}=pinned" in line}
    for reference, digest in wanted.items():
        if there.get(reference) == digest:
            continue
        found = images.find(service.name, digest)
        if found is not None and found.reference == reference:
            content = found.path.read_bytes()
            cluster.run(f"k3s ctr -n k8s.io images import --label {PINNED}=pinned -", content, TIMEOUT_S)
            say(f"  copied the image {reference} to the machine")
        elif reference in from_files:
            raise RefusedError(
                f"the machine has {reference} with the digest {there[reference]}; the release names {digest}",
                f"`minipc service image {service.name} FILE.tar` with the archive of the released image",
            )


def keep_released(cluster: Cluster, service: Service, objects: Sequence[Object]) -> bool:
    """Store the archives of a release on the machine, whose backups contain them. The release before is kept, too.

    Returns:
        Whether there is an archive; there is none of an image from a registry.

    Raises:
        CouldNotVerifyError: the machine cannot be reached, or its disk is full.
    """
    kept = False
    for digest in sorted(filter(_DIGEST.fullmatch, {digest for _, digest in _named(objects)})):
        path = shlex.quote(images.path_on_machine(service.name, digest))
        there = cluster.run(f"sh -c {shlex.quote(f'test ! -e {path} || echo there')}").strip() == "there"
        found = images.find(service.name, digest)
        if not there and found is not None:
            write = f"set -eu; mkdir -p $(dirname {path}); cat > {path}.new; mv {path}.new {path}"
            cluster.run(f"sh -c {shlex.quote(write)}", found.path.read_bytes(), TIMEOUT_S)
        if there or found is not None:
            cluster.run(f"sh -c {shlex.quote(images.keep_script(service.name, digest))}")
            kept = True
    return kept


def _named(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    """Return each image that the objects run, and the digest that the release states."""
    for _, template in templates(objects):
        digest = ((template.get("metadata") or {}).get("annotations") or {}).get(DIGEST, "")
        for container in template["spec"].get("containers") or []:
            yield str(container.get("image")), digest
