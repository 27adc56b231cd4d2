from __future__ import annotations

import threading
from pathlib import Path

import pytest

from minipc.artifacts.catalogue import FileArch, Pin
from minipc.artifacts.lock import Lock
from minipc.core.errors import ConfigError, RefusedError

A, B = "a" * 64, "b" * 64


def pin(name: str = "k3s", arch: FileArch = "amd64", version: str = "v1+k3s1", url: str | None = None) -> Pin:
    return Pin(name=name, version=version, arch=arch, component="k3s", format="elf", url=url)


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock(tmp_path / "artifacts.lock", tmp_path / "guard")


def test_a_hash_is_written_once_and_read_back(lock: Lock) -> None:
    assert lock.entries() == {}
    source, url = 'publisher\'s "file" \\ — ü', "https://example.org/a%2Bb"
    assert lock.record(pin(url=url), A, source) is True
    before = lock.path.stat()
    assert lock.record(pin(url=url), A, "another source") is False
    after = lock.path.stat()  # reading may change the access time
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    found = lock.find(pin())
    assert found is not None
    assert (found.sha256, found.source, found.url) == (A, source, url)


def test_the_text_does_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    pins = [pin("loki"), pin("k3s", "arm64"), pin("k3s"), pin("k3s", version="v0")]
    texts = set()
    for number, order in enumerate((pins, pins[::-1])):
        lock = Lock(tmp_path / f"{number}.lock", tmp_path / "guard")
        for each in order:
            lock.record(each, A, "x")
        texts.add(lock.path.read_text())
    assert len(texts) == 1


def test_another_hash_for_the_same_version_is_refused(lock: Lock) -> None:
    lock.record(pin(), A, "x")
    before = lock.path.read_text()
    with pytest.raises(RefusedError, match=f"contains {A}.*not {B}"):
        lock.record(pin(), B, "x")
    assert lock.path.read_text() == before


def test_a_new_version_keeps_the_old_hash_for_a_rollback(lock: Lock) -> None:
    lock.record(pin(version="v1"), A, "x")
    lock.record(pin(version="v2"), B, "x")
    assert [each.sha256 for each in lock.entries().values()] == [A, B]


@pytest.mark.parametrize("sha256", ["", "abc", "A" * 64, "g" * 64, f"{A}\n"])
def test_only_a_sha256_is_a_hash(lock: Lock, sha256: str) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        lock.record(pin(), sha256, "x")
    assert not lock.path.exists()


ENTRY = f'[[artifact]]\nname = "k3s"\nversion = "v1"\narch = "amd64"\nsha256 = "{A}"\nsource = "x"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"schema = 1\n{ENTRY}{ENTRY}", "two entries for k3s amd64 v1"),
        (f"schema = 2\n{ENTRY}", "schema: given 2, allowed: 1"),
        (f"schema = 1\n{ENTRY}sha512 = 'x'\n", "artifact.0.sha512: unknown key"),
        (f"schema = 1\n{ENTRY.replace('amd64', 'mips')}", "artifact.0.arch: given 'mips', allowed: 'amd64'"),
        (f"schema = 1\n{ENTRY.replace(A, A[1:])}", "artifact.0.sha256: given"),
        ("schema = ", "is not valid TOML"),
    ],
)
def test_errors_name_the_file_and_the_key(lock: Lock, text: str, message: str) -> None:
    lock.path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        lock.entries()
    assert "artifacts.lock" in caught.value.what
    assert message in caught.value.what


def test_concurrent_writers_lose_nothing(lock: Lock) -> None:
    pins = [pin(f"a{number}") for number in range(8)]
    threads = [threading.Thread(target=lock.record, args=(each, A, "x")) for each in pins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name for name, _, _ in lock.entries()} == {each.name for each in pins}
