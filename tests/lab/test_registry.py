"""What the preflight asks a registry: Debian's docker-registry with TLS and a login, on a loopback address."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import bcrypt
import pytest

from minipc.artifacts.errors import HashMismatchError, UnobtainableError
from minipc.artifacts.store import Store
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.core.files import sha256_of
from minipc.core.polling import wait_until
from minipc.images.prerequisites import ensure_container_tools
from minipc.services import registry, signatures
from minipc.services.registry import Signature
from rehearsal.doubles.container_registry import program
from rehearsal.doubles.tls_authority import Authority
from tests.unit.cosign import Signer
from tests.unit.service_files import TINY, service

USER, TOKEN = "you", "a-token"
CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}
http: {{addr: "{address}", tls: {{certificate: {folder}/tls/server.pem, key: {folder}/tls/server.pem}}}}
auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}
log: {{level: error}}
"""


@dataclass
class Registry:
    """A registry that runs, and the settings with which it is asked."""

    address: str
    folder: Path
    settings: SimpleNamespace

    @property
    def image(self) -> str:
        return f"{self.address}/you/shop"

    def admit(self, token: str) -> None:
        """Let only this token in."""
        hashed = bcrypt.hashpw(token.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
        (self.folder / "htpasswd").write_text(f"{USER}:{hashed}\n")

    def push(self, tag: str, *, arch: str = "amd64", text: str = "") -> str:
        """Push an empty image, and return the digest of its manifest."""
        return self._push(tag, {"architecture": arch, "os": "linux", "author": text}, [])

    def sign(self, digest: str, *found: Signature) -> None:
        """Store signatures next to an image, as `cosign sign` does."""
        self._push(f"{digest.replace(':', '-')}.sig", {"architecture": "", "os": ""}, found)

    def _push(self, tag: str, config: dict[str, object], found: Sequence[Signature]) -> str:
        layout = self.folder / f"layout-{secrets.token_hex(4)}"
        blobs = layout / "blobs/sha256"
        blobs.mkdir(parents=True)

        def add(content: bytes, kind: str, **more: object) -> dict[str, object]:
            digest = hashlib.sha256(content).hexdigest()
            (blobs / digest).write_bytes(content)
            return {"mediaType": f"application/vnd.{kind}", "digest": f"sha256:{digest}", "size": len(content), **more}

        layers = [
            add(each.payload, "dev.cosign.simplesigning.v1+json", annotations={registry.SIGNATURE: each.signature})
            for each in found
        ]
        rootfs = {"type": "layers", "diff_ids": [each["digest"] for each in layers]}
        described = add(json.dumps(config | {"rootfs": rootfs}).encode(), "oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers}
        made = add(json.dumps(manifest | {"config": described}).encode(), "oci.image.manifest.v1+json")
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [made]}))
        argv = ["skopeo", "copy", "--quiet", "--dest-creds", f"{USER}:{TOKEN}", f"oci:{layout}"]
        subprocess.run([*argv, f"docker://{self.image}:{tag}"], check=True, timeout=60)
        return str(made["digest"])


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Return a certificate authority that skopeo trusts."""
    authority = Authority(tmp_path / "tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    return authority


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes the settings with the login of a registry."""
    secret = SimpleNamespace(reveal=lambda: TOKEN)
    monkeypatch.setattr(registry.secrets, "load", lambda _, names: dict.fromkeys(names, secret))
    return lambda address: SimpleNamespace(
        environment="lab",
        k3s=SimpleNamespace(registries=[SimpleNamespace(name="test", host=address, username=USER)]),
    )


@pytest.fixture
def served(tmp_path: Path, trusted: Authority, settings, lab_ready: None) -> Iterator[Registry]:
    """Run Debian's registry from its package, without installing it."""
    ensure_container_tools()
    address = f"127.0.0.1:{_free_port()}"
    found = Registry(address, tmp_path, settings(address))
    found.admit(TOKEN)
    (tmp_path / "config.yml").write_text(CONFIG.format(folder=tmp_path, address=address))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program(tmp_path), "serve", tmp_path / "config.yml"], stdout=log, stderr=log)
    try:
        up = wait_until(lambda: _answers(address), within_s=20, every_s=0.1)
        assert up, (tmp_path / "log").read_text()
        yield found
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_an_image_is_found_by_tag_and_by_digest(served):
    digest = served.push("v1")
    assert registry.digest_of(served.settings, served.image, "v1", "amd64") == digest
    assert registry.digest_of(served.settings, served.image, digest, "amd64") == digest
    # Somebody moves the tag: what was released is still there, by its digest.
    moved = served.push("v2", text="another")
    source = f"docker://{served.image}:v2"
    login = ["--src-creds", f"{USER}:{TOKEN}", "--dest-creds", f"{USER}:{TOKEN}"]
    subprocess.run(["skopeo", "copy", "--quiet", *login, source, f"docker://{served.image}:v1"], check=True)
    assert registry.digest_of(served.settings, served.image, "v1", "amd64") == moved
    assert registry.digest_of(served.settings, served.image, digest, "amd64") == digest


def test_an_expired_token_a_missing_tag_and_another_architecture_are_told_apart(served):
    served.push("v1")
    with pytest.raises(MinipcError, match="does not have it"):
        registry.digest_of(served.settings, served.image, "v9", "amd64")
    with pytest.raises(MinipcError, match="is for amd64, the machine is arm64"):
        registry.digest_of(served.settings, served.image, "v1", "arm64")
    served.admit("another-token")
    with pytest.raises(MinipcError, match="refuses the login") as caught:
        registry.digest_of(served.settings, served.image, "v1", "amd64")
    assert TOKEN not in str(caught.value)


def test_a_changed_file_is_not_taken_for_the_released_one(served):
    digest = served.push("v1")
    path = served.folder / "blobs/docker/registry/v2/blobs/sha256" / digest[7:9] / digest[7:] / "data"
    path.write_bytes(path.read_bytes().replace(b'"layers": [', b'"layers":  ['))
    with pytest.raises(MinipcError, match="something else under this digest"):
        registry.digest_of(served.settings, served.image, digest, "amd64")


def test_a_registry_that_is_down_could_not_be_verified(served, trusted, settings):
    address = f"127.0.0.1:{_free_port()}"
    with pytest.raises(CouldNotVerifyError, match="does not answer"):
        registry.digest_of(settings(address), f"{address}/you/shop", "v1", "amd64")


# --- signatures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    made = Signer()
    made.write(tmp_path / "shop.pub")
    return made


@pytest.fixture
def verify(served, signer):
    """Return a function that verifies an image of the registry, as a release does."""
    shop = service(TINY, image=served.image, image_signer="shop.pub", folder=str(served.folder))
    return lambda digest: signatures.verifier(served.settings)(shop, f"{served.image}@{digest}")


def test_an_image_with_a_signature_of_the_key_passes(served, signer, verify):
    digest = served.push("v1")
    # Somebody else signed it, too, as one image may have several signatures.
    served.sign(digest, Signer().sign(served.image, digest), signer.sign(served.image, digest))
    verify(digest)


def test_an_image_without_a_signature_is_refused(served, verify):
    with pytest.raises(RefusedError, match=r"is not signed: .*\.sig does not exist"):
        verify(served.push("v1"))


def test_a_signature_of_another_key_is_refused(served, verify):
    digest = served.push("v1")
    served.sign(digest, Signer().sign(served.image, digest))
    with pytest.raises(RefusedError, match="it is of another key"):
        verify(digest)


def test_a_signature_that_was_copied_from_another_image_is_refused(served, signer, verify):
    signed, planted = served.push("v1"), served.push("v2", text="planted")
    served.sign(signed, signer.sign(served.image, signed))
    name = f"docker://{served.image}:{{}}.sig".format
    login = ["--src-creds", f"{USER}:{TOKEN}", "--dest-creds", f"{USER}:{TOKEN}"]
    argv = ["skopeo", "copy", "--quiet", *login, name(signed.replace(":", "-")), name(planted.replace(":", "-"))]
    subprocess.run(argv, check=True, timeout=60)
    verify(signed)
    with pytest.raises(RefusedError, match="it is of another image"):
        verify(planted)


def test_a_signature_for_another_repository_is_refused(served, signer, verify):
    digest = served.push("v1")
    served.sign(digest, signer.sign(f"{served.address}/you/other", digest))
    with pytest.raises(RefusedError, match="it was made for another repository"):
        verify(digest)


def test_an_image_in_the_place_of_a_signature_is_refused(served, verify):
    digest = served.push("v1")
    served.push(f"{digest.replace(':', '-')}.sig", text="no signature")
    with pytest.raises(RefusedError, match="nothing that is stored as a signature is one"):
        verify(digest)


def test_a_payload_that_the_registry_changed_is_refused(served, signer, verify):
    digest = served.push("v1")
    found = signer.sign(served.image, digest)
    served.sign(digest, found)
    name = hashlib.sha256(found.payload).hexdigest()
    path = served.folder / "blobs/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
    path.write_bytes(found.payload.replace(b'"optional":null', b'"optional":"ab"'))
    with pytest.raises(MinipcError):
        verify(digest)


def test_without_a_login_nothing_was_verified(served, signer, verify):
    digest = served.push("v1")
    served.sign(digest, signer.sign(served.image, digest))
    served.admit("another-token")
    with pytest.raises(MinipcError, match="refuses the login") as caught:
        verify(digest)
    assert TOKEN not in str(caught.value)


CATALOGUE = """\
schema = 1
[artifacts.manifest]
version = "v3"
component = "argocd"
what = "manifest"
format = "yaml"
files.all = {url = "https://manifest.example/install.yaml"}
[artifacts.images]
version = "v3"
component = "argocd"
what = "images"
format = "tar"
images_of = "manifest"
files.amd64 = {}
"""


@pytest.fixture
def store(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes a store whose manifest names images of a registry that the local one mirrors."""
    served.admit(TOKEN)
    (tmp_path / "artifacts.toml").write_text(CATALOGUE)
    # As a user has them: skopeo reads both below the home directory.
    containers = tmp_path / ".config/containers"
    containers.mkdir(parents=True)
    mirror = f'[[registry]]\nprefix = "quay.example"\nlocation = "{served.address}"\n'
    (containers / "registries.conf").write_text(mirror)
    login = base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
    (containers / "auth.json").write_text(json.dumps({"auths": {served.address: {"auth": login}}}))
    monkeypatch.setenv("HOME", str(tmp_path))
    manifest = tmp_path / "install.yaml"
    manifest.write_text("".join(f"      - image: quay.example/you/shop:{tag}\n" for tag in ("v2", "v1", "v2")))

    def make(cache: str) -> Store:
        made = Store(
            catalogue=tmp_path / "artifacts.toml", lock=tmp_path / "artifacts.lock", cache=tmp_path / cache, say=print
        )
        made.lock_hash("manifest", "all", sha256_of(manifest))
        made.add("manifest", manifest, "amd64")
        return made

    return make


def test_the_images_of_a_manifest_are_saved_once_and_locked(served, store):
    served.push("v1", text="one")
    served.push("v2", text="two")
    first = store("first")
    (pin,) = [each for each in first.unlocked() if each.name == "images"]
    assert first.resolve("images", "amd64").origin == "missing", "nobody has accepted it yet"
    first.accept(pin, first.download_once(pin))
    saved = first.resolve("images", "amd64", fetch=False)
    assert saved.path is not None
    with tarfile.open(saved.path) as tar:
        index = json.loads(tar.extractfile("index.json").read())
        held = set(tar.getnames())
    names = [each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]]
    assert names == ["quay.example/you/shop:v1", "quay.example/you/shop:v2"]
    assert {f"blobs/{each['digest'].replace(':', '/')}" for each in index["manifests"]} <= held
    again = store("second").resolve("images", "amd64")
    assert (again.origin, again.sha256) == ("locked", saved.sha256), "the same images are the same file elsewhere"


def test_another_image_under_the_same_tag_is_refused(served, store):
    served.push("v1", text="one")
    served.push("v2", text="two")
    first = store("first")
    (pin,) = [each for each in first.unlocked() if each.name == "images"]
    first.accept(pin, first.download_once(pin))
    served.push("v2", text="planted")
    with pytest.raises(HashMismatchError, match="it was not kept"):
        store("second").resolve("images", "amd64")


def test_an_image_that_is_missing_is_named(served, store):
    served.push("v1", text="one")
    (pin,) = [each for each in store("first").unlocked() if each.name == "images"]
    with pytest.raises(UnobtainableError, match=r"quay\.example/you/shop:v2 cannot be pulled: .*manifest unknown"):
        store("first").download_once(pin)


def test_the_images_of_a_local_manifest_are_not_locked_as_those_of_the_pin(served, store):
    made = store("first")
    made.add("manifest", served.folder / "config.yml", "amd64")
    (pin,) = [each for each in made.unlocked() if each.name == "images"]
    with pytest.raises(UnobtainableError, match=r"LOCAL file.* save them yourself"):
        made.download_once(pin)
