"""Host keys and identities: pinned, replaced atomically, never trusted on first use."""

from __future__ import annotations

import pytest

from minipc.core.environment import PRODUCTION
from minipc.core.errors import ConfigError
from minipc.remote.host_keys import fingerprint_of
from minipc.remote.pins import Pin, known_hosts_file, read_pins, write_pin

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHQDg+I7VgiSnkoyBUCw9uU0MOg72LrtOeqj/qI9zpcH"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))


def test_a_pin_is_kept_beside_the_others(tmp_path):
    path = tmp_path / "pins.json"
    write_pin("b", Pin(host_key=KEY, identity="2"), path)
    write_pin("a", Pin(host_key=KEY), path)
    write_pin("b", Pin(host_key=KEY, identity="3"), path)
    assert read_pins(path) == {"a": Pin(host_key=KEY), "b": Pin(host_key=KEY, identity="3")}
    assert path.read_text().index('"a"') < path.read_text().index('"b"'), "sorted: a small diff in git"


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "pins.json"
    path.write_text('{"a": {"host_key": 1}}')
    with pytest.raises(ConfigError, match=r"pins\.json"):
        read_pins(path)


def test_without_a_pin_ssh_knows_no_host():
    assert known_hosts_file("m", "10.0.0.1", 22, None).read_text() == ""


def test_known_hosts_follow_the_pin_and_the_port():
    assert f"10.0.0.1 {KEY}" in known_hosts_file("m", "10.0.0.1", 22, Pin(host_key=KEY)).read_text()
    assert f"[10.0.0.1]:2222 {KEY}" in known_hosts_file("m", "10.0.0.1", 2222, Pin(host_key=KEY)).read_text()


def test_the_fingerprint_is_the_one_openssh_prints(tmp_path):
    import subprocess

    (tmp_path / "k.pub").write_text(KEY + "\n")
    printed = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "k.pub")], capture_output=True, text=True, timeout=10)
    assert fingerprint_of(KEY) == printed.stdout.split()[1]


def test_pins_of_the_repository_are_readable():
    read_pins(PRODUCTION.pins_file)
