"""The lab's machines as inventory entries, also when they stand for production."""

from __future__ import annotations

import pytest

from minipc.config import load
from minipc.lab import inventory
from minipc.lab.machine import Machine

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b lab"


@pytest.fixture(autouse=True)
def machines(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(inventory, "client_public_key", lambda: KEY)
    monkeypatch.setattr(inventory, "client_key", lambda: tmp_path / "key")
    names = ["mini", "mini-2", "offsite-mini", "other"]
    made = [Machine(name, index, 6, "image", host_key=KEY) for index, name in enumerate(names)]
    monkeypatch.setattr(inventory, "load_all", lambda: made)


def settings(data):
    return load("lab", **{key: value for key, value in data.items() if not key.startswith(("ssh_", "_"))})


@pytest.mark.parametrize("group", ["", "production"])
def test_every_machine_has_valid_settings_and_its_off_site_machine(group, monkeypatch):
    if group:
        monkeypatch.setenv("MINIPC_REHEARSE_AS", group)
    hosts = dict(inventory.lab_hosts())
    found = {name: settings(data).backups.offsite for name, data in hosts.items() if not inventory.is_offsite(name)}
    assert found == {"mini": "offsite-mini", "mini-2": "offsite-mini", "other": None}
    offsite = settings(hosts["offsite-mini"])
    assert offsite.host.name == "offsite-mini"
    assert offsite.firewall.public_tcp == [
        offsite.offsite.sftp_port,
        offsite.offsite.rest_port,
        offsite.watcher.ping_port,
    ]


def test_standing_for_production_keeps_productions_values_but_those_the_lab_needs():
    named = {each.key for each in inventory.overrides("production")}
    assert {"environment", "edge_acme", "workload_runtime"} <= named <= set(inventory.NEEDED_IN_LAB)
    assert inventory.stand_in_data("production")["redis_maxmemory_mb"] == 256
