from __future__ import annotations

from pathlib import Path

import pytest

from minipc.artifacts.catalogue import Mirrors, load_catalogue
from minipc.artifacts.lock import Lock, rendered
from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT

VALID = """\
schema = 1

[artifacts.k3s]
version = "v1.0+k3s1"
component = "k3s"
what = "K3s"
format = "elf"
files.amd64 = { url = "https://example.org/{version}/k3s", checksums = "https://example.org/{version}/sums" }
files.arm64 = { url = "https://example.org/{version}/k3s-arm64" }

[artifacts.manifest]
version = "v3"
component = "argocd"
what = "manifest"
format = "yaml"
files.all.url = "https://example.org/install.yaml"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "artifacts.toml"
    path.write_text(text)
    return path


def test_reads_addresses_with_the_version_percent_encoded(tmp_path: Path) -> None:
    pin = load_catalogue(write(tmp_path, VALID)).find("k3s", "amd64")
    assert pin.url == "https://example.org/v1.0%2Bk3s1/k3s"
    assert pin.checksums == "https://example.org/v1.0%2Bk3s1/sums"
    assert pin.filename == "k3s"


def test_one_file_can_serve_every_architecture(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path, VALID))
    assert catalogue.find("manifest", "amd64") is catalogue.find("manifest", "arm64")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "artifacts.toml: schema: given 2, allowed: 1"),
        ('what = "K3s"', 'what = "K3s"\nwat = 1', "artifacts.toml: artifacts.k3s.wat: unknown key"),
        ('version = "v3"\n', "", "artifacts.toml: artifacts.manifest.version: missing; it is REQUIRED"),
        ('version = "v3"', "version = 3", "artifacts.manifest.version: given 3, allowed: input should be a valid str"),
        ('version = "v3"', 'version = "../v3"', "version: given '../v3', allowed: letters, digits and .+_~-"),
        ('format = "yaml"', 'format = "yml"', "format: given 'yml', allowed: 'elf', 'zip', 'tar', 'tar.gz'"),
        ("files.arm64", "files.riscv", "artifacts.k3s.files.riscv.[key]: given 'riscv', allowed: 'amd64', 'arm64'"),
        ("https://example.org/install", "http://example.org/install", "allowed: an https address"),
        ("https://example.org/install", "ftp://example.org/install", "allowed: an https address"),
        ("https://example.org/install", "https:///install", "allowed: an https address"),
        ('files.all.url = "https://example.org/install.yaml"', "files.all = {}", "artifacts.manifest: given"),
        ("[artifacts.manifest]", "[artifacts.k3s]", "is not valid TOML"),
    ],
)
def test_names_file_key_given_and_allowed(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in VALID
    with pytest.raises(ConfigError) as caught:
        load_catalogue(write(tmp_path, VALID.replace(old, new)))
    assert message in caught.value.what
    assert "artifacts.toml" in caught.value.what


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"artifacts\.toml is missing"):
        load_catalogue(tmp_path / "artifacts.toml")


def test_an_unknown_artifact_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown artifact `k33s`") as caught:
        load_catalogue(write(tmp_path, VALID)).find("k33s", "amd64")
    assert caught.value.next_step == "did you mean `k3s`?"


def test_an_architecture_without_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file for architecture `riscv64`; it has: amd64, arm64"):
        load_catalogue(write(tmp_path, VALID)).find("k3s", "riscv64")


def test_a_mirror_replaces_scheme_and_host_and_keeps_the_path() -> None:
    mirrors = Mirrors.model_validate(
        {"all": "https://all.example/base/", "hosts": {"github.com": "http://127.0.0.1:8080"}}
    )
    assert mirrors.apply("https://github.com/a/b%2Bc") == "http://127.0.0.1:8080/a/b%2Bc"
    assert mirrors.apply("https://example.org/x?y=1") == "https://all.example/base/x?y=1"
    assert Mirrors().apply("https://example.org/x") == "https://example.org/x"


@pytest.mark.parametrize(
    "address", ["http://mirror.example", "https://user:secret@mirror.example", "https://user@mirror.example", "mirror"]
)
def test_a_mirror_must_be_protected_and_without_credentials(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"mirrors\.all"):
        load_catalogue(write(tmp_path, f'mirrors.all = "{address}"\n{VALID}'))


def test_the_committed_list_pins_everything_for_both_architectures() -> None:
    catalogue = load_catalogue(ROOT / "artifacts.toml")
    names = {pin.name for pin in catalogue.pins}
    assert names == {"k3s", "k3s-images", "argocd-manifest", "argocd-images", "loki", "grafana"}
    for name in names:
        for arch in ("amd64", "arm64"):
            assert catalogue.find(name, arch).name == name
    assert catalogue.find("k3s", "amd64").version == catalogue.find("k3s-images", "amd64").version
    assert catalogue.find("argocd-manifest", "amd64").version == catalogue.find("argocd-images", "amd64").version


def test_the_committed_lock_is_in_its_canonical_form(tmp_path: Path) -> None:
    lock = Lock(ROOT / "artifacts.lock", tmp_path / "guard")
    assert lock.path.read_text() == rendered(list(lock.entries().values()))


def test_what_the_committed_lock_holds_for_the_pins_is_from_the_publishers_addresses(tmp_path: Path) -> None:
    lock = Lock(ROOT / "artifacts.lock", tmp_path / "guard")
    locked = {pin: lock.find(pin) for pin in load_catalogue(ROOT / "artifacts.toml").pins}
    assert any(locked.values())
    assert all(entry is None or entry.url == pin.url for pin, entry in locked.items())
