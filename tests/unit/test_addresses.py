"""Addresses before a port."""

from __future__ import annotations

import pytest

from minipc.core.addresses import bracketed, known_host


@pytest.mark.parametrize(
    ("address", "written"),
    [("fd00::1", "[fd00::1]"), ("192.0.2.1", "192.0.2.1"), ("backup.example.org", "backup.example.org")],
)
def test_only_an_ipv6_address_gets_brackets(address, written):
    assert bracketed(address) == written


def test_known_hosts_has_brackets_round_every_address():
    for address in ("fd00::1", "192.0.2.1", "backup.example.org"):
        assert known_host(address, 2222, "ssh-ed25519 AAAA") == f"[{address}]:2222 ssh-ed25519 AAAA"
