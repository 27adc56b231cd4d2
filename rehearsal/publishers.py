"""The publishers of the upstream files, played by the lab: release hosts with checksum files, and registries.

What they publish are the files in this computer's artifact cache: at the addresses in `artifacts.toml`, under the
versions that the cache has. A file that the cache lacks is replaced by a small generated one. So a checkout whose
artifact cache is empty gets everything as from the internet:

    with publishers.serve(folder, checkout) as served:
        subprocess.run([…, "minipc", "artifacts", "fetch"], cwd=checkout, env=… | served.internet.environment())
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from minipc.artifacts import Artifact, default_store, own_arch
from minipc.artifacts.catalogue import Catalogue, Pin, load_catalogue
from minipc.artifacts.formats import Format
from minipc.artifacts.image_set import named_in
from minipc.artifacts.lock import rendered
from minipc.core.errors import MinipcError
from minipc.core.files import sha256_of
from minipc.secrets.generate import alphanumeric
from rehearsal.doubles.container_registry import ContainerRegistry, Tokens, write_image
from rehearsal.doubles.internet import Internet

# GitHub answers with the address of another host, with a signature that expires.
STORAGE, TOKENS = "release-storage.minipc.test", "tokens.minipc.test"
GENERATED_IMAGE = "registry.minipc.test/argocd/argocd:{version}"
PUBLISHER = "publisher"
_ELF_MACHINES = {"amd64": 62, "arm64": 183}
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Publishers:
    """Publishers that answer.

    Attributes:
        internet: how to reach them, and the faults that they can have.
        registry: the server of all registries.
        tokens: the token server of all registries.
        catalogue: the pins of what they publish.
        images: the images in the registries.
        generated: names of the artifacts that are generated, because the cache lacks them.
    """

    internet: Internet
    registry: ContainerRegistry
    tokens: Tokens
    catalogue: Catalogue
    images: Sequence[str]
    generated: Sequence[str]

    def push(self, layout: Path, image: str, name: str = "") -> None:
        """Push an image as its publisher does.

        Args:
            layout: an OCI layout that contains it.
            name: its name in the layout, if there are several.

        Raises:
            MinipcError: the registry refuses it.
        """
        login = f"{PUBLISHER}:{self.tokens.logins[PUBLISHER]}"
        argv = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-creds", login]
        argv += [f"oci:{layout}:{name}" if name else f"oci:{layout}", f"docker://{image}"]
        environment = os.environ | self.internet.environment()
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
        if done.returncode:
            raise MinipcError(f"{image} cannot be pushed to the lab's registry: {done.stderr[-500:]}", "run it again")


@contextmanager
def serve(folder: Path, checkout: Path) -> Iterator[Publishers]:
    """Publish while the block lasts what this computer's artifact cache contains, for this computer's architecture.

    Args:
        folder: an empty folder.
        checkout: a clone, which is changed as a person changes a pin: its artifacts.toml names the versions that are
            published, and its artifacts.lock has no hash.

    Raises:
        MissingPrerequisiteError: Debian's docker-registry or skopeo is not available.
    """
    arch = own_arch()
    cached = {pin.name: _cached(pin, arch) for pin in default_store().catalogue.pins}
    change_pins(checkout, {name: each.version for name, each in cached.items() if each.version})
    catalogue = load_catalogue(checkout / "artifacts.toml")
    pins = [catalogue.find(name, arch) for name in cached]
    contents = {pin.name: cached[pin.name].path or _generated(pin, folder) for pin in pins if pin.url}
    manifests = [contents[pin.images_of].read_text(encoding="utf-8") for pin in pins if pin.images_of]
    images = sorted({image for manifest in manifests for image in named_in(manifest)})
    registries = {image.split("/", 1)[0] for image in images}
    releases = {str(urlsplit(url).hostname) for pin in pins for url in (pin.url, pin.checksums) if url}
    generated = sorted(name for name, each in cached.items() if each.path is None)
    (folder / "registry").mkdir()
    with Internet(folder / "tls", [*registries, *releases, STORAGE, TOKENS]) as internet:
        tokens = Tokens(internet.authority)
        tokens.logins[PUBLISHER] = alphanumeric()
        internet.pages[TOKENS] = tokens
        with ContainerRegistry(folder / "registry", internet.authority, f"https://{TOKENS}/token") as registry:
            internet.servers |= dict.fromkeys(registries, registry.port)
            served = Publishers(internet, registry, tokens, catalogue, images, generated)
            for pin in pins:
                if pin.name in contents:
                    _release(internet, pin, contents[pin.name])
            archives = [cached[pin.name].path for pin in pins if pin.images_of]
            _fill(served, folder / "layouts", arch, [path for path in archives if path])
            yield served


def _cached(pin: Pin, arch: str) -> Artifact:
    return default_store().resolve(pin.name, arch, fetch=False)


def change_pins(checkout: Path, versions: Mapping[str, str]) -> None:
    """Write other versions into the artifacts.toml of a checkout, and an artifacts.lock without hashes."""
    path = checkout / "artifacts.toml"
    text = path.read_text(encoding="utf-8")
    for name, version in versions.items():
        section = rf'(?ms)(^\[artifacts\.{re.escape(name)}\]$.*?^version = )"[^"]*"'
        text = re.sub(section, lambda match, version=version: f'{match[1]}"{version}"', text, count=1)  # type: ignore[misc]
    path.write_text(text, encoding="utf-8")
    (checkout / "artifacts.lock").write_text(rendered([]), encoding="utf-8")


def _release(internet: Internet, pin: Pin, content: Path) -> None:
    """Publish a file at its address, and name it in the checksum file of its release."""
    url = str(pin.url)
    if "/releases/download/" in url:
        stored = f"https://{STORAGE}{urlsplit(url).path}"
        internet.redirects[url] = f"{stored}?signature={alphanumeric()}"
        internet.files[stored] = content
    else:
        internet.files[url] = content
    if pin.checksums:
        before = internet.files.get(pin.checksums, b"")
        line = f"{sha256_of(content)}  {pin.filename}\n".encode()
        internet.files[pin.checksums] = (before if isinstance(before, bytes) else b"") + line


def _generated(pin: Pin, folder: Path) -> Path:
    """Write a small file of the format that an artifact has."""
    path = folder / f"generated-{pin.name}"
    path.write_bytes(_GENERATORS[pin.format](pin))
    return path


def _elf(pin: Pin) -> bytes:
    machine = _ELF_MACHINES[pin.arch].to_bytes(2, "little")
    return b"\x7fELF".ljust(18, b"\0") + machine + f"{pin}, generated\n".encode() * 5000


def _zip(pin: Pin) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(pin.filename.removesuffix(".zip"), f"{pin}, generated\n" * 5000)
    return content.getvalue()


def _tar(pin: Pin) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz" if pin.format == "tar.gz" else "w") as archive:
        archive.addfile(tarfile.TarInfo(f"{pin.name}/LICENSE"))
    return content.getvalue()


def _zstd(pin: Pin) -> bytes:
    # A frame with one block that is not compressed (RFC 8878).
    text = f"{pin}, generated\n".encode()
    return b"\x28\xb5\x2f\xfd\x20" + bytes([len(text)]) + (len(text) << 3 | 1).to_bytes(3, "little") + text


def _manifest(pin: Pin) -> bytes:
    return f"spec:\n  containers:\n      - image: {GENERATED_IMAGE.format(version=pin.version)}\n".encode()


_GENERATORS: dict[Format, Callable[[Pin], bytes]] = {
    "elf": _elf,
    "zip": _zip,
    "tar": _tar,
    "tar.gz": _tar,
    "tar.zst": _zstd,
    "yaml": _manifest,
}


def _fill(served: Publishers, folder: Path, arch: str, archives: Sequence[Path]) -> None:
    """Push every image: from an archive of the cache that contains it, else a small generated one."""
    pushed = set()
    for number, archive in enumerate(archives):
        layout = folder / f"archive-{number}"
        with tarfile.open(archive) as tar:
            tar.extractall(layout, filter="data")
        for image in set(served.images) & _names(layout):
            served.push(layout, image, image)
            pushed.add(image)
        shutil.rmtree(layout)
    for number, image in enumerate(sorted(set(served.images) - pushed)):
        layout = folder / f"generated-{number}"
        write_image(layout, arch, image)
        served.push(layout, image)


def _names(layout: Path) -> set[str]:
    """Return the names of the images in an OCI layout."""
    index = json.loads((layout / "index.json").read_bytes())
    return {each.get("annotations", {}).get("org.opencontainers.image.ref.name", "") for each in index["manifests"]}
