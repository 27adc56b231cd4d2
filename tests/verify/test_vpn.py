"""Checks of WireGuard: configured clients have access from anywhere, and nobody else gets an answer."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from minipc.core.addresses import bracketed
from minipc.secrets import Secret
from minipc.secrets.generate import wireguard_private_key
from tests.verify.conftest import not_exercised

UNIT = "minipc-vpn.service"


@pytest.fixture
def stranger(target):
    """Connect as another client on the public side, and return whether the machine answered the handshake."""
    side = target.side("vpn")
    if not side.connect:
        not_exercised("there is no client on the public side to try a wrong key with; the lab exercises it")

    def knock(key: str = "", server_key: str = "", within_s: float = 2.5) -> bool:
        tried = f"{within_s}\n{key}\n{server_key}\n"
        done = subprocess.run(
            [*side.connect, "try"], input=tried, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip() == "handshake"

    return knock


def test_the_lab_can_tell_an_answer_from_none(stranger):
    """The right key is answered: without this, the two checks of wrong keys could pass for another reason."""
    assert stranger(within_s=10)


def test_the_tunnel_is_up_with_the_configured_addresses(sh, settings):
    """The VPN interface has the configured addresses."""
    found = sh("ip -o address show dev wg0")
    for address, network in (
        (settings.vpn.address, settings.vpn.network),
        (settings.vpn.address_ipv6, settings.vpn.network_ipv6),
    ):
        assert f"{address}/{network.split('/')[1]}" in found


def test_its_peers_are_those_of_the_list(sh, settings):
    """The VPN accepts exactly the configured clients."""
    lines = [line.split("\t") for line in sh("wg show wg0 allowed-ips").splitlines()]
    found = {key: set(allowed.split()) for key, allowed in lines}
    assert found == {peer.public_key: set(peer.allowed_ips) for peer in settings.vpn.peers}


def test_the_private_key_is_roots_alone(sh):
    """Only root can read the VPN's private key."""
    assert sh("stat -c '%a %U' /etc/minipc/vpn /etc/minipc/vpn/wg0.conf") == "700 root\n600 root"


def test_it_is_up_at_each_boot_and_after_a_crash(units):
    """The VPN starts at boot and restarts after a crash."""
    unit = units(UNIT)
    assert unit["UnitFileState"] == "enabled"
    assert unit["ActiveState"] == "active"
    assert unit["Restart"] == ("no" if unit["Type"] == "oneshot" else "always")


def test_its_unit_is_confined(exposure):
    """The VPN runs with few privileges."""
    assert exposure(UNIT) <= 4


def test_a_peer_gets_in_and_out(tunnel):
    """A VPN client reaches SSH over IPv4 and IPv6.

    A real connection needs the handshake, the firewall and sshd.
    """
    for address in tunnel.addresses:
        done = tunnel.run("ssh-keyscan", "-T", "5", "-t", "ed25519", address)
        assert "ssh-ed25519" in done.stdout, f"{address}: {done.stderr}"


def test_a_stranger_gets_no_answer(stranger, settings, sh):
    """The VPN does not answer a client with an unknown key."""
    before = sh("wg show wg0 peers")
    assert not stranger(key=wireguard_private_key())
    assert sh("wg show wg0 peers") == before


def test_a_peer_that_mistakes_the_machine_gets_no_answer(stranger):
    """The VPN does not answer a client that expects another server key.

    The client's key is right, the server's is not: WireGuard's first message is encrypted for the server's key.
    """
    from minipc.vpn.keys import public_key

    assert not stranger(server_key=public_key(Secret("vpn.other", wireguard_private_key())))


def test_a_crash_ends_no_peers_access(tunnel, disturb, units):
    """VPN clients have access again after the VPN process crashed."""
    if units(UNIT)["Type"] == "oneshot":
        not_exercised("the kernel's WireGuard has no process that could crash")
    disturb(f"systemctl kill --signal=KILL {UNIT}")
    assert tunnel.reaches(22, within_s=30)


def test_services_on_loopback_answer_through_the_vpn_only(tunnel, operator, settings, listeners):
    """Loopback services are reachable through the VPN and not without it."""
    there = {port for address, port, program in listeners if address == "127.0.0.1" and program != "systemd"}
    tries = {name: port for name, port in settings.vpn.services.items() if port in there}
    if not tries:
        not_exercised("none of vpn_services is on this machine")

    def code(side, address: str, port: int) -> str:
        argv = ["curl", "--silent", "--noproxy", "*", "--max-time", "5", "--output", "/dev/null"]
        return side.run(*argv, "--write-out", "%{http_code}", f"http://{bracketed(address)}:{port}/").stdout

    endpoints = [
        (side, address, port) for side in (tunnel, operator) for address in side.addresses for port in tries.values()
    ]
    with ThreadPoolExecutor() as pool:  # a request without an answer waits until its time limit
        codes = dict(zip(endpoints, pool.map(lambda endpoint: code(*endpoint), endpoints), strict=True))
    answered = {(side.name, address, port) for (side, address, port), seen in codes.items() if seen != "000"}
    assert answered == {("vpn", address, port) for address in tunnel.addresses for port in tries.values()}
