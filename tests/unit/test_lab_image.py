"""The base image's cache key."""

from __future__ import annotations

import pytest

from minipc.images import debian_root
from minipc.images.apt_sources import Mirrors

MIRRORS = Mirrors("http://m.example/debian", "http://s.example/security")


def key(mirrors: Mirrors = MIRRORS, architecture: str = "amd64") -> str:
    return debian_root.inputs_hash(mirrors, architecture=architecture)


def test_the_same_inputs_give_the_same_image() -> None:
    assert key() == key()
    assert len(key()) == 16


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("SUITE", "forky"), ("PACKAGES", ("systemd",)), ("OPTIONS", ()), ("CUSTOMISE", "#!/bin/sh\n")],
)
def test_every_input_changes_the_image(attribute: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(debian_root, attribute, value)
    assert key() != before


def test_mirrors_proxy_and_architecture_change_the_image() -> None:
    variants = [
        key(),
        key(Mirrors("http://other.example/debian", MIRRORS.security)),
        key(Mirrors(MIRRORS.main, None)),
        key(Mirrors(MIRRORS.main, MIRRORS.security, "http://proxy.example:3142")),
        key(architecture="arm64"),
    ]
    assert len(set(variants)) == len(variants)
