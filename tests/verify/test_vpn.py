"""WireGuard: who has a peer's key gets in, from anywhere; everybody else gets no answer at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from minipc.addresses import bracketed
from minipc.secrets import Secret
from minipc.secrets.generate import wireguard_private_key
from tests.verify.conftest import not_exercised

UNIT = "minipc-vpn.service"


@pytest.fixture
def stranger(environment, target):
    """A client on the public side, as the lab's own is, with whatever key it is given. Answers whether it got in."""
    if environment != "lab":
        not_exercised("there is no client on the public side to try a wrong key with; the lab exercises it")
    from minipc.lab import find, tunnel

    machine = find(target.alias)
    tunnel.down(machine, "try")

    def knock(within_s: float = 2.5, **options) -> bool:
        name = tunnel.up(machine, which="try", **options)
        return tunnel.wait_for_handshake(name, within_s)

    yield knock
    tunnel.down(machine, "try")


def test_the_tunnel_is_up_with_the_configured_addresses(sh, settings):
    found = sh("ip -o address show dev wg0")
    for address, network in (
        (settings.vpn.address, settings.vpn.network),
        (settings.vpn.address_ipv6, settings.vpn.network_ipv6),
    ):
        assert f"{address}/{network.split('/')[1]}" in found


def test_its_peers_are_those_of_the_list(sh, settings):
    lines = [line.split("\t") for line in sh("wg show wg0 allowed-ips").splitlines()]
    found = {key: set(allowed.split()) for key, allowed in lines}
    assert found == {peer.public_key: set(peer.allowed_ips) for peer in settings.vpn.peers}


def test_the_private_key_is_roots_alone(sh):
    assert sh("stat -c '%a %U' /etc/minipc/vpn /etc/minipc/vpn/wg0.conf") == "700 root\n600 root"


def test_it_is_up_at_each_boot_and_after_a_crash(units):
    unit = units(UNIT)
    assert unit["UnitFileState"] == "enabled"
    assert unit["ActiveState"] == "active"
    assert unit["Restart"] == ("no" if unit["Type"] == "oneshot" else "always")


def test_its_unit_is_confined(exposure):
    assert exposure(UNIT) <= 4


def test_a_peer_gets_in_and_out(tunnel):
    """Both families, by a real login: the handshake, the firewall and sshd in one."""
    for address in tunnel.addresses:
        done = tunnel.run("ssh-keyscan", "-T", "5", "-t", "ed25519", address)
        assert "ssh-ed25519" in done.stdout, f"{address}: {done.stderr}"


def test_a_stranger_gets_no_answer(stranger, settings, sh):
    before = sh("wg show wg0 peers")
    assert not stranger(key=Secret("vpn.stranger", wireguard_private_key()))
    assert sh("wg show wg0 peers") == before


def test_a_peer_that_mistakes_the_machine_gets_no_answer(stranger):
    """The right key of ours, another machine's public key: WireGuard's first message is for that key only."""
    from minipc.vpn.keys import public_key

    assert not stranger(server_key=public_key(Secret("vpn.other", wireguard_private_key())))


def test_a_crash_ends_no_peers_access(tunnel, disturb, units):
    if units(UNIT)["Type"] == "oneshot":
        not_exercised("the kernel's WireGuard has no process that could crash")
    disturb(f"systemctl kill --signal=KILL {UNIT}")
    assert tunnel.reaches(22, within_s=30)


def test_services_on_loopback_answer_through_it_and_not_beside_it(tunnel, operator, settings, listeners):
    there = {port for address, port, program in listeners if address == "127.0.0.1" and program != "systemd"}
    tries = {name: port for name, port in settings.vpn.services.items() if port in there}
    if not tries:
        not_exercised("none of vpn_services is on this machine")

    def code(side, address: str, port: int) -> str:
        argv = ["curl", "--silent", "--noproxy", "*", "--max-time", "5", "--output", "/dev/null"]
        return side.run(*argv, "--write-out", "%{http_code}", f"http://{bracketed(address)}:{port}/").stdout

    doors = [
        (side, address, port) for side in (tunnel, operator) for address in side.addresses for port in tries.values()
    ]
    with ThreadPoolExecutor() as pool:  # who gets no answer waits for it
        codes = dict(zip(doors, pool.map(lambda door: code(*door), doors), strict=True))
    answered = {(side.name, address, port) for (side, address, port), seen in codes.items() if seen != "000"}
    assert answered == {("vpn", address, port) for address in tunnel.addresses for port in tries.values()}
