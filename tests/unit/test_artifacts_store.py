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
from minipc.errors import ConfigError, MinipcError, RefusedError
from tests.unit.artifacts_server import File, Server, make_trust, serve
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


def partials(bench: Bench) -> list[str]:
    return sorted(path.name for path in (bench.root / "cache" / "partial").iterdir())


def objects(bench: Bench) -> list[str]:
    return sorted(path.name for path in (bench.root / "cache" / "sha256").iterdir())


def test_a_first_fetch_is_verified_locked_and_said(bench: Bench, server: Server) -> None:
    found = bench.store().resolve("k3s", "amd64")
    assert (found.origin, found.version, found.pinned_version) == ("locked", "v1.36.5+k3s1", "v1.36.5+k3s1")
    assert found.path == bench.root / "cache" / "sha256" / sha(K3S)
    assert found.path.read_bytes() == K3S
    assert (found.sha256, found.filename, found.why_missing) == (sha(K3S), "k3s", None)
    locked = bench.store().lock.entries()[("k3s", "amd64", "v1.36.5+k3s1")]
    assert (locked.sha256, locked.source) == (sha(K3S), f"{server.url}{SUMS_PATH}")
    assert len(bench.said) == 1
    assert "artifacts.lock now holds" in bench.said[0]
    assert partials(bench) == []


def test_a_second_use_needs_no_network_and_writes_nothing(bench: Bench, server: Server) -> None:
    bench.store().resolve("k3s", "amd64")
    requests, lock = len(server.requests), (bench.root / "artifacts.lock").stat()  # reading may change its access time
    assert bench.store().resolve("k3s", "amd64").origin == "locked"
    assert len(server.requests) == requests
    after = (bench.root / "artifacts.lock").stat()
    assert (after.st_ino, after.st_mtime_ns) == (lock.st_ino, lock.st_mtime_ns)
    assert len(bench.said) == 1


def test_a_bare_hash_and_one_file_for_all_architectures(bench: Bench) -> None:
    for arch in ("amd64", "arm64"):
        found = bench.store().resolve("manifest", arch)
        assert (found.origin, found.arch) == ("locked", "all")
        assert found.path is not None
        assert found.path.read_bytes() == MANIFEST


def test_a_locked_hash_is_enforced_without_asking_the_publisher(bench: Bench, server: Server) -> None:
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    assert bench.store().resolve("loki", "amd64").sha256 == sha(LOKI)
    assert [request.path for request in server.requests] == ["/loki.zip"]


@pytest.mark.parametrize("position", [0, len(LOKI) // 2, len(LOKI) - 1])
def test_one_changed_byte_is_refused(bench: Bench, server: Server, position: int) -> None:
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    changed = bytearray(LOKI)
    changed[position] ^= 1
    server["/loki.zip"] = File(bytes(changed))
    with pytest.raises(HashMismatchError, match=f"has sha256 {sha(bytes(changed))}, artifacts.lock says {sha(LOKI)}"):
        bench.store().resolve("loki", "amd64")
    assert (objects(bench), partials(bench)) == ([], [])


def test_a_file_that_is_not_what_its_publisher_says_is_refused_and_not_locked(bench: Bench, server: Server) -> None:
    server[K3S_PATH] = File(K3S + b"!")
    with pytest.raises(HashMismatchError, match="it was not kept"):
        bench.store().resolve("k3s", "amd64")
    assert objects(bench) == []
    assert not (bench.root / "artifacts.lock").exists()


def test_a_file_cut_short_without_a_length_is_refused(bench: Bench, server: Server) -> None:
    server[K3S_PATH] = File(K3S, length=False, faults=[("cut", 100)])
    with pytest.raises(HashMismatchError):
        bench.store().resolve("k3s", "amd64")


def test_a_damaged_partial_file_is_not_held_against_the_publisher(bench: Bench, server: Server) -> None:
    server[K3S_PATH] = File(K3S, faults=[("cut", 1000)])
    assert bench.store(Downloader(backoff=())).resolve("k3s", "amd64").origin == "missing"
    partial = bench.root / "cache" / "partial" / "k3s_v1.36.5+k3s1_amd64"
    partial.write_bytes(b"?" * partial.stat().st_size)
    assert bench.store().resolve("k3s", "amd64").sha256 == sha(K3S)


def test_nothing_is_at_its_final_name_before_it_is_whole(bench: Bench, server: Server) -> None:
    server[K3S_PATH] = File(K3S, faults=[("cut", 1000)])
    bench.store(Downloader(backoff=())).resolve("k3s", "amd64")
    assert objects(bench) == []
    assert partials(bench) == ["k3s_v1.36.5+k3s1_amd64", "k3s_v1.36.5+k3s1_amd64.json"]


def test_a_file_changed_in_the_cache_is_refused_on_every_use(bench: Bench) -> None:
    path = bench.store().resolve("k3s", "amd64").path
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(K3S.replace(b"program", b"pr0gram", 1))
    for fetch in (True, False):
        with pytest.raises(HashMismatchError, match=r"the cached file .* was changed"):
            bench.store().resolve("k3s", "amd64", fetch=fetch)


def test_a_file_of_the_cache_that_is_gone_is_fetched_again(bench: Bench) -> None:
    path = bench.store().resolve("k3s", "amd64").path
    assert path is not None
    path.unlink()
    assert bench.store().resolve("k3s", "amd64").origin == "locked"
    assert len(bench.said) == 1


def missing(found: Artifact) -> str:
    assert (found.origin, found.path, found.version, found.sha256) == ("missing", None, None, None)
    assert found.why_missing
    assert "\n" not in found.why_missing
    assert f"NOT EXERCISED: {found.why_missing}" in str(found)
    return found.why_missing


def test_what_the_publisher_no_longer_has_is_missing(bench: Bench, server: Server) -> None:
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    del server.files["/loki.zip"]
    assert missing(bench.store().resolve("loki", "amd64")).endswith("/loki.zip: HTTP 404 Not Found")


def test_an_unreachable_publisher_means_missing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", "https://nowhere.invalid")
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    assert "nowhere.invalid" in missing(bench.store().resolve("loki", "amd64"))
    assert "the publisher's checksum file can't be had: nowhere.invalid" in missing(
        bench.store().resolve("k3s", "amd64")
    )


def test_without_hash_and_checksum_file_it_asks_for_a_lock_by_hand(bench: Bench, server: Server) -> None:
    assert "`minipc artifacts lock loki --sha256 …`" in missing(bench.store().resolve("loki", "amd64"))
    assert server.requests == []


def test_a_checksum_file_that_does_not_name_the_file_is_no_proof(bench: Bench, server: Server) -> None:
    server[SUMS_PATH] = File(f"{sha(K3S)}  k3s-arm64\n".encode())
    assert "it names k3s nowhere" in missing(bench.store().resolve("k3s", "amd64"))
    assert server.asked(K3S_PATH) == []


def test_what_nobody_publishes_says_how_it_is_made(bench: Bench) -> None:
    assert missing(bench.store().resolve("images", "amd64")) == (
        "no publisher has it; save the images, then `minipc artifacts add images`"
    )


def test_without_fetching_only_the_cache_counts(bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing(bench.store().resolve("k3s", "amd64", fetch=False)) == "not in the cache"
    monkeypatch.setenv(OFFLINE_VARIABLE, "1")
    assert OFFLINE_VARIABLE in missing(bench.store().resolve("k3s", "amd64"))
    assert server.requests == []


def test_an_unknown_name_is_an_error_all_the_same(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="unknown artifact `grafana`"):
        bench.store().resolve("grafana", "amd64")


def test_a_mirror_serves_files_but_never_checksums(bench: Bench, server: Server) -> None:
    with serve() as mirror:
        mirror[f"/base{K3S_PATH}"] = File(K3S)
        bench.head = f'mirrors.hosts = {{ "127.0.0.1" = "{mirror.url}/base" }}\n'
        assert bench.store().resolve("k3s", "amd64").origin == "locked"
        assert [request.path for request in mirror.requests] == [f"/base{K3S_PATH}"]
    assert [request.path for request in server.requests] == [SUMS_PATH]


def test_a_lying_mirror_is_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as mirror:
        mirror[K3S_PATH] = File(b"something else")
        mirror[SUMS_PATH] = File(f"{sha(b'something else')}  k3s\n".encode())
        monkeypatch.setenv(MIRROR_VARIABLE, mirror.url)
        with pytest.raises(HashMismatchError, match=mirror.url):
            bench.store().resolve("k3s", "amd64")


def test_a_mirror_with_a_password_is_refused_without_showing_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "https://user:hunter2@mirror.example")
    with pytest.raises(ConfigError, match="without user name and password") as caught:
        bench.store()
    assert "hunter2" not in str(caught.value)


def test_over_tls_with_the_publishers_certificate(tmp_path: Path) -> None:
    trust = make_trust(tmp_path)
    with serve(trust.server) as server:
        publish(server)
        bench = Bench(tmp_path / "bench", server.url)
        assert bench.store(Downloader(verify=trust.client)).resolve("k3s", "amd64").origin == "locked"


def test_a_file_put_in_by_hand_is_local_and_never_in_the_lock(bench: Bench, server: Server) -> None:
    own = K3S + b"built here"
    added = bench.store().add("k3s", bench.file("my-k3s", own), "amd64", "v1.36.3+own")
    assert added == bench.store().resolve("k3s", "amd64")
    assert (added.origin, added.version, added.pinned_version) == ("local", "v1.36.3+own", "v1.36.5+k3s1")
    assert (added.sha256, added.filename) == (sha(own), "my-k3s")
    assert str(added) == "k3s v1.36.3+own (amd64): LOCAL file, pinned is v1.36.5+k3s1"
    record = json.loads((bench.root / "cache" / "local.json").read_text())["artifacts"][0]
    assert (record["origin"], record["sha256"]) == ("local", sha(own))
    assert not (bench.root / "artifacts.lock").exists()
    assert server.requests == []


def test_a_local_file_wins_over_the_pin_until_it_is_forgotten(bench: Bench) -> None:
    assert bench.store().resolve("k3s", "amd64").origin == "locked"
    bench.store().add("k3s", bench.file("own", K3S + b"own"), "amd64")
    found = bench.store().resolve("k3s", "amd64")
    assert (found.origin, found.version) == ("local", f"local-{sha(K3S + b'own')[:12]}")
    assert bench.store().forget("k3s", "amd64") is not None
    assert bench.store().resolve("k3s", "amd64").origin == "locked"
    assert bench.store().forget("k3s", "amd64") is None


def test_a_file_with_the_locked_hash_counts_as_the_pin(bench: Bench) -> None:
    bench.store().add("loki", bench.file("own.zip", LOKI + b"own"), "amd64")
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    added = bench.store().add("loki", bench.file("loki.zip", LOKI), "amd64")
    assert (added.origin, added.version) == ("locked", "3.7.8")


def test_locking_the_hash_of_a_local_file_makes_it_the_pin(bench: Bench) -> None:
    bench.store().add("loki", bench.file("loki.zip", LOKI), "amd64")
    bench.store().lock_hash("loki", "amd64", sha(LOKI))
    assert bench.store().resolve("loki", "amd64", fetch=False).origin == "locked"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("k3s", LOKI, "can't stand for k3s v1.36.5+k3s1 (amd64): its format is not elf"),
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
    assert objects(bench) == []


def test_a_version_that_would_break_a_report_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="version: given 'a b', allowed: letters, digits"):
        bench.store().add("loki", bench.file("loki.zip", LOKI), "amd64", "a b")


def test_a_broken_record_of_local_files_is_named(bench: Bench) -> None:
    bench.store().add("loki", bench.file("loki.zip", LOKI), "amd64")
    record = bench.root / "cache" / "local.json"
    record.write_text(record.read_text().replace('"local"', '"locked"'))
    with pytest.raises(ConfigError, match=r"local\.json: artifacts\.0\.origin: given 'locked', allowed: 'local'"):
        bench.store().resolve("loki", "amd64")
    record.write_text("{")
    with pytest.raises(ConfigError, match=r"local\.json is not valid JSON"):
        bench.store().resolve("loki", "amd64")


def test_a_lock_by_hand_is_never_replaced(bench: Bench) -> None:
    assert bench.store().lock_hash("loki", "amd64", sha(LOKI)) is True
    assert bench.store().lock_hash("loki", "amd64", sha(LOKI)) is False
    with pytest.raises(RefusedError):
        bench.store().lock_hash("loki", "amd64", sha(K3S))


def test_locking_from_the_publisher_fetches_only_the_checksum_file(bench: Bench, server: Server) -> None:
    store = bench.store()
    assert store.lock_published(store.catalogue.item("k3s", "amd64")) is True
    assert [request.path for request in server.requests] == [SUMS_PATH]
    assert store.resolve("k3s", "amd64", fetch=False).origin == "missing"


def test_a_new_pin_makes_the_old_file_unused_but_keeps_it(bench: Bench) -> None:
    store = bench.store()
    store.resolve("manifest", "amd64")
    text = store.catalogue.path.read_text().replace('version = "v3"', 'version = "v4"')
    store.catalogue.path.write_text(text)
    newer = minipc.artifacts.Store(
        catalogue=store.catalogue.path,
        lock=store.lock.path,
        cache=store.cache.root,
        downloader=Downloader,
        say=bench.said.append,
    )
    assert newer.resolve("manifest", "amd64", fetch=False).origin == "missing"
    assert objects(bench) == [sha(MANIFEST)]


def test_the_list_says_where_each_file_stands(bench: Bench) -> None:
    store = bench.store()
    store.resolve("k3s", "amd64")
    store.add("loki", bench.file("loki.zip", LOKI), "amd64", "3.8.0")
    rows = {(row.name, row.arch): row for row in store.status()}
    k3s, arm, loki = rows["k3s", "amd64"], rows["k3s", "arm64"], rows["loki", "amd64"]
    assert (k3s.locked, k3s.cached, k3s.origin) == (True, True, "locked")
    assert (arm.locked, arm.cached, arm.origin) == (False, False, "missing")
    assert (loki.locked, loki.cached, loki.origin, loki.version) == (False, True, "local", "3.8.0")


def test_threads_that_want_the_same_file_download_it_once(bench: Bench, server: Server) -> None:
    server[K3S_PATH] = File(K3S, delay=0.1)
    store, found = bench.store(), []
    threads = [threading.Thread(target=lambda: found.append(store.resolve("k3s", "amd64"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.sha256 for each in found] == [sha(K3S)] * 4
    assert len(server.asked(K3S_PATH)) == 1
    assert len(bench.said) == 1


def _resolve_elsewhere(root: Path, url: str) -> str:
    return Bench(root, url).store().resolve("k3s", "amd64").origin


def test_processes_that_want_the_same_file_download_it_once(bench: Bench, server: Server) -> None:
    server[K3S_PATH] = File(K3S, delay=0.2)
    bench.store()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        origins = pool.starmap(_resolve_elsewhere, [(bench.root, server.url)] * 2)
    assert origins == ["locked", "locked"]
    assert len(server.asked(K3S_PATH)) == 1


def test_a_deploy_uses_this_checkout_and_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path))
    found = minipc.artifacts.resolve("k3s", "amd64", fetch=False)
    assert found.origin == "missing"
    assert found.pinned_version.startswith("v1.")
    assert (tmp_path / "artifacts" / "sha256").is_dir()
