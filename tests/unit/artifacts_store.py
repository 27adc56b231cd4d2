"""A store with a temporary cache, whose publisher is a test server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from minipc.artifacts.download import Downloader
from minipc.artifacts.store import Store
from tests.unit.artifacts_server import File, Server

K3S = b"\x7fELF".ljust(18, b"\x00") + b"\x3e\x00" + b"the K3s program" * 500
LOKI = b"PK\x03\x04" + b"a zip with Loki" * 300
MANIFEST = b"apiVersion: v1\nkind: Namespace\n"

LIST = """\
schema = 1

[artifacts.k3s]
version = "v1.36.5+k3s1"
component = "k3s"
what = "K3s"
format = "elf"
files.amd64 = {{ url = "{url}/{{version}}/k3s", checksums = "{url}/{{version}}/sums" }}
files.arm64 = {{ url = "{url}/{{version}}/k3s-arm64", checksums = "{url}/{{version}}/sums" }}

[artifacts.loki]
version = "3.7.8"
component = "loki"
what = "Loki"
format = "zip"
files.amd64 = {{ url = "{url}/loki.zip" }}

[artifacts.images]
version = "v3"
component = "argocd"
what = "images"
format = "tar"
images_of = "manifest"
files.amd64 = {{}}

[artifacts.manifest]
version = "v3"
component = "argocd"
what = "manifest"
format = "yaml"
files.all = {{ url = "{url}/install.yaml", checksums = "{url}/install.yaml.sha256" }}
"""

K3S_PATH = "/v1.36.5%2Bk3s1/k3s"
SUMS_PATH = "/v1.36.5%2Bk3s1/sums"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Bench:
    """A store and its files.

    Attributes:
        head: text in front of the list.
        said: lines printed for the operator.
    """

    root: Path
    url: str
    head: str = ""
    said: list[str] = field(default_factory=list)

    def store(self, downloader: Downloader | None = None) -> Store:
        """Return the store as a new process would make it."""
        self.root.mkdir(exist_ok=True)
        (self.root / "artifacts.toml").write_text(self.head + LIST.format(url=self.url))
        return Store(
            catalogue=self.root / "artifacts.toml",
            lock=self.root / "artifacts.lock",
            cache=self.root / "cache",
            downloader=lambda: downloader or Downloader(sleep=lambda _: None),
            say=self.said.append,
        )

    def file(self, name: str, content: bytes) -> Path:
        """Write a file of the operator, outside the cache."""
        self.root.mkdir(exist_ok=True)
        path = self.root / name
        path.write_bytes(content)
        return path

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder of the cache."""
        return sorted(path.name for path in (self.root / "cache" / folder).iterdir())


def publish(server: Server) -> None:
    """Put every file of the list on the publisher's server."""
    server[K3S_PATH] = File(K3S)
    server[SUMS_PATH] = File(f"{sha(K3S)}  k3s\n".encode())
    server["/loki.zip"] = File(LOKI)
    server["/install.yaml"] = File(MANIFEST)
    server["/install.yaml.sha256"] = File(f"{sha(MANIFEST)}\n".encode())
