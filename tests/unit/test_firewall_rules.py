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
    assert 'iifname { "cni0", "flannel.1", "flannel-wg" } jump from_pods' in forward
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


def test_limits_for_clients_do_not_apply_to_trusted_proxies():
    found = chain(rules(trusted_ipv4=["203.0.113.0/24"], trusted_ipv6=["2001:db8::/32"]), "public")
    assert found[:2] == [
        "meta l4proto tcp ip saddr { 203.0.113.0/24 } accept",
        "meta l4proto tcp ip6 saddr { 2001:db8::/32 } accept",
    ]
    assert "ct count over" in " ".join(found[2:])
    assert "accept" not in " ".join(chain(rules(), "public")[:-1]), "nobody is exempt unless a service says so"


def test_the_ingress_for_the_operator_is_open_in_the_vpn_only():
    given = rules(operator_ingress=10443)
    assert chain(given, "vpn")[:2] == ["jump operator", "tcp dport 10443 accept"]
    assert chain(given, "operator_ingress")[1:] == [
        'iifname "wg0" fib daddr type local tcp dport 443 redirect to :10443'
    ]
    assert given.count("10443") == 2
    assert "10443" not in rules()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"any_interface": True},
        {"vpn": None, "repository": []},
        {"near_ipv6": [], "repository": []},
        {"trusted_ipv4": ["203.0.113.0/24"], "trusted_ipv6": ["2001:db8::/32"], "operator_ingress": 10443},
    ],
)
def test_they_are_rules(tmp_path, values):
    if not shutil.which("nft") or os.geteuid():
        pytest.skip("NOT EXERCISED: no nft here, or not root")
    (tmp_path / "rules").write_text(rules(**values))
    argv = ["unshare", "--net", "nft", "--check", "--file", str(tmp_path / "rules")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
