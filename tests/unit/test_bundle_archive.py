"""The inside of a bundle: what it must hold, and everything that must be refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from minipc.bundle.archive import MANIFEST, BundleError, Fingerprints, Manifest, Origin, Payload, pack, unpack
from minipc.bundle.contents import Item

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = b"AGE-SECRET-KEY-1X\n"
ITEMS = [
    Item(
        "repository/inventory/production.py",
        "repository",
        "repository",
        "inventory/production.py",
        b"production = []\n",
    ),
    Item("repository/artifacts.lock", "repository", "repository", "artifacts.lock", b""),
    Item("age.key", "age-key", "age-key", "age.key", KEY),
    Item("secrets.age", "secrets", "repository", "secrets/production.age", b"age-encryption.org/v1\n"),
    Item("ssh/0-id", "ssh-key", "home", ".ssh/id_ed25519", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"),
]
VALUES = {item.path: item.content for item in ITEMS}


def manifest(items: list[Item] = ITEMS) -> Manifest:
    return Manifest(
        format=1,
        created=MOMENT,
        environment="production",
        backend="age",
        origin=Origin(remote="https://git.example.org/box.git", commit="a" * 40),
        entries=[item.entry() for item in items],
        fingerprints=Fingerprints(key="0" * 64, items={}),
        gaps=["the cat"],
    )


def packed(items: list[Item] = ITEMS) -> bytes:
    return pack(Payload(manifest(items), {item.path: item.content for item in items}))


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


def tar(members: list[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def members(change: Callable[[dict[str, Any]], None] | None = None) -> list[Member]:
    """A good bundle's members, with the manifest changed."""
    values = manifest().model_dump(mode="json")
    if change:
        change(values)
    return [member(MANIFEST, json.dumps(values).encode()), *(member(name, content) for name, content in VALUES.items())]


def test_what_goes_in_comes_out() -> None:
    payload = unpack(packed())
    assert payload.manifest == manifest()
    assert payload.files == VALUES
    assert unpack(tar(members())).files == VALUES


def test_keys_are_in_no_repr() -> None:
    assert "AGE-SECRET" not in repr(unpack(packed())) + repr(ITEMS)


def test_a_person_can_open_it_by_hand() -> None:
    with tarfile.open(fileobj=io.BytesIO(packed())) as archive:
        readme = archive.extractfile("README.txt")
        assert readme
        text = readme.read().decode()
        assert all(info.mode == 0o600 for info in archive.getmembers())
    assert "https://git.example.org/box.git at commit " + "a" * 40 in text
    assert "~/.ssh/id_ed25519" in text
    assert "age -d -i age.key secrets.age" in text
    assert "NOT IN THE BUNDLE: the cat" in text
    assert "AGE-SECRET" not in text


def refused(content: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        unpack(content)
    assert caught.value.next_step
    assert "AGE-SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a complete tar"),
        (b"nonsense" * 200, "not a complete tar"),
        (packed()[: len(packed()) // 2], "incomplete|not a complete tar|does not contain exactly"),
        (packed()[:700], "incomplete|not a complete tar"),
        (tar([]), "contains no manifest.json"),
        (tar(members()[1:]), "contains no manifest.json"),
        (tar([member(MANIFEST, b"{")]), "not valid at its beginning"),
        (tar([member(MANIFEST, b"[]")]), "not valid"),
        (tar(members()[:-1]), "does not contain exactly the files"),
        (tar([*members(), member("extra", b"x")]), "does not contain exactly the files"),
        (tar([*members(), member("age.key", b"x")]), "twice"),
        (tar([*members()[:-1], member("ssh/0-id", b"other")]), "does not have the size and hash"),
        (
            tar([*members(), member("link", kind=tarfile.SYMTYPE, link="/etc/passwd")]),
            "'link' in the bundle is not a regular",
        ),
        (tar([*members(), member("hard", kind=tarfile.LNKTYPE, link="age.key")]), "not a regular file"),
        (tar([*members(), member("device", kind=tarfile.CHRTYPE)]), "not a regular file"),
        (tar([*members(), member("folder", kind=tarfile.DIRTYPE)]), "not a regular file"),
        (tar([*members(), member("sparse", kind=tarfile.GNUTYPE_SPARSE)]), "not a regular file|not a complete tar"),
    ],
)
def test_what_is_no_bundle(content: bytes, message: str) -> None:
    refused(content, message)


def test_a_small_tar_that_claims_to_unpack_to_much() -> None:
    """A sparse file in pax's way is a regular file to tar."""
    bomb = member("bomb", b"1\n0\n0\n".ljust(512, b"\0"))
    bomb[0].pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "bomb",
        "GNU.sparse.realsize": str(1 << 40),
    }
    refused(tar([*members(), bomb]), "'bomb' in the bundle is not a regular file")


def test_a_newer_format_says_what_to_do() -> None:
    with pytest.raises(BundleError, match="format 2, this version of minipc reads 1") as caught:
        unpack(tar(members(lambda values: values.update(format=2, more="x"))))
    assert "the commit that its README.txt names" in caught.value.next_step


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/cron.d/x",
        "/etc/passwd",
        "inventory/../../x.py",
        "./inventory/x.py",
        "inventory//x.py",
        "inventory/x.py/",
        "",
        "inventory/a\nb.py",
        "~/x",
        "inventory/\u202ex.py",
        "inventory\\x.py",
    ],
)
def test_a_path_that_leads_elsewhere(path: str) -> None:
    refused(tar(members(lambda values: values["entries"][0].update(target=path))), "not valid at entries.0.target")


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"target": ".git/config"}),
        (0, {"target": "minipc/cli/main.py"}),
        (0, {"target": "inventory"}),
        (0, {"target": "Makefile"}),
        (0, {"base": "home"}),
        (2, {"base": "home", "target": ".bashrc"}),
        (3, {"base": "home", "target": "x.age"}),
        (3, {"target": "deploys/site.py"}),
        (4, {"base": "repository", "target": "deploys/site.py"}),
        (4, {"target": ".bashrc"}),
        (1, {"role": "pins", "base": "state", "target": "lab/other.json"}),
        (1, {"role": "ssh-key", "base": "home", "target": ".ssh/authorized_keys"}),
    ],
)
def test_a_file_where_it_has_no_place(number: int, change: dict[str, str]) -> None:
    refused(tar(members(lambda values: values["entries"][number].update(change))), "may not be written to")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 99},
        {"sha256": "0" * 64},
    ],
)
def test_a_file_that_is_not_what_the_manifest_says(change: dict[str, Any]) -> None:
    refused(tar(members(lambda values: values["entries"][2].update(change))), "age.key in the bundle does not have")


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("created"),
        lambda values: values.update(created="2026-01-02T03:04:05"),  # without a zone
        lambda values: values.update(environment="../x"),
        lambda values: values.update(entries=[]),
        lambda values: values.update(format="1"),
        lambda values: values.update(unknown=1),
        lambda values: values["entries"][0].update(role="cron"),
        lambda values: values["entries"][0].update(base="root"),
        lambda values: values["entries"][0].update(size=-1),
    ],
)
def test_a_manifest_that_is_not_valid(change: Callable[[dict[str, Any]], None]) -> None:
    refused(tar(members(change)), "not valid")


def test_exactly_one_key_and_one_file_of_secrets() -> None:
    refused(packed([item for item in ITEMS if item.role != "age-key"]), "exactly one age key")
    refused(packed([*ITEMS, Item("b", "secrets", "state", "b.age", b"")]), "exactly one age key")


def test_too_much_is_refused() -> None:
    big = Item("repository/inventory/big", "repository", "repository", "inventory/big", b"x" * (33 << 20))
    with pytest.raises(BundleError, match="would be larger than 32 MB"):
        pack(Payload(manifest(), VALUES | {"big": big.content}))
