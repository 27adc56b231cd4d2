"""The rules as they are written, without a machine; what they do is tried by tests/verify/test_firewall.py."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.unit.firewall_rules import chain, rules


def test_pods_get_to_the_repository_and_to_resolvers_near_the_operator_and_no_further():
    assert chain(rules(), "from_pods") == [
        'oifname "wg0" counter drop',
        "ip daddr 10.99.0.0/24 counter drop",
        "ip6 daddr fd99:6d69:6e69::/64 counter drop",
        "ip daddr 10.77.0.20 tcp dport 2222 accept",
        "ip6 daddr fd77::20 tcp dport 22 accept",
        "ip daddr { 10.77.0.0/24 } meta l4proto { tcp, udp } th dport 53 accept",
        "ip daddr { 10.77.0.0/24 } counter drop",
        "ip6 daddr { fd77::/64 } meta l4proto { tcp, udp } th dport 53 accept",
        "ip6 daddr { fd77::/64 } counter drop",
        "accept",
    ]
    forward = chain(rules(), "forward")
    assert 'iifname { "cni0", "flannel.1" } jump from_pods' in forward
    assert not [line for line in forward if "cni0" in line and line.endswith("accept")]


def test_that_holds_where_the_networks_are_shut_to_the_operator():
    shut = rules(operator_ipv4=[], operator_ipv6=[])
    assert chain(shut, "from_pods") == chain(rules(), "from_pods")


def test_from_the_console_the_source_decides_whatever_the_interface_is_called():
    """A network card that was renamed locks everybody out: break-glass must not depend on its name."""
    usual, glass = chain(rules(), "input"), chain(rules(any_interface=True), "input")
    assert 'iifname { "operator0" } ip saddr { 10.77.0.0/24 } jump operator' in usual
    assert 'iifname { "operator0" } ip6 saddr { fd77::/64 } jump operator' in usual
    assert "ip saddr { 10.77.0.0/24 } jump operator" in glass
    assert "ip6 saddr { fd77::/64 } jump operator" in glass
    assert len(glass) == len(usual)


@pytest.mark.parametrize(
    "values", [{}, {"any_interface": True}, {"vpn": None, "repository": []}, {"near_ipv6": [], "repository": []}]
)
def test_they_are_rules(tmp_path, values):
    if not shutil.which("nft") or os.geteuid():
        pytest.skip("NOT EXERCISED: no nft here, or not root")
    (tmp_path / "rules").write_text(rules(**values))
    argv = ["unshare", "--net", "nft", "--check", "--file", str(tmp_path / "rules")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
