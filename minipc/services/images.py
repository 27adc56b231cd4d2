"""The container images of services on this controller, as archives: K3s imports them, podman loads them.

service-images/NAME/HEX.tar     OCI archive; HEX is its manifest's digest without `sha256:`
service-images/NAME/HEX.json    what is known about it
service-images/NAME/current     HEX of the one that a first release or a rehearsal uses

A machine has the archives of what was released, and its backups contain them: `ON_MACHINE`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from minipc import artifacts
from minipc.artifacts import Artifact
from minipc.config.service import Service
from minipc.core import files
from minipc.core.errors import MinipcError, MissingPrerequisiteError
from minipc.core.paths import cache_dir
from minipc.images import prerequisites
from minipc.services import archives, builds

REVISION = "org.opencontainers.image.revision"
ON_MACHINE = "/var/lib/minipc/images"
"""Folder of a machine. For each service NAME/HEX.tar, and NAME/released: HEX of the release, and of the one before."""


@dataclass(frozen=True)
class ServiceImage:
    """An image of a service.

    Attributes:
        name: of the service.
        repository: name of the image, as in the service file.
        tag: its tag.
        digest: `sha256:…` of its manifest: what a pod runs.
        revision: the version that is shown: the commit it was built from, or what its publisher calls it.
        sha256: of the archive.
        path: the archive.
        inputs: hash of what it was built from; empty if it was added as a file.
    """

    name: str
    repository: str
    tag: str
    digest: str
    revision: str
    sha256: str
    path: Path
    inputs: str = ""

    @property
    def reference(self) -> str:
        """Return name and tag, as in an archive."""
        return f"{self.repository}:{self.tag}"

    @property
    def artifact(self) -> Artifact:
        """Return it as a file that a converge copies to the machine."""
        arch = cast(Literal["amd64", "arm64"], artifacts.own_arch())
        return Artifact(
            f"image of {self.name}", arch, "local", self.tag, f"{self.name}.tar", self.path, self.tag, self.sha256
        )


@dataclass(frozen=True)
class Missing:
    """There is no image of a service, and why; what needs it is NOT EXERCISED."""

    name: str
    reason: str


def add(service: Service, archive: Path, *, tag: str | None = None) -> ServiceImage:
    """Put an image's archive into the cache and make it the current one.

    Args:
        archive: OCI or docker archive, plain or compressed.
        tag: its tag; None: the archive's, unless that is "latest", else the beginning of its digest.

    Raises:
        MinipcError: it is not an image, is for another architecture, or does not run as a user that may be used.
        MissingPrerequisiteError: skopeo is not installed and this user cannot install it.
    """
    prerequisites.ensure_container_tools()
    found = archives.original_reference(archive).rpartition(":")[2]
    wanted = tag or (found if found not in ("", "latest") else None)
    with tempfile.TemporaryDirectory(dir=_folder(service.name)) as scratch:
        copy = Path(scratch) / "image.tar"
        archives.convert(archive, copy, f"{service.image}:{wanted or 'new'}")
        if wanted is None:
            wanted = archives.read(copy).digest.removeprefix("sha256:")[:12]
            copy.unlink()
            archives.convert(archive, copy, f"{service.image}:{wanted}")
        return _keep(service, copy, wanted)


def ensure(service: Service, *, fresh: bool = False) -> ServiceImage | Missing:
    """Return the image that the service file describes now; build it if the service is built here and has changed.

    Args:
        fresh: build everything again, for Debian's security updates.

    Raises:
        MinipcError: the build failed.
    """
    if service.build is None:
        reason = (
            f"no image of {service.name} was added to this controller; save it with `podman save` or `docker "
            f"save`, then `minipc service image {service.name} FILE.tar`"
        )
        return current(service.name) or Missing(service.name, reason)
    try:
        prerequisites.ensure_container_tools(build=True)
        source = builds.source(service)
        known = None if fresh else _built_from(service.name, source.inputs)
        if known:
            _make_current(known)
            return known
        with tempfile.TemporaryDirectory(dir=_folder(service.name)) as scratch:
            archive = Path(scratch) / "image.tar"
            builds.build(service, source, archive, fresh=fresh)
            return _keep(service, archive, source.tag, source.inputs)
    except MissingPrerequisiteError as error:
        return Missing(service.name, error.what)


def current(name: str) -> ServiceImage | None:
    """Return the image of a service that was added or built last; None if there is none."""
    pointer = _folder(name) / "current"
    return find(name, "sha256:" + pointer.read_text()) if pointer.exists() else None


def find(name: str, digest: str) -> ServiceImage | None:
    """Return the image of a service with this digest; None if it is not in the cache."""
    path = _folder(name) / f"{digest.removeprefix('sha256:')}.tar"
    record = path.with_suffix(".json")
    if not path.exists() or not record.exists():
        return None
    try:
        return ServiceImage(path=path, **json.loads(record.read_text(encoding="utf-8")))
    except (TypeError, ValueError):  # written by another version of minipc
        return None


def path_on_machine(name: str, digest: str) -> str:
    """Return where a machine has the archive of an image that was released."""
    return f"{ON_MACHINE}/{name}/{digest.removeprefix('sha256:')}.tar"


def keep_script(name: str, digest: str) -> str:
    """Return the shell script that remembers an archive on a machine as released, and removes all but two."""
    return f"""
set -eu
cd {ON_MACHINE}/{name}
[ -e {digest.removeprefix("sha256:")}.tar ] || exit 0
touch released
{{ echo {digest.removeprefix("sha256:")}; grep -vxF {digest.removeprefix("sha256:")} released || true; }} |
    head -n 2 > released.new
mv released.new released
for archive in *.tar; do grep -qxF "${{archive%.tar}}" released || rm -- "$archive"; done
"""


def receive(service: Service, archive: Path, digest: str) -> ServiceImage:
    """Put an archive that a machine had into the cache. It is data: it must be the image with this digest.

    Raises:
        MinipcError: it is another image, it is damaged, or it does not fit the service file.
    """
    content = archives.verify(archive, digest)
    repository, _, tag = content.reference.rpartition(":")
    if repository != service.image:
        raise MinipcError(f"{archive.name} is named {content.reference!r}, not {service.image}", "add the image again")
    before = current(service.name)
    image = _keep(service, archive, tag)
    if before:
        _make_current(before)
    return image


def check_fits(service: Service, content: archives.Content) -> None:
    """Refuse an image that cannot run as the service file says.

    Raises:
        MinipcError: it is for another architecture, or runs as root or another user than the service file says.
    """
    if content.architecture != artifacts.own_arch():
        raise MinipcError(
            f"the image {content.reference} is for {content.architecture}; this machine is {artifacts.own_arch()}",
            f"build it for linux/{artifacts.own_arch()}",
        )
    user = content.user.partition(":")[0]
    if "user" not in service.model_fields_set and user != str(service.user):
        shown = "root" if user in ("", "0", "root") else user
        raise MinipcError(
            f"the image {content.reference} runs as {shown}, and the service file does not say as which number",
            f"write `user: NUMBER` into {service.name}.yaml: a user that may read the image's files, never 0",
        )


def _keep(service: Service, archive: Path, tag: str, inputs: str = "") -> ServiceImage:
    """Move a checked archive into the cache and make it the current one."""
    content = archives.read(archive)
    check_fits(service, content)
    path = _folder(service.name) / f"{content.digest.removeprefix('sha256:')}.tar"
    revision = content.labels.get(REVISION) or tag
    known = find(service.name, content.digest)
    inputs = inputs or (known.inputs if known else "")
    sha256 = files.sha256_of(archive)
    image = ServiceImage(service.name, service.image, tag, content.digest, revision, sha256, path, inputs)
    archive.chmod(0o644)
    files.move_into_place(archive, path)
    record = {key: value for key, value in asdict(image).items() if key != "path"}
    files.write_atomic(path.with_suffix(".json"), json.dumps(record, indent=2).encode() + b"\n", 0o644)
    _make_current(image)
    return image


def _make_current(image: ServiceImage) -> None:
    files.write_atomic(image.path.with_name("current"), image.path.stem.encode(), 0o644)


def _built_from(name: str, inputs: str) -> ServiceImage | None:
    every = (find(name, path.stem) for path in _folder(name).glob("*.tar"))
    return next((each for each in every if each and each.inputs == inputs), None)


def _folder(name: str) -> Path:
    return cache_dir("artifacts", "service-images", name)
