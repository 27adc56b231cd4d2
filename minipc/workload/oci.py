"""One image as a tar that containerd, podman and docker load: OCI layout and docker-archive in one file.

Deterministic: the same layers and settings give the same bytes, so the digest says whether two images are the same.
Layers are not compressed: what a compressor writes depends on its version.
Formats: OCI Image Format Specification 1.1, and the `manifest.json` that `docker save` writes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minipc.errors import MinipcError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
# What containerd names the image by when it imports the archive.
NAME = "io.containerd.image.name"
REF = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Image:
    """What an archive holds.

    Attributes:
        reference: name and tag.
        digest: `sha256:…` of the manifest: what a pod runs.
        config_digest: `sha256:…` of the configuration; containerd shows it where it made the manifest itself.
        labels: as in the configuration.
    """

    reference: str
    digest: str
    config_digest: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class File:
    """A file of a layer: absolute path in the image, content; root's, mode 0644."""

    path: str
    content: bytes


def digest_of(content: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def layer(files: Iterable[File], mtime: int) -> bytes:
    """A tar of files and the directories above them, sorted, all root's, with one time (seconds since 1970)."""
    entries: dict[str, bytes | None] = {}
    for file in files:
        path = file.path.strip("/")
        above = Path(path).parents
        entries |= {str(directory): None for directory in above if str(directory) != "."}
        entries[path] = file.content
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(entries):
            content = entries[path]
            entry = tarfile.TarInfo(path)
            entry.mtime = mtime
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write(
    output: Path,
    *,
    reference: str,
    architecture: Literal["amd64", "arm64"],
    created: str,
    config: Mapping[str, Any],
    layers: list[tuple[Path, str]],
) -> Image:
    """Writes the archive under a temporary name, then renames it.

    Args:
        reference: name and tag, such as `minipc.local/workload:1f0c…`.
        created: RFC 3339; of the sources, not of now.
        config: the runtime settings (User, Entrypoint, Env, Labels, Healthcheck, …).
        layers: uncompressed tars from the lowest up, and what made each.
    """
    blobs: dict[str, Path | bytes] = {}
    described = []
    for path, _ in layers:
        digest = _digest_of_file(path)
        blobs[digest] = path
        described.append({"mediaType": LAYER, "digest": digest, "size": path.stat().st_size})
    config_json = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "created": created,
            "config": config,
            # Uncompressed layers: their diff ids are their digests.
            "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in described]},
            "history": [{"created": created, "created_by": how} for _, how in layers],
        }
    )
    config_digest = digest_of(config_json)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": len(config_json)},
            "layers": described,
        }
    )
    digest = digest_of(manifest)
    blobs |= {config_digest: config_json, digest: manifest}
    descriptor = {
        "mediaType": MANIFEST,
        "digest": digest,
        "size": len(manifest),
        "annotations": {NAME: reference, REF: reference.rpartition(":")[2]},
    }
    listing = {
        "Config": _blob(config_digest),
        "RepoTags": [reference],
        "Layers": [_blob(str(each["digest"])) for each in described],
    }
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [descriptor]}))
            _add(tar, "manifest.json", _json([listing]))
            for name in sorted(blobs):
                _add(tar, _blob(name), blobs[name])
        temporary.rename(output)
    finally:
        temporary.unlink(missing_ok=True)
    return Image(reference, digest, config_digest, dict(config.get("Labels", {})))


def read(path: Path) -> Image:
    """What is in an archive that `write` made.

    Raises:
        MinipcError: it is another kind of file.
    """
    try:
        with tarfile.open(path) as tar:

            def member(name: str) -> bytes:
                found = tar.extractfile(name)
                return found.read() if found else b""

            entry = json.loads(member("index.json"))["manifests"][0]
            config_digest = json.loads(member(_blob(entry["digest"])))["config"]["digest"]
            labels = json.loads(member(_blob(config_digest)))["config"].get("Labels", {})
            return Image(entry["annotations"][NAME], entry["digest"], config_digest, labels)
    except (OSError, tarfile.TarError, LookupError, TypeError, ValueError) as error:
        raise MinipcError(
            f"{path} is no image archive of ours ({type(error).__name__}: {error})", "`minipc workload image`"
        ) from error


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o644
    if isinstance(content, bytes):
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
        return
    entry.size = content.stat().st_size
    with content.open("rb") as file:
        tar.addfile(entry, file)


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
