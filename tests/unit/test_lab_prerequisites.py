"""What the controller lacks is named, all of it, before anything is touched."""

from __future__ import annotations

import pytest

from minipc.core.errors import MissingPrerequisiteError
from rehearsal.lab import prerequisites


def test_without_root_the_error_names_everything_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(prerequisites, "missing_packages", lambda **_: ["mmdebstrap", "nftables"])
    with pytest.raises(MissingPrerequisiteError) as caught:
        prerequisites.ensure_prerequisites(install=True)
    assert "root; package mmdebstrap; package nftables" in str(caught.value)
    assert "run as root and apt-get install mmdebstrap nftables" in caught.value.next_step


def test_packages_are_not_installed_if_the_kernel_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(prerequisites, "missing_support", lambda: ["loop devices"])
    monkeypatch.setattr(prerequisites, "missing_packages", lambda **_: ["nftables"])
    monkeypatch.setattr(prerequisites.prerequisites, "install", installed.extend)
    with pytest.raises(MissingPrerequisiteError, match="loop devices; package nftables"):
        prerequisites.ensure_prerequisites(install=True)
    assert installed == []


def test_a_missing_program_is_found_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prerequisites.PROGRAMS, "no-such-program", "its-package")
    assert "its-package" in prerequisites.missing_packages()


def test_an_old_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites.os, "uname", lambda: type("Uname", (), {"release": "5.10.0-30-amd64"}))
    assert any("5.10.0-30-amd64" in lack for lack in prerequisites.missing_support())
