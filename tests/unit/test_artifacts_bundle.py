from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minipc.artifacts import bundle
from minipc.artifacts.errors import HashMismatchError
from minipc.errors import ConfigError, MinipcError, RefusedError
from tests.unit.artifacts_store import K3S, LOKI, Bench, sha

URL = "https://nowhere.invalid"


@pytest.fixture
def sender(tmp_path: Path) -> Bench:
    """A controller with K3s as locked and Loki put in by hand."""
    bench = Bench(tmp_path / "sender", URL)
    bench.store().lock_hash("k3s", "amd64", sha(K3S))
    bench.store().add("k3s", bench.file("k3s", K3S), "amd64")
    bench.store().add("loki", bench.file("own-loki.zip", LOKI), "amd64", "3.8.0+own")
    return bench


@pytest.fixture
def receiver(tmp_path: Path, sender: Bench) -> Bench:
    """A controller with the same checkout, artifacts.lock included, and an empty cache."""
    bench = Bench(tmp_path / "receiver", URL)
    bench.store().lock.path.write_bytes(sender.store().lock.path.read_bytes())
    return bench


@pytest.fixture
def stick(sender: Bench, tmp_path: Path) -> Path:
    path = tmp_path / "stick.tar"
    bundle.create(sender.store(), path, ["amd64"])
    return path


def untouched(bench: Bench) -> bool:
    """Nothing in the cache, nothing left lying about."""
    cache = bench.root / "cache"
    return (
        not list((cache / "sha256").iterdir())
        and not list((cache / "partial").iterdir())
        and not (cache / "local.json").exists()
    )


def test_a_bundle_says_what_is_in_it_and_what_is_not(sender: Bench, tmp_path: Path) -> None:
    found = {each.name: each.origin for each in bundle.create(sender.store(), tmp_path / "a.tar", ["amd64"])}
    assert found == {"k3s": "locked", "loki": "local", "images": "missing", "manifest": "missing"}


def test_a_round_trip_keeps_content_origin_and_version(receiver: Bench, stick: Path) -> None:
    lines = bundle.import_bundle(receiver.store(), stick, trust_local=True)
    assert lines == ["k3s v1.36.5+k3s1 (amd64): as locked", "loki 3.8.0+own (amd64): LOCAL file, pinned is 3.7.8"]
    k3s = receiver.store().resolve("k3s", "amd64", fetch=False)
    loki = receiver.store().resolve("loki", "amd64", fetch=False)
    assert (k3s.origin, loki.origin, loki.version, loki.filename) == (
        "locked",
        "local",
        "3.8.0+own",
        "own-loki.zip",
    )
    assert k3s.path is not None
    assert k3s.path.read_bytes() == K3S


def test_the_same_files_give_the_same_bytes(sender: Bench, stick: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    bundle.create(sender.store(), again, ["amd64"])
    assert again.read_bytes() == stick.read_bytes()


def test_what_the_receiver_has_not_locked_is_only_local_there(receiver: Bench, stick: Path) -> None:
    receiver.store().lock.path.unlink()
    assert "LOCAL" in bundle.import_bundle(receiver.store(), stick, trust_local=True)[0]
    assert receiver.store().resolve("k3s", "amd64", fetch=False).origin == "local"
    assert not receiver.store().lock.path.exists()


def test_what_no_lock_vouches_for_is_taken_only_on_request(receiver: Bench, stick: Path) -> None:
    with pytest.raises(RefusedError, match=r"artifacts\.lock does not vouch for: loki 3\.8\.0\+own\n"):
        bundle.import_bundle(receiver.store(), stick)
    assert untouched(receiver)


def test_a_hash_that_contradicts_the_receivers_lock_is_refused(receiver: Bench, stick: Path) -> None:
    receiver.store().lock.path.unlink()
    receiver.store().lock_hash("k3s", "amd64", sha(b"the right one"))
    with pytest.raises(HashMismatchError, match=f"artifacts.lock says {sha(b'the right one')}"):
        bundle.import_bundle(receiver.store(), stick)
    assert untouched(receiver)


def test_an_existing_file_is_not_overwritten(sender: Bench, stick: Path) -> None:
    before = stick.read_bytes()
    with pytest.raises(RefusedError, match="exists"):
        bundle.create(sender.store(), stick, ["amd64"])
    assert stick.read_bytes() == before


def test_an_empty_cache_makes_no_bundle(receiver: Bench, tmp_path: Path) -> None:
    with pytest.raises(MinipcError, match="the cache holds none of the files"):
        bundle.create(receiver.store(), tmp_path / "a.tar", ["amd64"])
    assert not (tmp_path / "a.tar").exists()


def test_a_file_changed_in_the_cache_does_not_get_into_a_bundle(sender: Bench, tmp_path: Path) -> None:
    path = sender.store().cache.path(sha(LOKI))
    path.chmod(0o600)
    path.write_bytes(LOKI + b"!")
    with pytest.raises(HashMismatchError):
        bundle.create(sender.store(), tmp_path / "a.tar", ["amd64"])
    assert not (tmp_path / "a.tar").exists()


def test_a_stick_that_cannot_be_written_is_named(sender: Bench, tmp_path: Path) -> None:
    with pytest.raises(MinipcError, match=r"can't be written: No such file or directory"):
        bundle.create(sender.store(), tmp_path / "gone" / "a.tar", ["amd64"])


def test_any_truncation_is_refused(receiver: Bench, stick: Path, tmp_path: Path) -> None:
    whole = stick.read_bytes()
    cut = tmp_path / "cut.tar"
    content_ends = len(whole.rstrip(b"\0"))
    for length in (0, 1, 511, 512, 1000, 3000, content_ends // 2, content_ends, content_ends + 600):
        cut.write_bytes(whole[:length])
        with pytest.raises(MinipcError):
            bundle.import_bundle(receiver.store(), cut, trust_local=True)
        assert untouched(receiver)


def test_a_truncation_that_ends_in_zeros_is_refused(receiver: Bench, stick: Path, tmp_path: Path) -> None:
    with tarfile.open(stick) as tar:
        last = tar.getmembers()[-1].offset
    cut = tmp_path / "cut.tar"
    cut.write_bytes(stick.read_bytes()[:last] + bytes(1024))
    with pytest.raises(MinipcError, match="which its manifest names"):
        bundle.import_bundle(receiver.store(), cut, trust_local=True)
    assert untouched(receiver)


@pytest.mark.parametrize("content", [K3S, LOKI], ids=["first file", "last file"])
def test_one_changed_byte_is_refused(receiver: Bench, stick: Path, content: bytes) -> None:
    whole = stick.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(content) + len(content) - 1] ^= 1
    stick.write_bytes(bytes(changed))
    with pytest.raises(HashMismatchError, match="has sha256"):
        bundle.import_bundle(receiver.store(), stick, trust_local=True)
    assert untouched(receiver)


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "name": "k3s",
        "arch": "amd64",
        "version": "v1.36.5+k3s1",
        "origin": "locked",
        "sha256": sha(K3S),
        "size": len(K3S),
        "filename": "k3s",
        **changes,
    }


def manifest(*entries: dict[str, Any], **changes: Any) -> Member:
    return member("manifest.json", json.dumps({"schema": 1, "entries": list(entries), **changes}).encode())


def write(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


GOOD = f"sha256/{sha(K3S)}"
ATTACKS: dict[str, tuple[Callable[[], list[Member]], str]] = {
    "path out of the cache": (lambda: [manifest(entry()), member("../evil", K3S)], "does not name"),
    "path with the right end": (
        lambda: [manifest(entry()), member(f"../../sha256/{sha(K3S)}", K3S)],
        "does not name",
    ),
    "absolute path": (lambda: [manifest(entry()), member("/etc/passwd", K3S)], "does not name"),
    "long path in a pax header": (lambda: [manifest(entry()), member("../" * 80 + "evil", K3S)], "does not name"),
    "hash without its folder": (lambda: [manifest(entry()), member(sha(K3S), K3S)], "does not name"),
    "file not in the manifest": (
        lambda: [manifest(entry()), member(GOOD, K3S), member(f"sha256/{sha(LOKI)}", LOKI)],
        "does not name",
    ),
    "duplicate": (lambda: [manifest(entry()), member(GOOD, K3S), member(GOOD, K3S)], "twice"),
    "second manifest": (lambda: [manifest(entry()), member(GOOD, K3S), manifest(entry())], "does not name"),
    "symlink": (
        lambda: [manifest(entry(size=0)), member(GOOD, b"", tarfile.SYMTYPE, "/etc/passwd")],
        "not a regular file",
    ),
    "hard link": (
        lambda: [manifest(entry(size=0)), member(GOOD, b"", tarfile.LNKTYPE, "manifest.json")],
        "not a regular file",
    ),
    "directory": (lambda: [manifest(entry(size=0)), member(GOOD, b"", tarfile.DIRTYPE)], "not a regular file"),
    "device": (lambda: [manifest(entry(size=0)), member(GOOD, b"", tarfile.CHRTYPE)], "not a regular file"),
    "sparse file": (
        lambda: [manifest(entry(size=0)), member(GOOD, b"", tarfile.GNUTYPE_SPARSE)],
        "not a regular file",
    ),
    "larger than announced": (lambda: [manifest(entry()), member(GOOD, K3S + b"!")], "of 7520 bytes"),
    "announced larger than the disk": (lambda: [manifest(entry(size=1 << 60)), member(GOOD, K3S)], "needs"),
    "other content of the same size": (
        lambda: [manifest(entry()), member(GOOD, K3S[::-1])],
        "has sha256",
    ),
    "manifest not first": (lambda: [member(GOOD, K3S), manifest(entry())], "does not begin with"),
    "manifest a link": (
        lambda: [member("manifest.json", b"", tarfile.SYMTYPE, "/etc/passwd")],
        "does not begin with",
    ),
    "manifest too large": (lambda: [member("manifest.json", b" " * (1 << 21))], "does not begin with"),
    "manifest not JSON": (lambda: [member("manifest.json", b"{"), member(GOOD, K3S)], "not valid JSON"),
    "manifest not text": (lambda: [member("manifest.json", b"\xff\xfe{")], "not valid JSON"),
    "unknown schema": (lambda: [manifest(entry(), schema=2)], "schema: given 2, allowed: 1"),
    "unknown key": (lambda: [manifest(entry(path="../evil"))], "entries.0.path: unknown key"),
    "no entries": (lambda: [manifest()], "entries: given"),
    "one file twice": (lambda: [manifest(entry(), entry()), member(GOOD, K3S)], "names a file twice"),
    "hash that is a path": (lambda: [manifest(entry(sha256="../../etc/passwd"))], "sha256: given"),
    "name that is a path": (lambda: [manifest(entry(filename="../evil"))], "filename: given"),
    "version with escapes": (lambda: [manifest(entry(version="v1\x1b[2J"))], "version: given"),
    "origin made up": (lambda: [manifest(entry(origin="missing"))], "origin: given 'missing'"),
    "unknown artifact": (lambda: [manifest(entry(name="rootkit")), member(GOOD, K3S)], "unknown artifact `rootkit`"),
    "architecture it does not have": (
        lambda: [manifest(entry(name="manifest")), member(GOOD, K3S)],
        "manifest has no file for `amd64` here",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_and_leave_nothing(receiver: Bench, tmp_path: Path, attack: str) -> None:
    members, message = ATTACKS[attack]
    stick = write(tmp_path / "evil.tar", *members())
    with pytest.raises(MinipcError) as caught:
        bundle.import_bundle(receiver.store(), stick, trust_local=True)
    assert message in caught.value.what
    assert "\x1b" not in caught.value.what
    assert untouched(receiver)
    assert sorted(path.name for path in receiver.root.iterdir()) == ["artifacts.lock", "artifacts.toml", "cache"]


def test_the_attacks_start_from_a_bundle_that_is_taken(receiver: Bench, tmp_path: Path) -> None:
    stick = write(tmp_path / "good.tar", manifest(entry()), member(GOOD, K3S))
    assert bundle.import_bundle(receiver.store(), stick) == ["k3s v1.36.5+k3s1 (amd64): as locked"]


def test_a_version_with_a_hash_but_no_longer_pinned_is_kept(receiver: Bench, tmp_path: Path) -> None:
    receiver.store().lock.path.write_text(
        receiver.store().lock.path.read_text().replace("v1.36.5+k3s1", "v1.36.4+k3s1")
    )
    stick = write(tmp_path / "old.tar", manifest(entry(version="v1.36.4+k3s1")), member(GOOD, K3S))
    assert bundle.import_bundle(receiver.store(), stick) == ["k3s v1.36.4+k3s1 (amd64): as locked"]
    assert receiver.store().resolve("k3s", "amd64", fetch=False).origin == "missing"


def test_something_else_than_a_tar_is_refused(receiver: Bench, tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    other.write_bytes(b"no tar" + bytes(2048))
    with pytest.raises(MinipcError, match="is not a whole bundle"):
        bundle.import_bundle(receiver.store(), other)
    with pytest.raises((MinipcError, ConfigError), match="can't be imported"):
        bundle.import_bundle(receiver.store(), tmp_path)
    assert untouched(receiver)
