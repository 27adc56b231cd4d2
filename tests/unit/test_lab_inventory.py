"""The lab's machines as inventory entries, also when they stand for production."""

from __future__ import annotations

import pytest

from minipc.config import load
from minipc.core.environment import PRODUCTION
from rehearsal.lab import inventory
from rehearsal.lab.machine import Machine

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b lab"


@pytest.fixture(autouse=True)
def machines(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(inventory, "client_public_key", lambda: KEY)
    monkeypatch.setattr(inventory, "client_key", lambda: tmp_path / "key")
    names = ["agent-mini", "mini", "mini-2", "offsite-mini", "other"]
    made = [Machine(name, index, 6, "image", host_key=KEY, k3s="mini" in name) for index, name in enumerate(names)]
    monkeypatch.setattr(inventory, "load_all", lambda: made)


def settings(data):
    return load("lab", **{key: value for key, value in data.items() if not key.startswith(("ssh_", "_"))})


@pytest.mark.parametrize("group", ["", "production"])
def test_every_machine_has_valid_settings_and_its_off_site_machine(group, monkeypatch):
    if group:
        monkeypatch.setenv("MINIPC_REHEARSE_AS", group)
    hosts = dict(inventory.lab_hosts())
    found = {name: settings(data).backups.offsite for name, data in hosts.items() if not inventory.is_offsite(name)}
    assert found.pop("agent-mini") is None
    assert found == {"mini": "offsite-mini", "mini-2": "offsite-mini", "other": None}
    offsite = settings(hosts["offsite-mini"])
    assert offsite.host.name == "offsite-mini"
    assert offsite.firewall.public_tcp == [
        offsite.offsite.sftp_port,
        offsite.offsite.rest_port,
        offsite.watcher.port,
    ]


@pytest.mark.parametrize("group", ["", "production"])
def test_an_agent_belongs_to_the_machine_in_its_name_and_has_no_ingress(group, monkeypatch):
    if group:
        monkeypatch.setenv("MINIPC_REHEARSE_AS", group)
    hosts = {name: settings(data) for name, data in inventory.lab_hosts()}
    agent = hosts["agent-mini"]
    assert (agent.host.name, agent.k3s.server, agent.services.runtime) == ("agent-mini", "mini", "k3s")
    assert (agent.firewall.public_tcp, agent.firewall.public_udp, agent.firewall.operator_tcp) == ([], [], [22])
    assert agent.firewall.operator_access == "networks"
    # Where the others reach them: the operator's side.
    assert (agent.k3s.node_ip, hosts["mini"].k3s.node_ip) == ("10.77.0.10", "10.77.0.11")
    assert (hosts["mini"].k3s.server, hosts["other"].k3s.node_ip) == (None, None)


def test_production_in_the_lab_keeps_its_values_except_those_that_the_lab_replaces():
    named = {each.key for each in inventory.overrides(PRODUCTION)}
    assert {"environment", "edge_acme", "services_runtime"} <= named <= set(inventory.NEEDED_IN_LAB)
    assert inventory.stand_in_data(PRODUCTION)["redis_maxmemory_mb"] == 256
