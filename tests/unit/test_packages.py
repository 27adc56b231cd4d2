"""Packages of all components come in one call of apt, except those that need a file to be there first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pyinfra.facts.deb import DebPackages

from minipc.pyinfra_ext.facts import memory
from minipc.pyinfra_ext.operations import packages


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The packages of a machine without any; operations are declared, not run."""
    there: dict[str, set[str]] = {}
    monkeypatch.setattr(packages.context, "host", machine("m", there))
    monkeypatch.setattr(memory, "_announced", memory.defaultdict(dict))
    monkeypatch.setattr(packages, "packages_installed", Declared(packages.packages_installed._inner))
    monkeypatch.setattr(packages.apt.packages, "_inner", lambda packages: [f"apt install {' '.join(packages)}"])
    return there


class Declared:
    """An operation that is declared and nothing else."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __call__(self, **_: object) -> None:
        pass


def machine(name: str, there: dict[str, set[str]]) -> SimpleNamespace:
    return SimpleNamespace(name=name, get_fact=lambda fact: there if fact is DebPackages else None)


def together() -> list[str]:
    """What the operation of `install_announced` runs."""
    return list(packages.announced_packages_installed._inner())


def test_one_call_brings_the_packages_of_all_components(installed: dict[str, set[str]]) -> None:
    operation = packages.announced_packages_installed._inner()
    packages.install("one", ["a", "b"])
    packages.install("two", ["b", "c"])
    assert list(operation) == ["apt install a b c"]


def test_what_needs_a_file_first_waits_for_its_turn(installed: dict[str, set[str]]) -> None:
    packages.install("one", ["a"])
    packages.install("database", ["postgresql-17"], after=SimpleNamespace(digest="d"))
    assert together() == ["apt install a"]


def test_machines_are_kept_apart(installed: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    packages.install("one", ["a"])
    monkeypatch.setattr(packages.context, "host", machine("other", {}))
    packages.install("one", ["b"])
    assert together() == ["apt install b"]


def test_nothing_is_run_when_all_packages_are_there(installed: dict[str, set[str]]) -> None:
    packages.install("one", ["a", "b"])
    installed |= {"a": {"1"}, "b": {"2"}, "z": {"3"}}
    assert together() == []
    assert list(packages.packages_installed._inner(packages=["a", "c"])) == ["apt install a c"]
