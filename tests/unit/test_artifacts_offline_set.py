from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from minipc.artifacts import offline_set
from minipc.artifacts.errors import HashMismatchError
from minipc.core.errors import MinipcError, RefusedError
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
def usb(sender: Bench, tmp_path: Path) -> Path:
    path = tmp_path / "usb.tar"
    found = offline_set.create(sender.store(), path, ["amd64"])
    origins = {each.name: each.origin for each in found}
    assert origins == {"k3s": "locked", "loki": "local", "images": "missing", "manifest": "missing"}
    return path


def refused(bench: Bench, file: Path, message: str, *, trust_local: bool = True) -> MinipcError:
    """Assert that the import is refused and nothing is left behind."""
    with pytest.raises(MinipcError) as caught:
        offline_set.import_(bench.store(), file, trust_local=trust_local)
    assert message in caught.value.what
    assert "\x1b" not in caught.value.what
    assert bench.names("sha256") == bench.names("partial") == []
    assert not (bench.root / "cache" / "local.json").exists()
    assert sorted(path.name for path in bench.root.iterdir() if path.name != "artifacts.lock") == [
        "artifacts.toml",
        "cache",
    ]
    return caught.value


def test_a_round_trip_keeps_content_origin_and_version(sender: Bench, receiver: Bench, usb: Path) -> None:
    lines = offline_set.import_(receiver.store(), usb, trust_local=True)
    assert lines == ["k3s v1.36.5+k3s1 (amd64): as locked", "loki 3.8.0+own (amd64): LOCAL file, pinned is 3.7.8"]
    k3s, loki = (receiver.store().resolve(name, "amd64", fetch=False) for name in ("k3s", "loki"))
    assert (k3s.origin, k3s.sha256) == ("locked", sha(K3S))
    assert (loki.origin, loki.version, loki.filename) == ("local", "3.8.0+own", "own-loki.zip")
    again = usb.with_name("again.tar")
    offline_set.create(sender.store(), again, ["amd64"])
    assert again.read_bytes() == usb.read_bytes()


def test_a_file_that_no_lock_vouches_for_is_imported_only_on_request(receiver: Bench, usb: Path) -> None:
    error = refused(receiver, usb, "files that are not in artifacts.lock: loki 3.8.0+own", trust_local=False)
    assert isinstance(error, RefusedError)
    receiver.store().lock.path.unlink()
    assert "LOCAL" in offline_set.import_(receiver.store(), usb, trust_local=True)[0]
    assert receiver.store().resolve("k3s", "amd64", fetch=False).origin == "local"
    assert not receiver.store().lock.path.exists()


def test_a_hash_that_contradicts_the_lock_is_refused(receiver: Bench, usb: Path) -> None:
    receiver.store().lock.path.unlink()
    right = sha(b"the right one")
    receiver.store().lock_hash("k3s", "amd64", right)
    assert isinstance(refused(receiver, usb, f"artifacts.lock says {right}"), HashMismatchError)


def test_what_cannot_be_created(sender: Bench, receiver: Bench, usb: Path) -> None:
    before = usb.read_bytes()
    with pytest.raises(RefusedError, match="exists"):
        offline_set.create(sender.store(), usb, ["amd64"])
    assert usb.read_bytes() == before
    new = usb.with_name("new.tar")
    with pytest.raises(MinipcError, match="the cache contains none of the files"):
        offline_set.create(receiver.store(), new, ["amd64"])
    with pytest.raises(MinipcError, match=r"cannot be written: No such file or directory"):
        offline_set.create(sender.store(), usb.with_name("gone") / "a.tar", ["amd64"])
    path = sender.store().path(sha(LOKI))
    path.chmod(0o600)
    path.write_bytes(LOKI + b"!")
    with pytest.raises(HashMismatchError):
        offline_set.create(sender.store(), new, ["amd64"])
    assert not new.exists()


def test_any_truncation_is_refused(receiver: Bench, usb: Path, tmp_path: Path) -> None:
    whole = usb.read_bytes()
    cut = tmp_path / "cut.tar"
    content_ends = len(whole.rstrip(b"\0"))
    for length in (0, 1, 511, 512, 1000, 3000, content_ends // 2, content_ends - 1):
        for end in (b"", bytes(1024)):
            cut.write_bytes(whole[:length] + end)
            refused(receiver, cut, "")


@pytest.mark.parametrize("content", [K3S, LOKI], ids=["first file", "last file"])
def test_one_changed_byte_is_refused(receiver: Bench, usb: Path, content: bytes) -> None:
    whole = usb.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(content) + len(content) - 1] ^= 1
    usb.write_bytes(bytes(changed))
    assert isinstance(refused(receiver, usb, "has sha256"), HashMismatchError)


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


def entry(**changes: Any) -> dict[str, Any]:
    k3s = {"name": "k3s", "arch": "amd64", "version": "v1.36.5+k3s1", "origin": "locked", "filename": "k3s"}
    return k3s | {"sha256": sha(K3S), "size": len(K3S)} | changes


def manifest(*entries: dict[str, Any], **changes: Any) -> Member:
    return member("manifest.json", json.dumps({"schema": 1, "entries": list(entries), **changes}).encode())


def write(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


GOOD = f"sha256/{sha(K3S)}"
WHOLE = [manifest(entry()), member(GOOD, K3S)]
ATTACKS: dict[str, tuple[list[Member], str]] = {
    "path out of the cache": ([*WHOLE, member("../evil", K3S)], "outside the destination"),
    "path with the right end": ([*WHOLE, member(f"../../sha256/{sha(K3S)}", K3S)], "outside the destination"),
    "long path in a pax header": ([*WHOLE, member("../" * 80 + "evil", K3S)], "outside the destination"),
    "hash in another folder": ([manifest(entry()), member(sha(K3S), K3S)], "lacks"),
    "symlink": ([manifest(entry()), member(GOOD, b"", tarfile.SYMTYPE, "/etc/passwd")], "not a regular file"),
    "hard link": ([*WHOLE, member("sha256/x", b"", tarfile.LNKTYPE, "manifest.json")], "not a regular file"),
    "directory": ([manifest(entry()), member(GOOD, b"", tarfile.DIRTYPE)], "not a regular file"),
    "device": ([manifest(entry()), member(GOOD, b"", tarfile.CHRTYPE)], "not a regular file"),
    "pipe": ([manifest(entry()), member(GOOD, b"", tarfile.FIFOTYPE)], "not a regular file"),
    "longer content": ([manifest(entry()), member(GOOD, K3S + b"!")], "has sha256"),
    "other content": ([manifest(entry()), member(GOOD, K3S[::-1])], "has sha256"),
    "second content": ([*WHOLE, member(GOOD, K3S[::-1])], "has sha256"),
    "no manifest": ([member(GOOD, K3S)], "missing or not valid JSON"),
    "manifest a link": ([member("manifest.json", b"", tarfile.SYMTYPE, "/etc/passwd")], "not a regular file"),
    "manifest not JSON": ([member("manifest.json", b"{"), member(GOOD, K3S)], "not valid JSON"),
    "manifest not text": ([member("manifest.json", b"\xff\xfe{")], "not valid JSON"),
    "unknown schema": ([manifest(entry(), schema=2)], "schema: given 2, allowed: 1"),
    "unknown key": ([manifest(entry(path="../evil"))], "entries.0.path: unknown key"),
    "no entries": ([manifest()], "entries: given"),
    "hash that is a path": ([manifest(entry(sha256="../../etc/passwd"))], "sha256: given"),
    "name that is a path": ([manifest(entry(filename="../evil"))], "filename: given"),
    "version with escapes": ([manifest(entry(version="v1\x1b[2J"))], "version: given"),
    "made-up origin": ([manifest(entry(origin="missing"))], "origin: given 'missing'"),
    "unknown artifact": ([manifest(entry(name="rootkit")), member(GOOD, K3S)], "unknown artifact `rootkit`"),
    "not a tar": ([], "lacks"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_and_leave_nothing(receiver: Bench, tmp_path: Path, attack: str) -> None:
    members, message = ATTACKS[attack]
    path = write(tmp_path / "evil.tar", *members)
    if not members:
        path.write_bytes(b"no tar" + bytes(2048))
        message = "is not a complete offline set"
    refused(receiver, path, message)


def test_the_attacks_start_from_a_set_that_is_imported(receiver: Bench, tmp_path: Path) -> None:
    good = write(tmp_path / "good.tar", *WHOLE, member("/absolute/path", b"ignored"))
    assert offline_set.import_(receiver.store(), good) == ["k3s v1.36.5+k3s1 (amd64): as locked"]
    assert receiver.names("sha256") == [sha(K3S)]


def test_a_locked_version_that_is_no_longer_pinned_is_kept(receiver: Bench, tmp_path: Path) -> None:
    lock = receiver.store().lock.path
    lock.write_text(lock.read_text().replace("v1.36.5+k3s1", "v1.36.4+k3s1"))
    old = write(tmp_path / "old.tar", manifest(entry(version="v1.36.4+k3s1")), member(GOOD, K3S))
    assert offline_set.import_(receiver.store(), old) == ["k3s v1.36.4+k3s1 (amd64): as locked"]
    assert receiver.store().resolve("k3s", "amd64", fetch=False).origin == "missing"
