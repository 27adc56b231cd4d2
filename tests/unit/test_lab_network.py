"""The lab's networks: rendering and collisions. What the rules do is tested on machines, in tests/lab."""

from __future__ import annotations

import ipaddress

import pytest

from rehearsal.lab import network
from rehearsal.lab.network import OPERATOR, PUBLIC, SIDES, overlapping, parse_nameservers, render_nft


def test_names_fit_into_linux() -> None:
    names = [side.bridge for side in SIDES] + [network.cable(199, side) for side in SIDES]
    assert all(len(name) <= 15 for name in names)


def test_the_sides_do_not_overlap() -> None:
    assert not PUBLIC.ipv4.overlaps(OPERATOR.ipv4)
    assert not PUBLIC.ipv6.overlaps(OPERATOR.ipv6)


def test_every_interface_has_a_separate_fixed_mac() -> None:
    macs = [side.mac_of(host) for side in SIDES for host in (1, 2, 10, 209)]
    assert len(set(macs)) == len(macs)
    assert PUBLIC.mac_of(10) == "02:6c:61:62:00:0a"
    assert int(macs[0].split(":")[0], 16) & 3 == 2  # locally administered, not multicast


def test_resolvers_that_machines_cannot_reach_are_left_out() -> None:
    servers = ["127.0.0.53", "192.0.2.53", "::1", "fe80::1%eth0", "2001:db8::53"]
    text = "# x\nsearch example\n" + "".join(f"nameserver {server}\n" for server in servers)
    assert parse_nameservers(text) == ["192.0.2.53", "2001:db8::53"]


@pytest.mark.parametrize("other", ["10.77.0.0/16", "10.77.0.5", "10.0.0.0/8"])
def test_overlaps_are_found(other: str) -> None:
    assert overlapping(OPERATOR.ipv4, ["192.0.2.0/24", other]) == other


def test_separate_networks_do_not_overlap() -> None:
    assert overlapping(OPERATOR.ipv4, ["10.76.0.0/16", "fd77::/16", "192.0.2.0/24"]) is None
    assert overlapping(ipaddress.IPv6Network("fd77:6c61:6200::/64"), ["fd77:6c61:6201::/64"]) is None


def test_only_dns_and_web_get_out() -> None:
    rules = render_nft(["192.0.2.53", "2001:db8::53"], {443, 80, 3142}, forwarded_before=True)
    assert "th dport 53 ip daddr 192.0.2.53 accept" in rules
    assert "th dport 53 ip6 daddr 2001:db8::53 accept" in rules
    assert "tcp dport { 80, 443, 3142 } accept" in rules


def test_a_controller_that_did_not_forward_still_does_not_forward() -> None:
    assert "\n    drop\n" in render_nft(["192.0.2.53"], {80}, forwarded_before=False)
    assert "\n    drop\n" not in render_nft(["192.0.2.53"], {80}, forwarded_before=True)
