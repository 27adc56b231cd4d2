"""The proof of the two doors, whole: it passes on a machine as it should be, and finds a hole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.lab.conftest import on, run

# Minutes of scanning and a reboot; each rehearsal has the short form.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900, func_only=True)]


def prove(site, *options: str):
    done = run("minipc", "prove", "separation", "--inventory", "lab", "--host", site.name, *options, timeout_s=800)
    found = re.search(r"Record\s+(\S+)", done.output)
    assert found, done.output
    return done, json.loads(Path(found[1]).read_text())


def test_nobody_reaches_what_is_not_for_them_at_any_moment(site):
    done, record = prove(site)
    assert done.code == 0, done.output
    moments = ["at rest", "after a reload", "during a converge", "after a reboot"]
    assert list(dict.fromkeys(door["moment"] for door in record["doors"])) == moments
    assert {door["side"] for door in record["doors"]} == {"public", "operator", "vpn", "machine"}
    tried = {(door["what"], door["seen"]) for door in record["doors"]}
    assert {("WireGuard, with the right key", "handshake"), ("WireGuard, with a wrong key", "no answer")} <= tried
    assert ("canary behind a NodePort", "silent") in tried
    assert "proof" not in on(site, "nft list tables; ip netns list; ip -o link")


@pytest.mark.parametrize(
    ("hole", "told"),
    [
        ("insert rule inet minipc input iifname public0 tcp dport 5432-65000 accept", "canary on all addresses"),
        ("insert rule inet minipc forward iifname public0 accept", "canary behind a"),
    ],
    ids=["input", "forward"],
)
def test_a_hole_is_found(site, hole, told):
    on(site, f"nft {hole}")
    try:
        done, record = prove(site, "--short")
    finally:
        on(site, "systemctl reload minipc-firewall")
    assert done.code == 1, done.output
    assert record["verdict"] == "fail"
    assert told in record["reasons"][0]
