"""What the controller lacks is named, all of it, before anything is touched."""

from __future__ import annotations

import pytest

from minipc.errors import MissingPrerequisiteError
from minipc.lab import prerequisites


def test_not_root_is_named_with_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(prerequisites, "missing_packages", lambda **_: ["mmdebstrap", "nftables"])
    with pytest.raises(MissingPrerequisiteError) as caught:
        prerequisites.ensure_prerequisites(install=True)
    assert "root; package mmdebstrap; package nftables" in str(caught.value)
    assert "run as root and apt-get install mmdebstrap nftables" in caught.value.next_step


def test_programs_are_installed_only_when_that_can_help(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(prerequisites, "missing_support", lambda: ["loop devices"])
    monkeypatch.setattr(prerequisites, "missing_packages", lambda **_: ["nftables"])
    monkeypatch.setattr(prerequisites, "_install", installed.extend)
    with pytest.raises(MissingPrerequisiteError, match="loop devices; package nftables"):
        prerequisites.ensure_prerequisites(install=True)
    assert installed == []


def test_a_missing_program_is_found_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prerequisites.PROGRAMS, "no-such-program", "its-package")
    assert "its-package" in prerequisites.missing_packages()


def test_an_old_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites.os, "uname", lambda: type("Uname", (), {"release": "5.10.0-30-amd64"}))
    assert any("5.10.0-30-amd64" in lack for lack in prerequisites.missing_support())
