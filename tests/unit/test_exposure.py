"""Test the exposure proof: expected ports of each side against scans."""

from __future__ import annotations

import pytest

from minipc.config import load
from minipc.core.errors import CouldNotVerifyError
from minipc.evidence.records import PortState
from minipc.verification.exposure import expected, judge
from minipc.verification.port_scan import Scan, parse
from rehearsal.exposure import _distinct

CANARIES = {51999: "canary"}
LISTENING = {22, 80, 443, 5432, 6379, 9090, 9093, 51999}
SHUT = Scan(frozenset({80, 443}), frozenset({"filtered"}))


@pytest.fixture(scope="module")
def settings():
    return load("lab", host_operator_keys=[])


def rows(settings, side, ipv4, ipv6=None, tried=65535):
    scans = {"IPv4": ipv4, "IPv6": ipv6 or ipv4}
    return {door.port: door for door in judge("at rest", side, scans, settings, LISTENING, CANARIES, tried)}


def wrong(rows):
    return {row.port: row.seen for row in rows.values() if not row.ok}


def test_a_scan_is_read():
    xml = """<nmaprun><host><ports><extraports state="filtered" count="9"/><port protocol="tcp" portid="443">
    <state state="open" reason="syn-ack"/></port><port protocol="tcp" portid="22"><state state="closed"/></port></ports>
    </host></nmaprun>"""
    assert parse(xml) == Scan(frozenset({443}), frozenset({"filtered", "closed"}))
    with pytest.raises(CouldNotVerifyError, match="contains no port"):
        parse("<nmaprun></nmaprun>")


def test_the_public_side_reaches_only_the_public_ports(settings):
    found = rows(settings, "public", SHUT)
    assert wrong(found) == {}
    assert found["443/tcp"].expected == "open"
    assert found["22/tcp"].expected == found["5432/tcp"].expected == found["51999/tcp"].expected == "silent"
    assert found["443/tcp"].families == "IPv4 and IPv6"


@pytest.mark.parametrize("port", [22, 5432, 51999])
def test_an_open_port_is_reported_with_its_family(settings, port):
    leak = Scan(SHUT.open | {port}, SHUT.others)
    assert wrong(rows(settings, "public", SHUT, leak)) == {f"{port}/tcp": "IPv4 silent, IPv6 open"}


def test_an_unexpected_open_port_is_reported(settings):
    leak = Scan(SHUT.open | {4242}, SHUT.others)
    (seen,) = wrong(rows(settings, "public", leak)).values()
    assert seen == "open: 4242"


def test_a_closed_port_is_not_silent(settings):
    """An answer, even a refusal, reveals the machine."""
    assert wrong(rows(settings, "public", Scan(SHUT.open, frozenset({"filtered", "closed"}))))


def test_a_missing_public_port_is_reported(settings):
    assert wrong(rows(settings, "public", Scan(frozenset({80}), SHUT.others))) == {"443/tcp": "silent"}


def test_operator_ports_answer_on_the_operator_side(settings):
    assert wrong(rows(settings, "operator", Scan(SHUT.open | {22}, SHUT.others))) == {}
    assert wrong(rows(settings, "operator", SHUT)) == {"22/tcp": "silent"}
    assert wrong(rows(settings, "vpn", Scan(frozenset({22, 9090, 9093}), SHUT.others))) == {}
    assert set(wrong(rows(settings, "vpn", Scan(frozenset({22, 443, 6379, 9090, 9093}), SHUT.others)))) == {
        "443/tcp",
        "6379/tcp",
    }


def test_with_vpn_access_only_the_operator_networks_reach_no_operator_port(settings):
    shut = settings.model_copy(update={"firewall": settings.firewall.model_copy(update={"operator_access": "vpn"})})
    assert wrong(rows(shut, "operator", SHUT)) == {}
    assert expected("vpn", 22, shut, LISTENING) == "open"


def test_an_operator_port_without_a_listener_is_closed_and_not_silent(settings):
    more = settings.model_copy(update={"firewall": settings.firewall.model_copy(update={"operator_tcp": [22, 6443]})})
    assert wrong(rows(more, "vpn", Scan(frozenset({22, 9090, 9093}), frozenset({"filtered", "closed"})))) == {}


def test_of_repeated_scans_the_wrong_row_is_kept():
    def port(seen):
        return PortState(
            moment="m", side="public", families="IPv4", port="22/tcp", what="SSH", expected="silent", seen=seen,
            ok=seen == "silent",
        )  # fmt: skip

    assert _distinct([port("silent"), port("open"), port("silent")]) == [port("open")]


def test_a_row_cannot_contradict_itself():
    with pytest.raises(ValueError, match="expected silent, seen open, ok True"):
        PortState(
            moment="m",
            side="public",
            families="IPv4",
            port="22/tcp",
            what="SSH",
            expected="silent",
            seen="open",
            ok=True,
        )
