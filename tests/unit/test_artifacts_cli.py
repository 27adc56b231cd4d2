from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from minipc.artifacts.errors import UnobtainableError
from minipc.cli import artifacts
from minipc.core.errors import MinipcError
from tests.unit.artifacts_server import Server, serve
from tests.unit.artifacts_store import K3S, LOKI, Bench, publish, sha


class Cli:
    """`minipc artifacts` on a bench."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        monkeypatch.setattr(artifacts, "default_store", bench.store)

    def __call__(self, *arguments: str | Path) -> Result:
        return CliRunner().invoke(artifacts.artifacts, [str(argument) for argument in arguments])


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        publish(running)
        yield running


@pytest.fixture
def run(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(Bench(tmp_path / "bench", server.url), monkeypatch)


def test_list_shows_pin_hash_cache_and_origin(run: Cli) -> None:
    run.bench.store().resolve("k3s", "amd64")
    run.bench.store().add("loki", run.bench.file("loki.zip", LOKI), "amd64", "3.8.0")
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "ARCH", "PINNED", "LOCKED", "CACHED", "ORIGIN"]
    assert lines[1].split() == ["k3s", "amd64", "v1.36.5+k3s1", "yes", "yes", "locked"]
    assert lines[2].split() == ["k3s", "arm64", "v1.36.5+k3s1", "no", "no", "missing"]
    assert lines[3].split() == ["loki", "amd64", "3.7.8", "no", "yes", "LOCAL", "3.8.0"]


def test_list_for_programs(run: Cli) -> None:
    rows = json.loads(run("list", "--json").stdout)
    assert rows[0] == {
        "name": "k3s",
        "arch": "amd64",
        "component": "k3s",
        "pinned_version": "v1.36.5+k3s1",
        "version": "v1.36.5+k3s1",
        "locked": False,
        "cached": False,
        "origin": "missing",
    }


def test_fetch_of_what_can_be_had_succeeds(run: Cli) -> None:
    result = run("fetch", "k3s", "manifest", "--arch", "amd64")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["k3s v1.36.5+k3s1 (amd64): as locked", "manifest v3 (all): as locked"]


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_file_without_checksums_is_shown_and_locked_only_if_a_person_accepts_it(
    run: Cli, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    store = run.bench.store()
    command = click.Command("ask", callback=lambda: artifacts.accept_unlocked(store, store.catalogue.pins))
    result = CliRunner().invoke(command, input=f"{answer}\n", catch_exceptions=False)
    assert f"{len(LOKI)} bytes, sha256 {sha(LOKI)}" in result.stdout
    found = run.bench.store().resolve("loki", "amd64")
    assert (found.sha256, run.bench.names("partial")) == (sha(LOKI) if answer == "y" else None, [])
    if answer == "y":
        assert "accepted by a person" in run.bench.store().lock.entries()[("loki", "amd64", "3.7.8")].source
        assert [pin.name for pin in store.unlocked()] == ["images"]
        assert "images v3 (amd64): the manifest names no image" in result.stderr


def test_fetch_of_everything_names_what_could_not_be_had(run: Cli) -> None:
    result = run("fetch", "--arch", "amd64")
    assert result.exit_code == 4
    assert "images v3 (amd64): NOT EXERCISED: no hash is locked" in result.stdout
    assert "2 files of 4 cannot be obtained now" in result.stderr


def test_fetch_for_both_architectures_asks_once_for_a_common_file(run: Cli, server: Server) -> None:
    result = run("fetch", "manifest", "--arch", "both")
    assert result.stdout.splitlines() == ["manifest v3 (all): as locked"]


def test_fetch_of_an_unknown_file_is_an_error(run: Cli) -> None:
    assert isinstance(run("fetch", "k33s").exception, MinipcError)


def test_lock_by_hand(run: Cli) -> None:
    for answer in ("loki (amd64): locked\n", "loki (amd64): already locked\n"):
        result = run("lock", "loki", "--arch", "amd64", "--sha256", sha(LOKI).upper())
        assert (result.exit_code, result.stdout) == (0, answer)
    assert run.bench.store().lock.entries()[("loki", "amd64", "3.7.8")].sha256 == sha(LOKI)


def test_lock_from_the_publishers_downloads_no_file(run: Cli, server: Server) -> None:
    result = run("lock", "--arch", "amd64")
    assert result.exit_code == 4
    assert "k3s v1.36.5+k3s1 (amd64): locked as stated by http://127" in result.stdout
    assert "loki 3.7.8 (amd64): NOT LOCKED: no hash is locked and the publisher has no checksum" in result.stderr
    assert {request.path.rpartition("/")[2] for request in server.requests} == {"sums", "install.yaml.sha256"}
    assert "already locked" in run("lock", "k3s", "--arch", "amd64").stdout


@pytest.mark.parametrize(
    "arguments", [("lock", "--sha256", "0" * 64), ("lock", "loki", "--sha256", "0" * 64, "--arch", "both")]
)
def test_a_hash_is_for_one_file(run: Cli, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_add_and_forget(run: Cli) -> None:
    file = run.bench.file("own", K3S)
    assert "LOCAL file, pinned is v1.36.5" in run("add", "k3s", file, "--version", "v1", "--arch", "amd64").stdout
    assert run("forget", "k3s", "--arch", "amd64").stdout == "k3s (amd64): no longer uses v1\n"
    assert run("forget", "k3s", "--arch", "amd64").stdout == "k3s (amd64): has no local file\n"
    assert run("add", "k3s", file, "--arch", "both").exit_code == 2
    assert run("add", "k3s", file.with_name("gone")).exit_code == 2


def test_path_of_what_is_there(run: Cli) -> None:
    assert isinstance(run("path", "k3s", "--arch", "amd64").exception, UnobtainableError)
    run("fetch", "k3s", "--arch", "amd64")
    assert Path(run("path", "k3s", "--arch", "amd64").stdout.strip()).read_bytes() == K3S


@pytest.mark.parametrize("group", ["offline-set", "bundle"], ids=["present name", "old name"])
def test_offline_set(run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    run("fetch", "--arch", "amd64")
    usb = tmp_path / "usb.tar"
    created = run(group, "create", usb, "--arch", "amd64")
    assert created.exit_code == 4
    assert f"wrote {usb}" in created.stdout
    assert "2 files of 4" in created.stderr
    other = Bench(tmp_path / "other", "https://nowhere.invalid")
    other.store().lock.path.write_bytes(run.bench.store().lock.path.read_bytes())
    imported = Cli(other, monkeypatch)(group, "import", usb)
    assert (imported.exit_code, imported.stdout.splitlines()) == (
        0,
        ["k3s v1.36.5+k3s1 (amd64): as locked", "manifest v3 (all): as locked"],
    )
