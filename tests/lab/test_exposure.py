"""Test the full exposure proof: it passes on a correct machine and finds an open port."""

from __future__ import annotations

import pytest

from tests.lab.conftest import on, run

# It takes minutes and a reboot. Each rehearsal runs the short form.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900, func_only=True)]


def prove(site, *options: str):
    done = run("minipc", "prove", "exposure", "--inventory", "lab", "--host", site.name, *options, timeout_s=800)
    return done, done.record


def test_each_side_reaches_only_its_ports_at_every_moment(site):
    done, record = prove(site)
    assert done.code == 0, done.output
    moments = ["at rest", "after a reload", "during a converge", "after a reboot"]
    assert list(dict.fromkeys(port["moment"] for port in record["exposure"])) == moments
    assert {port["side"] for port in record["exposure"]} == {"public", "operator", "vpn", "machine"}
    tried = {(port["what"], port["seen"]) for port in record["exposure"]}
    assert {("WireGuard, with the right key", "handshake"), ("WireGuard, with a wrong key", "no answer")} <= tried
    assert ("canary behind a NodePort", "silent") in tried
    assert "proof" not in on(site, "nft list tables; ip netns list; ip -o link")


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("insert rule inet minipc input iifname public0 tcp dport 5432-65000 accept", "canary on all addresses"),
        ("insert rule inet minipc forward iifname public0 accept", "canary behind a"),
    ],
    ids=["input", "forward"],
)
def test_an_open_port_is_found(site, rule, reason):
    on(site, f"nft {rule}")
    try:
        done, record = prove(site, "--short")
    finally:
        on(site, "systemctl reload minipc-firewall")
    assert done.code == 1, done.output
    assert record["verdict"] == "fail"
    assert reason in record["reasons"][0]
