"""Images of services: what an archive must be, what does not fit the service file, when a build is repeated."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from minipc import artifacts
from minipc.config.service import Service
from minipc.core.errors import ConfigError, MinipcError
from minipc.images import prerequisites
from minipc.pyinfra_ext.facts.images import ReleasedImages
from minipc.services import archives, builds, images

needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed; tests/lab installs it")
LAYER = gzip.compress(b"\0" * 10240, mtime=0)
REVISION = {"org.opencontainers.image.revision": "abc"}


def shop(**changes: object) -> Service:
    return Service.model_validate(
        {"name": "shop", "image": "example.org/shop", "processes": {"web": {}}, "user": 1000, **changes}
    )


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def tar_of(path: Path, members: dict[str, object]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def contents(path: Path) -> dict[str, object]:
    """Return what is in a tar file, by name."""
    with tarfile.open(path) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar if each.isfile()}


def configuration(architecture: str, user: str, labels: dict[str, str]) -> bytes:
    layer = digest_of(gzip.decompress(LAYER))
    about = {
        "architecture": architecture,
        "os": "linux",
        "config": {"User": user, "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    }
    return json.dumps(about).encode()


def oci(path: Path, *names: str, architecture: str | None = None, user: str = "1000") -> Path:
    """Write an OCI archive, as `podman save --format oci-archive` does."""
    config = configuration(architecture or artifacts.own_arch(), user, REVISION)
    kind = "application/vnd.oci.image."
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}manifest.v1+json",
            "config": {"mediaType": f"{kind}config.v1+json", "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": f"{kind}layer.v1.tar+gzip", "digest": digest_of(LAYER), "size": len(LAYER)}],
        }
    ).encode()
    entry = {"mediaType": f"{kind}manifest.v1+json", "digest": digest_of(manifest), "size": len(manifest)}
    entries = [entry | {"annotations": {"org.opencontainers.image.ref.name": name}} for name in names]
    blobs = {f"blobs/sha256/{hashlib.sha256(each).hexdigest()}": each for each in (config, manifest, LAYER)}
    index = {"schemaVersion": 2, "manifests": entries or [entry]}
    return tar_of(path, {"oci-layout": {"imageLayoutVersion": "1.0.0"}, "index.json": index, **blobs})


def docker(path: Path, *names: str) -> Path:
    """Write an archive as `docker save` does."""
    config = configuration(artifacts.own_arch(), "1000", {})
    file = f"{hashlib.sha256(config).hexdigest()}.json"
    listing = [{"Config": file, "RepoTags": [name], "Layers": ["layer.tar"]} for name in names]
    return tar_of(path, {file: config, "layer.tar": gzip.decompress(LAYER), "manifest.json": listing})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a container image's archive"),
        (b"no tar", "not a container image's archive"),
        (b"\0" * 10240, "neither oci-layout nor manifest.json"),
        (gzip.compress(b"no tar", mtime=0), "not a container image's archive"),
    ],
)
def test_another_file_is_refused(tmp_path, content, said):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(MinipcError, match=said):
        archives.convert(tmp_path / "x.tar", tmp_path / "y.tar", "a/b:c")


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(MinipcError, match=r"x\.tar does not exist"):
        archives.convert(tmp_path / "x.tar", tmp_path / "y.tar", "a/b:c")


def test_an_archive_of_several_images_is_refused(tmp_path):
    for path in (oci(tmp_path / "1.tar", "a:1", "b:1"), docker(tmp_path / "2.tar", "a:1", "b:1")):
        with pytest.raises(MinipcError, match="contains 2 images: a:1, b:1"):
            archives.convert(path, tmp_path / "y.tar", "a/b:c")


def test_what_an_archive_says_about_itself(tmp_path):
    content = archives.read(oci(tmp_path / "1.tar", "example.org/shop:v1"))
    assert (content.reference, content.user, content.labels) == ("example.org/shop:v1", "1000", REVISION)
    assert content.architecture == artifacts.own_arch()


@pytest.mark.parametrize("pack", [oci, docker])
@pytest.mark.parametrize("compressed", [False, True])
@needs_skopeo
def test_every_kind_of_archive_is_kept_under_the_name_of_the_service(tmp_path, monkeypatch, pack, compressed):
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    archive = pack(tmp_path / "1.tar", "other/name:v2.2.9")
    if compressed:
        archive = tmp_path / "1.tgz"
        archive.write_bytes(gzip.compress((tmp_path / "1.tar").read_bytes()))
    image = images.add(shop(), archive)
    assert image.reference == "example.org/shop:v2.2.9"
    assert archives.read(image.path).reference == image.reference
    assert archives.read(image.path).digest == image.digest
    assert image.sha256 == hashlib.sha256(image.path.read_bytes()).hexdigest()
    assert images.current("shop") == images.find("shop", image.digest) == image
    assert images.ensure(shop()) == image
    assert images.find("shop", "sha256:0") is None


@needs_skopeo
def test_an_oci_image_keeps_its_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    archive = oci(tmp_path / "1.tar", "other/name:latest")
    image = images.add(shop(), archive)
    assert image.digest == archives.read(archive).digest
    assert image.tag == image.digest.removeprefix("sha256:")[:12]  # "latest" says nothing
    assert image.revision == "abc"


@needs_skopeo
def test_a_damaged_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    archive = oci(tmp_path / "1.tar", "a:1")
    archive.write_bytes(archive.read_bytes().replace(LAYER, b"x" * len(LAYER)))
    with pytest.raises(MinipcError, match="skopeo"):
        images.add(shop(), archive)
    assert images.current("shop") is None


def test_an_image_for_another_architecture_is_refused(tmp_path):
    content = archives.read(oci(tmp_path / "1.tar", "a:1", architecture="riscv64"))
    with pytest.raises(MinipcError, match="is for riscv64; this machine is"):
        images.check_fits(shop(), content)


@pytest.mark.parametrize(("user", "shown"), [("", "root"), ("0:0", "root"), ("app", "app"), ("1001", "1001")])
def test_an_image_of_another_user_needs_a_number_in_the_service_file(tmp_path, user, shown):
    content = archives.read(oci(tmp_path / "1.tar", "a:1", user=user))
    silent = Service.model_validate({"name": "shop", "image": "a", "processes": {"web": {}}})
    with pytest.raises(MinipcError, match=f"runs as {shown}, and the service file does not say"):
        images.check_fits(silent, content)
    images.check_fits(shop(), content)


def test_without_an_image_the_reason_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    found = images.ensure(shop())
    assert isinstance(found, images.Missing)
    assert found.reason.startswith("no image of shop was added to this controller; ")
    assert "`minipc service image shop FILE.tar`" in found.reason


def test_who_may_not_build_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 1000)
    found = images.ensure(shop(build="."))
    assert isinstance(found, images.Missing)
    assert found.reason.startswith("a container image needs")


# --- what an image is built from -------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A git repository with a service in the folder `shop`."""
    folder = tmp_path / "shop"
    (folder / "services").mkdir(parents=True)
    (folder / "Containerfile").write_text("FROM localhost/debian:13\n")
    (folder / "app.py").write_text("1\n")
    (folder / ".containerignore").write_text("# comment\nservices/\n*.md\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return folder


def git(directory: Path, *argv: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", "-C", directory, *identity, *argv], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(directory: Path) -> None:
    git(directory, "add", "-A")
    git(directory, "commit", "-qm", "a change")


def source(folder: Path) -> builds.Source:
    return builds.source(shop(build="..", folder=str(folder / "services")))


def test_the_tag_is_the_last_commit_of_the_folder(checkout):
    before = source(checkout)
    assert before.tag == git(checkout, "rev-parse", "HEAD")
    (checkout.parent / "elsewhere").write_text("")
    (checkout / "services/shop.yaml").write_text("")
    (checkout / "README.md").write_text("")
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__/app.pyc").write_text("")
    assert source(checkout) == before
    commit(checkout.parent)
    assert source(checkout) == before


def test_uncommitted_changes_are_another_tag_and_another_build(checkout):
    before = source(checkout)
    (checkout / "app.py").write_text("2\n")
    changed = source(checkout)
    assert changed.tag.startswith(f"{before.tag}-")
    assert changed.inputs != before.inputs
    (checkout / "app.py").chmod(0o755)
    assert source(checkout).tag not in (changed.tag, before.tag)


def test_outside_a_checkout_the_content_is_the_tag(checkout):
    shutil.rmtree(checkout.parent / ".git")
    assert len(source(checkout).tag) == 12


def test_a_folder_without_containerfile_is_refused(checkout):
    (checkout / "Containerfile").unlink()
    with pytest.raises(ConfigError, match=r"shop.yaml: build: .* has no Containerfile"):
        source(checkout)


def test_pip_is_configured_as_on_this_computer(monkeypatch, tmp_path):
    monkeypatch.setattr(builds.Path, "home", lambda: tmp_path)
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip/pip.conf").write_text("[global]\ntimeout = 99\ncert = /elsewhere\n[install]\nno-warn = yes\n")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example.org/simple")
    monkeypatch.setattr(builds, "CA_BUNDLE", tmp_path)
    text = builds._pip_configuration()
    assert "timeout = 99" in text
    assert "index-url = https://mirror.example.org/simple" in text
    assert f"cert = {builds._MOUNTED_CA}" in text
    assert "[install]\nno-warn = yes" in text


# --- the archive of a released image, on a machine and from its backup -----------------------------------------------


def test_an_archive_from_a_machine_comes_into_the_cache_and_does_not_become_the_current_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    archive = oci(tmp_path / "1.tar", "example.org/shop:v1")
    digest = archives.read(archive).digest
    image = images.receive(shop(), shutil.copy(archive, tmp_path / "copy.tar"), digest)
    assert image == images.find("shop", digest) == images.current("shop")
    assert (image.reference, image.revision) == ("example.org/shop:v1", "abc")
    other = oci(tmp_path / "2.tar", "example.org/shop:v0", user="1000:1000")
    images.receive(shop(), other, archives.read(other).digest)
    assert images.current("shop") == image


def test_an_archive_from_a_machine_must_be_the_image_that_was_released(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    good = oci(tmp_path / "1.tar", "example.org/shop:v1")
    digest = archives.read(good).digest
    changed = tmp_path / "2.tar"
    changed.write_bytes(good.read_bytes().replace(LAYER, LAYER[:-1] + b"x"))
    twice = tmp_path / "3.tar"
    shutil.copy(good, twice)
    with tarfile.open(twice, "a") as tar:  # which of the two a reader takes depends on the reader
        tar.addfile(tarfile.TarInfo("index.json"))
    with tarfile.open(twice, "a") as tar:
        tar.add(good, "index.json")
    for archive, wanted in ((changed, digest), (good, "sha256:" + "0" * 64), (twice, digest)):
        with pytest.raises(MinipcError, match=r"is not the image sha256|is not an OCI archive"):
            images.receive(shop(), archive, wanted)
    with pytest.raises(MinipcError, match=r"is named 'example.org/shop:v1', not example.org/other"):
        images.receive(shop(image="example.org/other"), good, digest)
    assert images.current("shop") is None


@pytest.mark.parametrize("where", ["index", "annotation", "spelling", "docker", "docker only"])
def test_an_archive_from_a_machine_brings_no_second_image_under_another_name(tmp_path, monkeypatch, where):
    """containerd would import the second one, too, under a name that a pod of another service runs."""
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    good, planted = oci(tmp_path / "1.tar", "example.org/shop:v1"), oci(tmp_path / "2.tar", "x:1", user="2000")
    digest, name = archives.read(good).digest, f"example.org/signed@sha256:{'1' * 64}"
    members = contents(planted) | contents(good)
    index, other = json.loads(members["index.json"]), json.loads(contents(planted)["index.json"])["manifests"][0]
    named = other | {"annotations": {"org.opencontainers.image.ref.name": name}}
    match where:
        case "index":
            members["index.json"] = index | {"manifests": [*index["manifests"], named]}
        case "annotation":
            index["manifests"][0]["annotations"]["io.containerd.image.name"] = name
            members["index.json"] = index
        case "spelling":
            members["./index.json"] = index | {"manifests": [named]}
        case "docker" | "docker only":
            members |= contents(docker(tmp_path / "3.tar", name))
    if where == "docker only":
        del members["oci-layout"]
    with pytest.raises(MinipcError, match="is not the image sha256"):
        images.receive(shop(), tar_of(tmp_path / "4.tar", members), digest)
    images.receive(shop(), tar_of(tmp_path / "5.tar", contents(planted) | contents(good)), digest)


def test_a_machine_keeps_the_released_archive_and_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "ON_MACHINE", str(tmp_path))
    (tmp_path / "shop").mkdir()
    one, two, three = ("1" * 64, "2" * 64, "3" * 64)

    def release(digest: str) -> list[str]:
        (tmp_path / "shop" / f"{digest}.tar").touch()
        subprocess.run(["sh", "-c", images.keep_script("shop", f"sha256:{digest}")], check=True)
        return sorted(path.stem for path in (tmp_path / "shop").glob("*.tar"))

    assert release(one) == [one]
    assert release(two) == [one, two]
    assert release(three) == [two, three]
    assert release(two) == [two, three]  # a rollback
    assert (tmp_path / "shop/released").read_text().split() == [two, three]
    subprocess.run(["sh", "-c", images.keep_script("shop", f"sha256:{one}")], check=True)
    assert (tmp_path / "shop/released").read_text().split() == [two, three], (
        "an image without an archive changes nothing"
    )


def test_only_digests_are_read_from_a_machine():
    lines = [f"shop/released {'a' * 64}", "odd/released $(id)", f"../x/released {'a' * 64}", "*/released "]
    assert ReleasedImages().process(lines) == {"shop": "sha256:" + "a" * 64}
