from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import minipc.artifacts
from minipc.artifacts.download import Downloader
from minipc.artifacts.errors import HashMismatchError
from minipc.artifacts.store import MIRROR_VARIABLE, OFFLINE_VARIABLE, Artifact
from minipc.core.errors import ConfigError, MinipcError, RefusedError
from tests.unit.artifacts_server import File, Server, serve
from tests.unit.artifacts_store import K3S, K3S_PATH, LOKI, MANIFEST, SUMS_PATH, Bench, publish, sha


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        publish(running)
        yield running


@pytest.fixture
def bench(tmp_path: Path, server: Server) -> Bench:
    return Bench(tmp_path / "bench", server.url)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OFFLINE_VARIABLE, raising=False)
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def test_a_first_download_is_verified_locked_and_reported(bench: Bench, server: Server) -> None:
    found = bench.store().resolve("k3s", "amd64")
    assert (found.origin, found.version, found.pinned_version) == ("locked", "v1.36.5+k3s1", "v1.36.5+k3s1")
    assert found.path == bench.root / "cache" / "sha256" / sha(K3S)
    assert found.path.read_bytes() == K3S
    assert (found.sha256, found.filename, found.why_missing) == (sha(K3S), "k3s", None)
    locked = bench.store().lock.entries()[("k3s", "amd64", "v1.36.5+k3s1")]
    assert (locked.sha256, locked.source) == (sha(K3S), f"{server.url}{SUMS_PATH}")
    assert ["artifacts.lock now contains" in line for line in bench.said] == [True]
    assert bench.names("partial") == []
    assert server.paths() == [SUMS_PATH, K3S_PATH]
    # A second use needs no network.
    assert bench.store().resolve("k3s", "amd64", fetch=False) == found
    assert (len(server.requests), len(bench.said)) == (2, 1)


def test_one_file_serves_all_architectures(bench: Bench) -> None:
    for arch in ("amd64", "arm64"):
        found = bench.store().resolve("manifest", arch)
        assert (found.origin, found.arch, found.sha256) == ("locked", "all", sha(MANIFEST))


def test_a_locked_hash_is_enforced_without_asking_the_publisher(bench: Bench, server: Server) -> None:
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    assert bench.store().resolve("loki", "amd64").sha256 == sha(LOKI)
    assert server.paths() == ["/loki.zip"]


@pytest.mark.parametrize("content", [b"!" + LOKI[1:], LOKI[:-1] + b"!", LOKI[:100], LOKI + b"!", b""])
def test_a_file_with_another_hash_is_refused(bench: Bench, server: Server, content: bytes) -> None:
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    server["/loki.zip"] = File(content)
    with pytest.raises(HashMismatchError, match=f"has sha256 {sha(content)}, artifacts.lock says {sha(LOKI)}"):
        bench.store().resolve("loki", "amd64")
    assert bench.names("sha256") == bench.names("partial") == []


@pytest.mark.parametrize("file", [File(K3S + b"!"), File(K3S, length=False, faults=[("cut", 100)])])
def test_a_file_that_contradicts_its_publisher_is_not_locked(bench: Bench, server: Server, file: File) -> None:
    server[K3S_PATH] = file
    with pytest.raises(HashMismatchError, match="it was not kept"):
        bench.store().resolve("k3s", "amd64")
    assert bench.names("sha256") == []
    assert not bench.store().lock.path.exists()


@pytest.mark.parametrize("damage", [False, True])
def test_an_interrupted_download_goes_on_later(bench: Bench, server: Server, damage: bool) -> None:
    """A damaged part, or one of a file that was replaced meanwhile, is not held against the publisher."""
    server[K3S_PATH] = File(K3S, faults=[("cut", 1000)])
    assert bench.store(Downloader(backoff_s=())).resolve("k3s", "amd64").origin == "missing"
    assert (bench.names("sha256"), bench.names("partial")) == ([], [sha(K3S)])
    if damage:
        (bench.root / "cache" / "partial" / sha(K3S)).write_bytes(b"?" * 1000)
    assert bench.store().resolve("k3s", "amd64").sha256 == sha(K3S)
    assert server.paths().count(K3S_PATH) == (3 if damage else 2)


def test_a_file_changed_in_the_cache_is_refused_on_every_use(bench: Bench) -> None:
    path = bench.store().resolve("k3s", "amd64").path
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(K3S.replace(b"program", b"pr0gram", 1))
    for fetch in (True, False):
        with pytest.raises(HashMismatchError, match=r"the cached file .* was changed"):
            bench.store().resolve("k3s", "amd64", fetch=fetch)
    path.unlink()
    assert bench.store().resolve("k3s", "amd64").origin == "locked"


def missing(found: Artifact) -> str:
    assert (found.origin, found.path, found.version, found.sha256) == ("missing", None, None, None)
    assert found.why_missing
    assert "\n" not in found.why_missing
    assert f"NOT EXERCISED: {found.why_missing}" in str(found)
    return found.why_missing


def test_what_cannot_be_obtained_is_missing_with_a_reason(
    bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def why(name: str, *, fetch: bool = True) -> str:
        return missing(bench.store().resolve(name, "amd64", fetch=fetch))

    assert why("k3s", fetch=False) == "not in the cache"
    assert "`minipc artifacts lock loki --sha256 …`" in why("loki")
    assert "`minipc artifacts fetch images`" in why("images")
    assert server.requests == []
    server[SUMS_PATH] = File(f"{sha(K3S)}  k3s-arm64\n".encode())
    assert "it does not name k3s" in why("k3s")
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    del server.files["/loki.zip"]
    assert why("loki").endswith("/loki.zip: HTTP 404 Not Found")
    monkeypatch.setenv(OFFLINE_VARIABLE, "1")
    assert OFFLINE_VARIABLE in why("k3s")
    assert server.paths() == [SUMS_PATH, "/loki.zip"]
    with pytest.raises(ConfigError, match="unknown artifact `grafana`"):
        why("grafana")


def test_an_unreachable_publisher_means_missing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", "https://nowhere.invalid")
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    assert "nowhere.invalid" in missing(bench.store().resolve("loki", "amd64"))
    reason = missing(bench.store().resolve("k3s", "amd64"))
    assert "the publisher's checksum file cannot be downloaded: nowhere.invalid" in reason


def test_a_mirror_serves_files_but_never_checksums(
    bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as mirror:
        mirror[f"/base{K3S_PATH}"] = File(K3S)
        bench.head = f'mirrors.hosts = {{ "127.0.0.1" = "{mirror.url}/base" }}\n'
        assert bench.store().resolve("k3s", "amd64").origin == "locked"
        assert (mirror.paths(), server.paths()) == ([f"/base{K3S_PATH}"], [SUMS_PATH])
        mirror["/install.yaml"] = File(b"something else")
        mirror["/install.yaml.sha256"] = File(f"{sha(b'something else')}\n".encode())
        monkeypatch.setenv(MIRROR_VARIABLE, mirror.url)
        with pytest.raises(HashMismatchError, match=mirror.url):
            bench.store().resolve("manifest", "amd64")


def test_a_mirror_with_a_password_is_refused_without_showing_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "https://user:hunter2@mirror.example")
    with pytest.raises(ConfigError, match="without user name and password") as caught:
        bench.store()
    assert "hunter2" not in str(caught.value)


def test_a_file_put_in_by_hand_is_used_until_it_is_forgotten(bench: Bench) -> None:
    assert bench.store().resolve("k3s", "amd64").origin == "locked"
    lock, own = bench.store().lock.path.read_bytes(), K3S + b"built here"
    added = bench.store().add("k3s", bench.file("my-k3s", own), "amd64", "v1.36.3+own")
    assert added == bench.store().resolve("k3s", "amd64")
    assert (added.origin, added.version, added.pinned_version) == ("local", "v1.36.3+own", "v1.36.5+k3s1")
    assert (added.sha256, added.filename) == (sha(own), "my-k3s")
    assert str(added) == "k3s v1.36.3+own (amd64): LOCAL file, pinned is v1.36.5+k3s1"
    record = json.loads((bench.root / "cache" / "local.json").read_text())["artifacts"][0]
    assert (record["origin"], record["sha256"]) == ("local", sha(own))
    assert bench.store().lock.path.read_bytes() == lock
    assert bench.store().forget("k3s", "amd64") is not None
    assert bench.store().resolve("k3s", "amd64").origin == "locked"
    assert bench.store().forget("k3s", "amd64") is None


def test_a_file_with_the_locked_hash_counts_as_the_pin(bench: Bench) -> None:
    file = bench.file("loki.zip", LOKI)
    assert bench.store().add("loki", file, "amd64").version == f"local-{sha(LOKI)[:12]}"
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    assert bench.store().resolve("loki", "amd64", fetch=False).origin == "locked"
    added = bench.store().add("loki", file, "amd64")
    assert (added.origin, added.version) == ("locked", "3.7.8")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("k3s", LOKI, "cannot replace k3s v1.36.5+k3s1 (amd64): its format is not elf"),
        ("k3s", K3S[:18] + b"\xb7" + K3S[19:], "a program for another architecture (ELF machine 183, amd64 is 62)"),
        ("loki", K3S, "its format is not zip"),
        ("images", b"", "its format is not tar"),
        ("manifest", K3S, "its format is not yaml"),
        ("manifest", b"", "its format is not yaml"),
    ],
)
def test_a_file_of_another_kind_is_refused(bench: Bench, name: str, content: bytes, problem: str) -> None:
    with pytest.raises(MinipcError) as caught:
        bench.store().add(name, bench.file("file", content), "amd64")
    assert problem in caught.value.what
    assert bench.names("sha256") == bench.names("partial") == []


def test_a_version_that_would_break_a_report_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="version: given 'a b', allowed: letters, digits"):
        bench.store().add("loki", bench.file("loki.zip", LOKI), "amd64", "a b")


def test_a_damaged_record_of_local_files_is_named(bench: Bench) -> None:
    bench.store().add("loki", bench.file("loki.zip", LOKI), "amd64")
    record = bench.root / "cache" / "local.json"
    for text, message in (
        (record.read_text().replace('"local"', '"locked"'), r"local\.json: artifacts\.0\.origin: given 'locked'"),
        ("{", r"local\.json is not valid JSON"),
    ):
        record.write_text(text)
        with pytest.raises(ConfigError, match=message):
            bench.store().resolve("loki", "amd64")


def test_a_locked_hash_is_never_replaced(bench: Bench, server: Server) -> None:
    store = bench.store()
    assert store.lock_hash("loki", "amd64", sha(LOKI)) is True
    assert store.lock_hash("loki", "amd64", sha(LOKI)) is False
    with pytest.raises(RefusedError):
        store.lock_hash("loki", "amd64", sha(K3S))
    assert store.lock_published(store.catalogue.find("k3s", "amd64")) is True
    assert server.paths() == [SUMS_PATH], "only the checksum file is downloaded"


def test_a_new_pin_keeps_the_old_file(bench: Bench) -> None:
    bench.store().resolve("manifest", "amd64")
    path = bench.root / "artifacts.toml"
    path.write_text(path.read_text().replace('version = "v3"', 'version = "v4"'))
    newer = minipc.artifacts.Store(catalogue=path, lock=bench.root / "artifacts.lock", cache=bench.root / "cache")
    assert newer.resolve("manifest", "amd64", fetch=False).origin == "missing"
    assert bench.names("sha256") == [sha(MANIFEST)]


def test_status(bench: Bench) -> None:
    store = bench.store()
    store.resolve("k3s", "amd64")
    store.add("loki", bench.file("loki.zip", LOKI), "amd64", "3.8.0")
    rows = {(row.name, row.arch): row for row in store.status()}
    k3s, arm, loki = rows["k3s", "amd64"], rows["k3s", "arm64"], rows["loki", "amd64"]
    assert (k3s.locked, k3s.cached, k3s.origin) == (True, True, "locked")
    assert (arm.locked, arm.cached, arm.origin) == (False, False, "missing")
    assert (loki.locked, loki.cached, loki.origin, loki.version) == (False, True, "local", "3.8.0")


def _resolve_elsewhere(root: Path, url: str) -> str:
    return Bench(root, url).store().resolve("k3s", "amd64").origin


def test_threads_and_processes_that_want_the_same_file_download_it_once(bench: Bench, server: Server) -> None:
    server[K3S_PATH] = File(K3S, delay=0.2)
    store, found = bench.store(), []
    threads = [threading.Thread(target=lambda: found.append(store.resolve("k3s", "amd64"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found_elsewhere = pool.apply(_resolve_elsewhere, (bench.root, server.url))
    for thread in threads:
        thread.join()
    assert ([each.sha256 for each in found], found_elsewhere) == ([sha(K3S)] * 4, "locked")
    assert server.paths().count(K3S_PATH) == len(bench.said) == 1


def test_a_deploy_uses_this_checkout_and_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path))
    found = minipc.artifacts.resolve("k3s", "amd64", fetch=False)
    assert found.origin == "missing"
    assert found.pinned_version.startswith("v1.")
    assert (tmp_path / "artifacts" / "sha256").is_dir()
