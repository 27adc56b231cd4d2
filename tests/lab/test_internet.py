"""Upstream files and images from the internet, which the lab plays: release hosts, checksum files and registries.

A clean clone with an empty cache runs `minipc artifacts fetch` as a person does. Nothing but the two standard variables
HTTPS_PROXY and SSL_CERT_FILE leads it to the lab.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from minipc.artifacts import own_arch
from minipc.artifacts.catalogue import Pin
from minipc.artifacts.lock import rendered
from minipc.artifacts.store import OFFLINE_VARIABLE
from minipc.core.errors import CouldNotVerifyError, MinipcError
from minipc.core.files import sha256_of
from minipc.core.paths import ROOT, state_dir
from minipc.secrets.generate import alphanumeric
from minipc.services import registry
from rehearsal import lab, publishers
from rehearsal.doubles.container_registry import write_image
from rehearsal.doubles.internet import Answer
from rehearsal.publishers import Publishers
from rehearsal.second_controller import clone

ARCH = own_arch()
CLONE = "clone"


@dataclass(frozen=True)
class Done:
    """A finished command: exit code and everything it printed."""

    code: int
    output: str


@dataclass
class Controller:
    """A computer with a clean clone and an empty artifact cache."""

    clone: Path
    home: Path
    published: Publishers

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def fetch(self, *names: str, accept: int = 0, **variables: str) -> Done:
        """Run `minipc artifacts fetch`; with `accept` on a terminal, where that many files are accepted."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(self.clone)}
        environment |= {"MINIPC_CACHE_DIR": str(self.cache), "COLUMNS": "200"}
        argv = [sys.executable, "-m", "minipc.cli.main", "artifacts", "fetch", *names]
        writing, reading = pty.openpty()
        os.write(writing, b"y\n" * accept)
        with os.fdopen(writing, "wb"), os.fdopen(reading, "rb") as terminal:
            done = subprocess.run(
                argv,
                cwd=self.clone,
                env=environment | self.published.internet.environment() | variables,
                stdin=terminal if accept else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=240,
            )
        return Done(done.returncode, done.stdout)

    def rehearse(self, *words: str, **variables: str) -> Done:
        """Run `minipc rehearse` with what is in the cache, among the machines of this computer's lab."""
        environment = os.environ | {"PYTHONPATH": str(self.clone), "MINIPC_CACHE_DIR": str(self.cache)}
        environment |= {"MINIPC_STATE_DIR": str(state_dir()), **variables}
        done = subprocess.run(
            [sys.executable, "-m", "minipc.cli.main", "rehearse", "--offline", *words],
            cwd=self.clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2300,
        )
        return Done(done.returncode, done.stdout)

    def lose_the_cache(self) -> None:
        """Use an empty cache from now on."""
        self.home = self.home.with_name(f"{self.home.name}-2")
        self.home.mkdir()

    def path(self, name: str) -> Path:
        """Return where the locked file of an artifact is in the cache."""
        lock = (self.clone / "artifacts.lock").read_text()
        (block,) = [each for each in lock.split("[[artifact]]") if f'name = "{name}"\n' in each]
        return self.cache / "artifacts/sha256" / block.partition('sha256 = "')[2][:64]


@pytest.fixture(scope="module")
def published(lab_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publishers]:
    folder = tmp_path_factory.mktemp("internet")
    clone(ROOT, folder / CLONE)
    try:
        with publishers.serve(folder, folder / CLONE) as served:
            yield served
    except MinipcError as error:
        pytest.skip(f"NOT EXERCISED: {error}")


@pytest.fixture
def controller(published: Publishers, tmp_path: Path) -> Iterator[Controller]:
    """Return a controller that has no file and no hash. What a test changes at the publishers is put right again."""
    root, internet, tokens = published.registry.folder.parent / CLONE, published.internet, published.tokens
    pins = (root / "artifacts.toml").read_text()
    (root / "artifacts.lock").write_text(rendered([]))
    home = tmp_path / "home"
    home.mkdir()
    files, life_s = dict(internet.files), tokens.life_s
    internet.seen.clear()
    yield Controller(root, home, published)
    internet.files = files
    internet.faults.clear()
    tokens.life_s = life_s
    (root / "artifacts.toml").write_text(pins)


def pins_of(published: Publishers) -> set[Pin]:
    """Return the pins for this computer."""
    return {published.catalogue.find(pin.name, ARCH) for pin in published.catalogue.pins}


def pin_of(controller: Controller, name: str) -> Pin:
    return controller.published.catalogue.find(name, ARCH)


def stored(controller: Controller, name: str) -> str:
    """Return the address at which the bytes of a release file are, after the redirect."""
    internet, url = controller.published.internet, str(pin_of(controller, name).url)
    return internet.redirects.get(url, url).partition("?")[0]


def test_everything_is_downloaded_and_pulled_into_an_empty_cache(controller: Controller) -> None:
    published = controller.published
    done = controller.fetch(accept=2)
    assert done.code == 0, done.output
    for pin in pins_of(published):
        assert f"{pin}: as locked" in done.output
        if pin.url:
            content = published.internet.files[stored(controller, pin.name)]
            assert isinstance(content, Path)
            assert controller.path(pin.name).name == sha256_of(content)
        if pin.checksums:
            assert f"({pin.checksums})" in done.output, "the hash is the publisher's"
    with tarfile.open(controller.path("argocd-images")) as tar:
        index = json.loads(tar.extractfile("index.json").read())
    names = [each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]]
    assert names == published.images
    contacted = {urlsplit(request.url).hostname for request in published.internet.seen}
    assert contacted == published.internet.hosts, "every host took part, and no other was asked for"
    assert not list((controller.cache / "artifacts/partial").iterdir())

    # The other way: what is in the cache needs no network.
    published.internet.seen.clear()
    done = controller.fetch(**{OFFLINE_VARIABLE: "1"})
    assert (done.code, published.internet.seen) == (0, []), done.output


@pytest.mark.long
@pytest.mark.timeout(2400, func_only=True)
def test_a_machine_is_set_up_lost_and_rebuilt_with_what_was_downloaded(controller: Controller) -> None:
    """No file is put in by hand, and the service is not the reference. Loki is used if it was published."""
    published = controller.published
    real = sorted({pin.name for pin in pins_of(published)} - set(published.generated))
    missing = {"k3s", "k3s-images", "argocd-manifest", "argocd-images"} - set(real)
    if missing:
        pytest.skip(f"NOT EXERCISED: this computer's cache lacks {', '.join(sorted(missing))}")
    done = controller.fetch(*real, accept=len(real))
    assert done.code == 0, done.output
    name = f"online-{os.getpid()}"
    try:
        done = controller.rehearse("--runtime", "k3s", "--name", name, MINIPC_SERVICES="examples/parkday/services")
    finally:
        lab.down([name, f"{name}-2", f"offsite-{name}"])
    assert done.code == 0, done.output[-4000:]
    written = re.search(r"Record\s+(\S+)", done.output)
    assert written, done.output[-4000:]
    record = json.loads((controller.clone / written[1]).read_text())
    assert record["runtime"] == "k3s"
    used = {each["name"]: each["origin"] for each in record["artifacts"]}
    assert {name: used.get(name) for name in real} == dict.fromkeys(real, "locked")


def test_an_offline_controller_with_an_empty_cache_connects_to_nothing(controller: Controller) -> None:
    done = controller.fetch(**{OFFLINE_VARIABLE: "1"})
    assert done.code == 4
    said = done.output.count(f"NOT EXERCISED: not in the cache, and {OFFLINE_VARIABLE} is set")
    assert said == len(pins_of(controller.published)), done.output
    assert controller.published.internet.seen == []


def test_a_download_that_is_cut_goes_on_where_it_stopped(controller: Controller) -> None:
    internet, address = controller.published.internet, stored(controller, "loki")
    content = internet.files[address]
    half = Answer(content=content).size // 2
    internet.faults[address] = [Answer(content=content, cut_after=half)]
    done = controller.fetch("loki")
    assert done.code == 0, done.output
    ranges = [each.headers.get("Range") for each in internet.seen if each.url.startswith(address)]
    assert ranges == [None, f"bytes={half}-"]


def test_a_file_that_its_checksum_file_contradicts_is_not_kept(controller: Controller) -> None:
    internet, pin = controller.published.internet, pin_of(controller, "loki")
    internet.files[str(pin.checksums)] = f"{'0' * 64}  {pin.filename}\n".encode()
    done = controller.fetch("loki")
    assert done.code == 1
    assert f"{pin.checksums} says {'0' * 64}; it was not kept" in done.output
    assert "compare with the publisher's announcement" in done.output
    assert not list((controller.cache / "artifacts/sha256").iterdir())
    internet.files[str(pin.checksums)] = f"{'0' * 64}  another.zip\n".encode()
    done = controller.fetch("loki")
    assert (done.code, f"it does not name {pin.filename}" in done.output) == (4, True), done.output


def test_a_file_that_its_publisher_changed_is_refused(controller: Controller) -> None:
    assert controller.fetch("loki").code == 0
    controller.lose_the_cache()
    internet, pin = controller.published.internet, pin_of(controller, "loki")
    internet.files[stored(controller, "loki")] = b"PK\x03\x04 another file of the same version"
    internet.files[str(pin.checksums)] = f"{'1' * 64}  {pin.filename}\n".encode()
    done = controller.fetch("loki")
    assert done.code == 1
    assert "artifacts.lock says" in done.output, done.output
    assert "it was not kept" in done.output


def test_a_version_that_is_not_published_is_named(controller: Controller) -> None:
    publishers.change_pins(controller.clone, {"loki": "0.0.0"})
    done = controller.fetch("loki")
    assert done.code == 4
    assert "NOT EXERCISED: no hash is locked, and the publisher's checksum file cannot be downloaded" in done.output
    assert "0.0.0/SHA256SUMS: HTTP 404 Not Found" in done.output


def test_a_limited_rate_and_a_failing_server_are_waited_for(controller: Controller) -> None:
    internet, address = controller.published.internet, stored(controller, "loki")
    sums = str(pin_of(controller, "loki").checksums)
    internet.faults[sums] = [Answer(429, {"Retry-After": "2"})]
    internet.faults[address] = [Answer(502)]
    done = controller.fetch("loki")
    assert (done.code, internet.faults) == (0, {sums: [], address: []}), done.output


def test_a_server_that_keeps_failing_is_named(controller: Controller) -> None:
    internet, pin = controller.published.internet, pin_of(controller, "loki")
    internet.faults[str(pin.checksums)] = [Answer(503)] * 4
    done = controller.fetch("loki")
    host = urlsplit(str(pin.checksums)).hostname
    assert (done.code, f"{host}: HTTP 503 Service Unavailable" in done.output) == (4, True), done.output


@pytest.fixture
def small(controller: Controller, tmp_path: Path) -> str:
    """Publish a manifest that names one small image, by tag and by digest. Return the image's name without a tag."""
    published = controller.published
    image = f"{published.images[0].split('/', 1)[0]}/lab/small"
    digest = write_image(tmp_path / "layout", ARCH, str(tmp_path))
    published.push(tmp_path / "layout", f"{image}:v1")
    publish(controller, f"{image}:v1", f"{image}@{digest}")
    return image


def publish(controller: Controller, *images: str) -> None:
    """Publish a manifest that names these images."""
    manifest = "".join(f"      - image: {image}\n" for image in images).encode()
    controller.published.internet.files[stored(controller, "argocd-manifest")] = manifest


def fetch_images(controller: Controller) -> Done:
    return controller.fetch("argocd-manifest", "argocd-images", accept=2)


def test_an_image_is_pulled_by_tag_and_by_digest(controller: Controller, small: str) -> None:
    done = fetch_images(controller)
    assert (done.code, done.output.count("as locked")) == (0, 2), done.output
    # The tag moves. What was locked is refused, because the archive would be another one.
    locked = controller.path("argocd-images").name
    controller.lose_the_cache()
    layout = controller.home / "layout"
    write_image(layout, ARCH, "planted")
    controller.published.push(layout, f"{small}:v1")
    done = controller.fetch("argocd-manifest", "argocd-images")
    assert (done.code, f"artifacts.lock says {locked}; it was not kept" in done.output) == (1, True), done.output


def test_an_image_that_was_changed_under_its_digest_is_refused(controller: Controller, small: str) -> None:
    manifest = controller.published.internet.files[stored(controller, "argocd-manifest")]
    assert isinstance(manifest, bytes)
    digest = manifest.decode().strip().rpartition("@")[2]
    publish(controller, f"{small}@{digest}")
    blob = controller.published.registry.blob(digest)
    before = blob.read_bytes()
    blob.write_bytes(before.replace(b'"layers": [', b'"layers":  ['))
    done = fetch_images(controller)
    blob.write_bytes(before)
    assert (done.code, "does not match provided manifest digest" in done.output) == (4, True), done.output


def test_a_missing_tag_is_named(controller: Controller, small: str) -> None:
    publish(controller, f"{small}:v9")
    done = fetch_images(controller)
    assert done.code == 4
    assert f"{small}:v9 cannot be pulled" in done.output
    assert "manifest unknown" in done.output


def test_an_expired_token_is_named(controller: Controller, small: str) -> None:
    controller.published.tokens.life_s = -300
    done = fetch_images(controller)
    assert done.code == 4
    assert f"{small}:v1 cannot be pulled" in done.output
    assert "authentication required" in done.output or "unauthorized" in done.output, done.output


def limit(host: str, times: int) -> dict[str, list[Answer]]:
    """Return what a registry answers that limits the rate of requests."""
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "too many requests"}]}'
    return {host: [Answer(429, {"Retry-After": "1", "Content-Type": "application/json"}, body)] * times}


def test_a_registry_that_limits_the_rate_is_waited_for(controller: Controller, small: str) -> None:
    controller.published.internet.faults |= limit(small.split("/", 1)[0], 2)
    done = fetch_images(controller)
    assert (done.code, done.output.count("as locked")) == (0, 2), done.output


def test_a_registry_that_keeps_limiting_the_rate_is_named(controller: Controller, small: str) -> None:
    controller.published.internet.faults |= limit(small.split("/", 1)[0], 50)
    done = fetch_images(controller)
    assert (done.code, "too many requests" in done.output) == (4, True), done.output


@pytest.fixture
def settings(controller: Controller, small: str, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return settings with a login at the registry of the small image, for what asks it from this process."""
    published = controller.published
    for name, value in published.internet.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(published.tokens.logins, "you", alphanumeric())
    token = SimpleNamespace(reveal=lambda: published.tokens.logins["you"])
    monkeypatch.setattr(registry.secrets, "load", lambda _, names: dict.fromkeys(names, token))
    login = SimpleNamespace(name="test", host=small.split("/", 1)[0], username="you")
    return SimpleNamespace(environment="lab", k3s=SimpleNamespace(registries=[login]), token=token)


def test_a_private_image_needs_a_login_that_has_not_expired(
    controller: Controller, small: str, settings: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, image = controller.published, f"{small.split('/', 1)[0]}/you/shop"
    digest = write_image(tmp_path / "private", ARCH, "private")
    published.push(tmp_path / "private", f"{image}:v1")
    monkeypatch.setattr(published.tokens, "private", ("you/",))
    assert registry.digest_of(settings, image, "v1", ARCH) == digest
    settings.token.reveal = lambda: "expired"
    with pytest.raises(MinipcError, match="refuses the login") as caught:
        registry.digest_of(settings, image, "v1", ARCH)
    assert "expired" not in str(caught.value).replace("wrong or expired", ""), "the token is not shown"
    settings.k3s.registries.clear()
    with pytest.raises(MinipcError, match="refuses the login"):
        registry.digest_of(settings, image, "v1", ARCH)


def test_a_limited_rate_could_not_be_verified(controller: Controller, small: str, settings: SimpleNamespace) -> None:
    controller.published.internet.faults |= limit(small.split("/", 1)[0], 50)
    with pytest.raises(CouldNotVerifyError, match="limits the rate"):
        registry.digest_of(settings, small, "v1", ARCH)
