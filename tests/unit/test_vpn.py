"""Peers, their keys and their files."""

from __future__ import annotations

import stat
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from minipc.cli import vpn
from minipc.config import load
from minipc.core.errors import ConfigError, RefusedError, SecretError
from minipc.remote import inventory
from minipc.secrets import Secret
from minipc.vpn.client import qr_code
from minipc.vpn.keys import public_key
from minipc.vpn.peers import free_addresses, read_peers, write_peers
from playbooks import vpn_clients
from rehearsal.lab import tunnel

NETWORKS = ["10.99.0.0/29", "fd99::/64"]
# Made by `wg genkey` and `wg pubkey`.
PRIVATE, PUBLIC = "cIM3TXX+EhdOBG66gvkQ+Ju6xHrhOSevZ9H4tdENz2I=", "ELkw1XE9cpZsDfB9Av4qurcoyEw+XZ6qB8SoUIVTo1M="


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Production with a peers file and secrets of its own."""
    peers = tmp_path / "peers.json"

    def target(environment, alias=None):
        data = {"vpn_peers": read_peers(peers), "vpn_endpoint": "service.example.org", "host_operator_keys": []}
        return inventory.Target("mini", data, load(environment, **data))

    monkeypatch.setenv("MINIPC_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(vpn, "the_target", target)
    monkeypatch.setattr(vpn_clients, "read_peers", lambda: read_peers(peers))
    monkeypatch.setattr(vpn_clients, "write_peers", lambda changed: write_peers(changed, peers))
    monkeypatch.setattr(vpn_clients, "load", lambda environment, names: {name: Secret(name, PRIVATE) for name in names})
    return tmp_path


def run(*argv):
    return CliRunner().invoke(vpn.vpn, list(argv), catch_exceptions=True)


def test_the_public_key_is_wireguards():
    assert public_key(Secret("vpn.x", PRIVATE)) == PUBLIC


@pytest.mark.parametrize("value", ["no base64!", "aGVsbG8="])
def test_another_value_is_no_key(value):
    with pytest.raises(SecretError, match=r"vpn\.x is not a WireGuard private key") as error:
        public_key(Secret("vpn.x", value))
    assert value not in str(error.value)


def test_addresses_are_given_in_order_and_never_twice():
    assert free_addresses(NETWORKS, []) == ["10.99.0.2/32", "fd99::2/128"]
    assert free_addresses(NETWORKS, ["10.99.0.2/32", "fd99::3/128"]) == ["10.99.0.4/32", "fd99::4/128"]
    with pytest.raises(ConfigError, match=r"no free address is left in 10\.99\.0\.0/29"):
        free_addresses(NETWORKS, ["10.99.0.0/29"])


def test_a_device_is_added(home):
    done = run("add", "laptop", "--qr")
    assert done.exit_code == 0, done.output
    path = home / "config/vpn/laptop.conf"
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "Address = 10.99.0.2/32, fd99:6d69:6e69::2/128" in text
    assert f"PublicKey = {PUBLIC}" in text
    assert "Endpoint = service.example.org:51820" in text
    assert "AllowedIPs = 10.99.0.1/32, fd99:6d69:6e69::1/128" in text, "nothing but the machine goes through it"
    private = next(line.split(" = ")[1] for line in text.splitlines() if line.startswith("PrivateKey"))
    (peer,) = read_peers(home / "peers.json")
    assert peer["name"] == "laptop"
    assert peer["public_key"] == public_key(Secret("vpn.x", private))
    assert private not in done.output, "the key is in the file and in the QR code, not in words"
    assert private not in (home / "peers.json").read_text()
    assert "█" in done.output


def test_the_qr_code_is_for_a_terminal_only(home, monkeypatch):
    """It holds the private key, and output that goes elsewhere is kept by somebody."""
    assert "█" not in run("add", "laptop").output
    monkeypatch.setattr(vpn, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    assert "█" in run("add", "phone").output
    assert "█" not in run("add", "tablet", "--no-qr").output


def test_a_name_is_given_once_and_a_file_never_overwritten(home):
    assert run("add", "laptop", "--no-qr").exit_code == 0
    again = run("add", "laptop")
    assert isinstance(again.exception, ConfigError)
    assert "have the same name" in str(again.exception)
    occupied = home / "other.conf"
    occupied.write_text("mine")
    refused = run("add", "phone", "--output", str(occupied))
    assert isinstance(refused.exception, RefusedError)
    assert occupied.read_text() == "mine"
    assert [peer["name"] for peer in read_peers(home / "peers.json")] == ["laptop"]


def test_a_bad_name_changes_nothing(home):
    done = run("add", "My Laptop")
    assert isinstance(done.exception, ConfigError)
    assert not (home / "peers.json").exists()
    assert not list((home / "config").rglob("*.conf"))


def test_devices_are_listed_and_revoked(home):
    for name in ("laptop", "phone"):
        assert run("add", name, "--no-qr").exit_code == 0
    listed = run("list").output
    assert "laptop" in listed
    assert "10.99.0.3/32" in listed
    assert "2 VPN clients" in listed
    done = run("revoke", "laptop")
    assert "minipc apply vpn" in done.output
    assert "1 VPN client\n" in run("list").output
    # Its address is free again, its key is not known any more.
    assert [peer["name"] for peer in read_peers(home / "peers.json")] == ["phone"]


def test_revoking_a_stranger_names_those_there_are(home):
    run("add", "laptop", "--no-qr")
    done = run("revoke", "labtop")
    assert "has no client 'labtop'" in str(done.exception)
    assert "it has: laptop" in str(done.exception)


def test_a_damaged_list_is_named(tmp_path):
    path = tmp_path / "peers.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"peers\.json is not a list of VPN clients"):
        read_peers(path)


def test_the_qr_code_holds_the_text():
    import segno

    assert qr_code("x") == qr_code("x") != qr_code("y")
    assert segno.make("x", error="L", micro=False).version == 1


def test_machines_of_the_lab_have_tunnels_of_their_own(monkeypatch):
    monkeypatch.setattr(tunnel, "client_key", lambda: Secret("vpn.lab", PRIVATE))
    for index in (0, 199):
        settings = load("lab", **tunnel.settings_of(index, "198.51.100.10"))
        assert settings.vpn.address == f"10.99.{index}.1" == tunnel.addresses(index, 1)[0]
        assert settings.vpn.address_ipv6 == tunnel.addresses(index, 1)[1]
        assert settings.vpn.peers[0].public_key == PUBLIC


# --- beside the VPN -------------------------------------------------------------------------------------------------


def where(monkeypatch, tmp_path, glass: str, **options):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("MINIPC_BREAK_GLASS", glass)
    _, data = inventory.target("mini", address="10.99.0.1", **options)
    return data["ssh_hostname"], data.get("firewall_operator_access")


def test_with_the_glass_broken_the_machine_is_reached_beside_its_vpn_and_stays_so(monkeypatch, tmp_path):
    lan = {"lan_address": "192.168.1.10"}
    assert where(monkeypatch, tmp_path, "", **lan) == ("10.99.0.1", "vpn")
    assert where(monkeypatch, tmp_path, "1", **lan) == ("192.168.1.10", "networks")
    assert where(monkeypatch, tmp_path, "1") == ("10.99.0.1", "networks")


def test_the_operators_networks_are_closed_once_the_machine_is_reached_through_its_vpn(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("MINIPC_BREAK_GLASS", raising=False)
    access = {
        address: inventory.target("mini", address=address)[1].get("firewall_operator_access")
        for address in ("10.99.0.1", "fd99:6d69:6e69::1", "192.168.1.10", "mini.example.org")
    }
    assert access == {
        "10.99.0.1": "vpn",
        "fd99:6d69:6e69::1": "vpn",
        "192.168.1.10": None,
        "mini.example.org": None,
    }
    monkeypatch.setattr(inventory, "group_data", lambda _: {"firewall_operator_access": "networks"})
    assert "firewall_operator_access" not in inventory.target("mini", address="10.99.0.1")[1]
    assert load("production", host_operator_keys=[]).firewall.operator_access == "networks"


def test_every_command_that_connects_can_break_the_glass():
    from minipc.cli.main import cli as commands

    for name in ("plan", "apply", "verify", "drill", "status"):
        command = commands.get_command(None, name)
        assert "--break-glass" in [option for each in command.params for option in each.opts], name
