"""A production machine whose SSH answers beside the VPN never passes in silence."""

from __future__ import annotations

import pytest

from minipc.config import load
from minipc.core.environment import LAB, PRODUCTION
from minipc.evidence.event_stream import NotExercised, read
from minipc.remote import inventory
from playbooks import vpn_bypass

PEER = {"name": "laptop", "public_key": "ELkw1XE9cpZsDfB9Av4qurcoyEw+XZ6qB8SoUIVTo1M=", "allowed_ips": ["10.99.0.2/32"]}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b you"


def target(access: str, role: str = "mini") -> inventory.Target:
    data = {"host_operator_keys": [KEY], "vpn_peers": [PEER], "firewall_operator_access": access}
    return inventory.Target("mini", data, load("production", **data), role)


@pytest.fixture(autouse=True)
def no_glass(monkeypatch):
    monkeypatch.delenv("MINIPC_BREAK_GLASS", raising=False)


def test_open_networks_are_told_with_ports_and_what_closes_them():
    why = vpn_bypass.why_open(PRODUCTION, target("networks"))
    assert "TCP 22, 6443, 8443 are open to all of 192.168.1.0/24" in why
    assert 'set address="10.99.0.1" in inventory/' in why


def test_after_a_rebuild_the_command_that_closes_them_is_told(monkeypatch):
    monkeypatch.setenv("MINIPC_BREAK_GLASS", "1")
    monkeypatch.setattr(vpn_bypass, "group_data", lambda _: {"firewall_operator_access": "vpn"})
    why = vpn_bypass.why_open(PRODUCTION, target("networks"))
    assert "bypassed the VPN; `minipc apply firewall` through the tunnel closes them" in why


@pytest.mark.parametrize(
    ("environment", "access", "role"),
    [(PRODUCTION, "vpn", "mini"), (LAB, "networks", "mini"), (PRODUCTION, "networks", "offsite")],
)
def test_where_it_is_shut_or_meant_nothing_is_said(environment, access, role):
    assert vpn_bypass.why_open(environment, target(access, role)) == ""


def test_it_is_in_the_display_and_in_the_record(tmp_path, monkeypatch):
    run = vpn_bypass.Run("converge", tmp_path)
    vpn_bypass.tell(run, PRODUCTION, target("networks"))
    note, gap = read(run.events)
    assert note.text == gap.why
    assert isinstance(gap, NotExercised)
    assert (gap.what, gap.component) == ("SSH in the VPN only", "firewall")
    vpn_bypass.tell(run, PRODUCTION, target("vpn"))
    assert len(list(read(run.events))) == 2


def test_apply_verify_and_rebuild_say_it():
    from minipc.core.paths import ROOT

    assert "vpn_bypass.tell(run, environment," in (ROOT / "playbooks/rebuild.py").read_text()
    text = (ROOT / "playbooks/apply.py").read_text()
    assert "vpn_bypass.tell(run, environment, target)" in text
    assert "vpn_bypass.why_open(environment, target)" in text
