"""Packages of all components come in one call of apt, except those that need a file to be there first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minipc.operations import packages


@pytest.fixture
def asked(monkeypatch):
    """The lists given to pyinfra's operation, as they are when it runs: after all components are declared."""
    lists = []
    monkeypatch.setattr(packages.context, "host", SimpleNamespace(name="m"))
    monkeypatch.setattr(packages.apt, "packages", lambda packages, **_: lists.append(packages))
    monkeypatch.setattr(packages, "_together", packages.defaultdict(list))
    return lists


def test_the_first_call_brings_the_packages_of_all_components(asked):
    packages.install("one", ["a", "b"])
    packages.install("two", ["b", "c"])
    assert asked[0] == ["a", "b", "c"]


def test_what_needs_a_file_first_waits_for_its_turn(asked):
    packages.install("one", ["a"])
    packages.install("database", ["postgresql-17"], after=SimpleNamespace(digest="d"))
    assert asked == [["a"], ["postgresql-17"]]


def test_machines_are_kept_apart(asked, monkeypatch):
    packages.install("one", ["a"])
    monkeypatch.setattr(packages.context, "host", SimpleNamespace(name="other"))
    packages.install("one", ["b"])
    assert asked == [["a"], ["b"]]
