"""Read what a container image's archive says about itself, and convert any archive to the one form that is kept.

What is kept is an OCI archive of one image whose annotation is its full name, so that containerd and podman name it.
Formats: OCI Image Format Specification 1.1; `manifest.json` of `docker save`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipc.core.errors import MinipcError
from minipc.core.process import call

_NEXT = "make it with `podman save --format oci-archive` or `docker save`, of one image for this machine"
_REFERENCE = "org.opencontainers.image.ref.name"
# All that `convert` and buildah write. containerd reads other spellings (`./index.json`) as the same name.
_MEMBER = re.compile(r"oci-layout|index\.json|blobs(/sha256(/[0-9a-f]{64})?)?")


@dataclass(frozen=True)
class Content:
    """What an archive contains.

    Attributes:
        reference: name and tag in the archive; empty if it has none.
        digest: `sha256:…` of the manifest: what a pod runs.
        architecture: as Debian and OCI name it, such as `amd64`.
        user: what the image says it runs as: a number or a name, with or without a group; empty is root.
        labels: of the image.
    """

    reference: str
    digest: str
    architecture: str
    user: str
    labels: Mapping[str, str]


def convert(source: Path, target: Path, reference: str) -> None:
    """Write the image of an archive (OCI or docker, plain or compressed) as an OCI archive under another name.

    Raises:
        MinipcError: it is not an archive of exactly one image, or it is damaged.
    """
    transport, names = _kind(source)
    if len(names) > 1:
        raise MinipcError(f"{source} contains {len(names)} images: {', '.join(names)}", "save one of them only")
    plain = target.with_name("plain.tar")
    with source.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if compressed:  # skopeo of Debian 12 reads no compressed docker archive
        with gzip.open(source) as file, plain.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    call(
        *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers"),
        *(f"{transport}:{plain if compressed else source}", f"oci-archive:{target}:{reference}"),
        timeout=600,
        next_step=_NEXT,
    )
    plain.unlink(missing_ok=True)


def original_reference(source: Path) -> str:
    """Return the name and tag in an archive of one image; empty if it has none. Raises MinipcError as `convert`."""
    _, names = _kind(source)
    return names[0] if names and re.match(r"^[\w./:-]+:[\w.-]+$", names[0]) else ""


def _kind(source: Path) -> tuple[str, list[str]]:
    """Return skopeo's name of the format, and the names of the images in the archive."""
    try:
        with tarfile.open(source) as tar:
            members = {each.name.removeprefix("./"): each for each in tar}
            if "index.json" in members and "oci-layout" in members:
                entries = _json(tar, members["index.json"])["manifests"]
                return "oci-archive", [each.get("annotations", {}).get(_REFERENCE, each["digest"]) for each in entries]
            if "manifest.json" in members:
                listing = _json(tar, members["manifest.json"])
                return "docker-archive", [(each.get("RepoTags") or ["unnamed"])[0] for each in listing]
    except FileNotFoundError:
        raise MinipcError(f"{source} does not exist", _NEXT) from None
    except (OSError, EOFError, tarfile.TarError, LookupError, TypeError, AttributeError, ValueError) as error:
        cause = str(error).partition("\n")[0].rstrip(":")
        raise MinipcError(
            f"{source} is not a container image's archive ({type(error).__name__}: {cause})", _NEXT
        ) from None
    raise MinipcError(
        f"{source} is not a container image's archive: it has neither oci-layout nor manifest.json", _NEXT
    )


def read(path: Path) -> Content:
    """Describe an archive that `convert` wrote or buildah pushed.

    Raises:
        MinipcError: it is another kind of file.
    """
    try:
        with tarfile.open(path) as tar:

            def blob(digest: str) -> Any:
                return _json(tar, tar.getmember("blobs/" + digest.replace(":", "/")))

            entry = _json(tar, tar.getmember("index.json"))["manifests"][0]
            image = blob(blob(entry["digest"])["config"]["digest"])
            config = image.get("config") or {}
            return Content(
                reference=entry.get("annotations", {}).get(_REFERENCE, ""),
                digest=entry["digest"],
                architecture=image["architecture"],
                user=config.get("User") or "",
                labels=config.get("Labels") or {},
            )
    except (OSError, EOFError, tarfile.TarError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise MinipcError(f"{path} is not an OCI archive ({type(error).__name__}: {error})", _NEXT) from error


def verify(path: Path, digest: str) -> Content:
    """Describe an archive of unknown origin, after its manifest and everything below it were compared with a digest.

    Raises:
        MinipcError: it is not the image with this digest, or contains more than that, or it is damaged.
    """
    content = read(path)
    with tarfile.open(path) as tar:
        members = list(tar)
        # No digest covers the index, and containerd takes the names of images from it, or from a `manifest.json`.
        entries = _json(tar, tar.getmember("index.json"))["manifests"]
        blobs = [each for each in members if each.name.startswith("blobs/") and not each.isdir()]
        sound = (
            content.digest == digest
            and [set(each.get("annotations") or {}) <= {_REFERENCE} for each in entries] == [True]
            and all(_MEMBER.fullmatch(each.name) for each in members)
            and len({each.name for each in members}) == len(members)
            # The name and the size of what a manifest needs are in the manifest, whose hash is the digest.
            and all(each.name == f"blobs/sha256/{_sha256(tar, each)}" for each in blobs)
        )
    if not sound:
        raise MinipcError(f"{path.name} is not the image {digest}", "add the image again: `minipc service image`")
    return content


def _sha256(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    found = tar.extractfile(member) if member.isfile() else None
    return hashlib.file_digest(found, "sha256").hexdigest() if found else ""  # type: ignore[arg-type]


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    found = tar.extractfile(member)
    return json.loads(found.read()) if found else {}
