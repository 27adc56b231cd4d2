"""The cache of downloaded packages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rehearsal.lab import debs

STATUS = """\
Package: redis-server
Status: install ok installed
Architecture: amd64
Version: 5:8.0.2-3+deb13u1

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1.0
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache" / "debs").mkdir(parents=True)
    return tmp_path / "cache" / "debs"


def package(directory: Path, name: str, *, size: int = 10, age_days: float = 0, now: float = 1e9) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_bytes(b"x" * size)
    os.utime(path, (now - age_days * 86400,) * 2)
    return path


def test_file_names_are_as_apt_writes_them() -> None:
    assert debs.installed_files(STATUS) == {"redis-server_5%3a8.0.2-3+deb13u1_amd64.deb"}


def test_no_layer_without_packages() -> None:
    assert debs.make_layer("mini") is None
    assert debs.layer_of("mini") is None


def test_a_layer_contains_only_the_packages(cache: Path) -> None:
    package(cache, "a_1_all.deb")
    (cache / ".b.deb.new").write_text("half")
    layer = debs.make_layer("mini")
    assert layer is not None
    assert layer == debs.layer_of("mini")
    assert [str(path.relative_to(layer)) for path in layer.rglob("*") if path.is_file()] == [
        "var/cache/apt/archives/a_1_all.deb"
    ]
    assert {path.stat().st_mode & 0o777 for path in [layer, *layer.rglob("*")] if path.is_dir()} == {0o755}


def test_a_layer_in_use_does_not_change_with_the_cache(cache: Path, tmp_path: Path) -> None:
    package(cache, "a_1_all.deb").write_text("old")
    layer = debs.make_layer("mini")
    assert layer is not None
    upper = tmp_path / "upper"
    package(upper / debs.ARCHIVES, "a_1_all.deb").write_text("new")
    assert debs.harvest(upper, tmp_path / "no-status") == 1
    assert (cache / "a_1_all.deb").read_text() == "new"
    assert (layer / debs.ARCHIVES / "a_1_all.deb").read_text() == "old"


def test_only_packages_are_harvested(cache: Path, tmp_path: Path) -> None:
    archives = tmp_path / "upper" / debs.ARCHIVES
    package(archives, "a_1_all.deb")
    package(archives, "lock")
    package(archives / "partial", "b_1_all.deb")
    (archives / "link_1_all.deb").symlink_to("/etc/shadow")
    debs.harvest(tmp_path / "upper", tmp_path / "no-status")
    assert [path.name for path in cache.iterdir()] == ["a_1_all.deb"]


def test_packages_unused_for_long_are_removed(cache: Path) -> None:
    package(cache, "old_1_all.deb", age_days=61)
    package(cache, "new_1_all.deb", age_days=59)
    debs.prune(cache, now=1e9)
    assert [path.name for path in cache.glob("*.deb")] == ["new_1_all.deb"]


def test_the_least_recently_used_packages_are_removed_from_a_full_cache(cache: Path) -> None:
    for age in (1, 3, 2):
        package(cache, f"p{age}_1_all.deb", size=100, age_days=age)
    debs.prune(cache, now=1e9, max_bytes=250)
    assert sorted(path.name for path in cache.glob("*.deb")) == ["p1_1_all.deb", "p2_1_all.deb"]


def test_installed_packages_count_as_used(cache: Path, tmp_path: Path) -> None:
    used = package(cache, "redis-server_5%3a8.0.2-3+deb13u1_amd64.deb", age_days=100)
    package(cache, "gone_1.0_all.deb", age_days=100)
    status = tmp_path / "status"
    status.write_text(STATUS)
    (tmp_path / "upper").mkdir()
    debs.harvest(tmp_path / "upper", status)
    assert list(cache.glob("*.deb")) == [used]
