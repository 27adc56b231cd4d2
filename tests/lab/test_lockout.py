"""Test that changes which lock the operator out are reverted. Access: operator's network, VPN, console.

A separate machine has SSH, VPN and firewall. The controller is the client namespace `operator`: it is on the operator's
network and has the tunnel.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minipc.core.environment import LAB
from minipc.core.paths import ROOT
from minipc.core.variables import LAB_VPN_VARIABLE
from minipc.secrets import Secret
from minipc.secrets.generate import generate, wireguard_private_key
from minipc.vpn.keys import public_key
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab import tunnel
from rehearsal.lab.inventory import entry
from tests.lab.conftest import BIN, Done, write_inventory

COMPONENTS = ("host", "vpn", "firewall")
IN_OPERATOR = ("ip", "netns", "exec", "operator")
# The shortest allowed value, because tests wait for it.
WITHIN_S = 20
RULES = "/etc/minipc/firewall.nft"


class Site:
    """The machine, and the ways to reach it."""

    def __init__(self, machine: lab.Machine, folder: Path) -> None:
        self.machine, self.folder = machine, folder
        self.settings: dict[str, object] = {"host_confirm_within_s": WITHIN_S}

    def command(self, *components: str, repository: Path = ROOT) -> list[str]:
        inventory = write_inventory(self.folder, self.machine, **self.settings)
        files = [str(repository / f"deploys/{name}.py") for name in components or COMPONENTS]
        return [*IN_OPERATOR, str(BIN / "pyinfra"), "-y", str(inventory), *files]

    def start(self, *components: str, vpn: bool = False, repository: Path = ROOT) -> subprocess.Popen[str]:
        """Start a converge."""
        return subprocess.Popen(
            self.command(*components, repository=repository),
            cwd=repository,
            env=os.environ | {LAB_VPN_VARIABLE: "1" if vpn else "", "PYTHONPATH": str(repository)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def converge(self, *components: str, vpn: bool = False, repository: Path = ROOT) -> Done:
        """Converge from the operator's network, or through the VPN."""
        process = self.start(*components, vpn=vpn, repository=repository)
        output, _ = process.communicate(timeout=300)
        return Done(process.returncode, output)

    def console(self, command: str) -> str:
        """Run a command on the machine's console. Returns its output."""
        argv = lab.console_command(self.machine, "sh", "-c", command)
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    def answers(self, address: str) -> bool:
        """Return whether a new SSH login of the operator works at an address."""
        options = ["-o", "ControlPath=none", "-o", "ConnectTimeout=2", "-o", f"HostName={address}"]
        options += ["-o", f"HostKeyAlias={self.machine.name}"]
        argv = [*IN_OPERATOR, "ssh", "-F", str(lab.ssh_config_path()), *options, self.machine.name, "true"]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).returncode == 0

    @property
    def by_network(self) -> bool:
        return self.answers(self.machine.operator_ipv4)

    @property
    def by_vpn(self) -> bool:
        return self.answers(tunnel.addresses(self.machine.index, 1)[0])


@pytest.fixture(scope="module")
def site(lab_ready, tmp_path_factory):
    generate("lab")
    with lab.machine(f"lockout-{os.getpid()}") as machine:
        adopt(LAB, entry(machine), machine.host_key_fingerprint)
        site = Site(machine, tmp_path_factory.mktemp("lockout"))
        done = site.converge()
        assert done.code == 0, done.output
        tunnel.up(machine)
        yield site


@pytest.fixture
def broken(tmp_path) -> Callable[[str, str, str], Path]:
    """Return a function that copies the repository and breaks a template in the copy."""

    def copy(template: str, old: str, new: str) -> Path:
        listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tmp_path / name)
        path = tmp_path / "templates" / template
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return tmp_path

    return copy


def wait_until(check: Callable[[], bool], within_s: float = WITHIN_S + 15) -> bool:
    """Wait for a condition. Returns whether it became true within that many seconds."""
    give_up_at = time.monotonic() + within_s
    while not (true := check()) and time.monotonic() < give_up_at:
        time.sleep(0.5)
    return true


LOCKOUTS = [
    (
        "firewall",
        "firewall/rules.nft.j2",
        "any(firewall.operator_tcp) }} accept",
        "any(firewall.operator_tcp) }} drop",
    ),
    ("host", "host/sshd.conf.j2", "AllowUsers {{ host.operator_user }} root", "AllowUsers nobody"),
    (
        "firewall",
        "firewall/minipc-firewall.service.j2",
        "ExecStart=/usr/sbin/nft -f /etc/minipc/firewall.nft",
        "ExecStart=/usr/sbin/nft flush chain inet minipc operator",
    ),
]
TUNNELS = [
    ("vpn/wg0.conf.j2", "{{ peer.public_key }}", None),  # replaced by an unknown key
    ("vpn/minipc-vpn.service.j2", "ExecStartPost=/usr/local/lib/minipc/vpn-up", "ExecStartPost=/bin/true"),
]


@pytest.mark.parametrize(
    ("component", "template", "old", "new"),
    [
        pytest.param(*LOCKOUTS[0], id="firewall"),
        pytest.param(*LOCKOUTS[1], id="sshd", marks=pytest.mark.long),
        pytest.param(*LOCKOUTS[2], id="unit", marks=pytest.mark.long),
    ],
)
def test_a_change_that_locks_the_operator_out_is_reverted(site, broken, component, template, old, new):
    files = f"sha256sum {RULES} /etc/ssh/sshd_config.d/10-minipc.conf /etc/systemd/system/minipc-firewall.service"
    before = site.console(files)
    done = site.converge(component, repository=broken(template, old, new))
    assert done.code != 0
    assert "no new connection could confirm the change" in done.output, done.output
    assert "reverts it" in done.output
    assert wait_until(lambda: site.by_network), "SSH did not answer again"
    assert site.console(files) == before
    again = site.converge()
    assert again.code == 0, again.output
    assert site.by_network
    assert site.by_vpn


@pytest.mark.long
@pytest.mark.parametrize(("template", "old", "new"), TUNNELS, ids=["peers", "unit"])
def test_a_broken_tunnel_is_reverted_for_an_operator_behind_it(site, broken, template, old, new):
    stranger = public_key(Secret("vpn.stranger", wireguard_private_key()))
    repository = broken(template, old, new or stranger)
    done = site.converge("vpn", vpn=True, repository=repository)
    assert done.code != 0, done.output
    assert wait_until(lambda: site.by_vpn)
    assert site.converge("vpn", vpn=True).code == 0


@pytest.mark.long
def test_a_crash_of_the_controller_before_the_change_takes_effect_reverts_it(site):
    """SSH keys take effect when the files are replaced, so the timer starts there."""
    before = site.console("sha256sum /root/.ssh/authorized_keys")
    stranger = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b stranger"
    site.settings["host_operator_keys"] = [stranger]
    try:
        process = site.start("host")
    finally:
        del site.settings["host_operator_keys"]
    assert wait_until(lambda: site.console("grep -c stranger /root/.ssh/authorized_keys || true") == "1", 60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert wait_until(lambda: site.by_network), "SSH did not answer again"
    assert site.console("sha256sum /root/.ssh/authorized_keys") == before
    assert site.converge().code == 0


def test_a_crash_of_the_controller_reverts_the_change(site, broken):
    _, template, old, new = LOCKOUTS[0]
    process = site.start("firewall", repository=broken(template, old, new))
    armed = "test -e /var/lib/minipc/revert/firewall/undo && echo yes || true"
    assert wait_until(lambda: site.console(armed) == "yes", 60)
    assert wait_until(lambda: not site.by_network, 10), "not locked out, so the test proves nothing"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert wait_until(lambda: site.by_network)


@pytest.mark.long
@pytest.mark.parametrize("lockout", [LOCKOUTS[0], LOCKOUTS[2]], ids=["firewall", "unit"])
def test_a_power_cut_before_the_confirmation_reverts_the_change(site, broken, lockout):
    """The timer is lost and the new files are in place, so access is unknown. systemd reads the new unit
    at boot, before the old one is restored.
    """
    _, template, old, new = lockout
    process = site.start("firewall", repository=broken(template, old, new))
    armed = "test -e /var/lib/minipc/revert/firewall/undo && echo yes || true"
    assert wait_until(lambda: site.console(armed) == "yes", 60)
    lab.power_off(site.machine)
    process.kill()
    process.communicate(timeout=30)
    lab.start(site.machine)
    assert site.by_network
    assert wait_until(lambda: site.by_vpn), "the VPN comes up at boot"
    assert site.converge().code == 0


@pytest.mark.long
def test_closing_the_network_without_a_tunnel_fails_and_keeps_it_open(site):
    tunnel.down(site.machine)
    site.settings["firewall_operator_access"] = "vpn"
    try:
        done = site.converge()
    finally:
        site.settings["firewall_operator_access"] = "networks"
        tunnel.up(site.machine)
    assert done.code != 0
    assert "bring up the VPN on this controller" in done.output, done.output
    assert wait_until(lambda: site.by_network)
    assert site.converge().code == 0


def test_ssh_moves_into_the_vpn_and_the_console_opens_the_network_again(site):
    """After a converge over the network SSH answers only in the VPN. Later converges go through the VPN."""
    site.settings["firewall_operator_access"] = "vpn"
    try:
        first = site.converge()
        assert first.code == 0, first.output
        assert not site.by_network
        assert site.by_vpn
        later = site.converge(vpn=True)
        assert later.code == 0, later.output
        assert "Grand total" in later.output
        assert "Changed" not in later.output or " 0 " in later.output

        # Without the tunnel only the console remains.
        tunnel.down(site.machine)
        assert not site.by_vpn
        assert "open to the operator's networks" in site.console("minipc-break-glass")
        assert site.by_network
        assert "minipc-break-glass.timer" in site.console("systemctl list-timers --no-legend")
        site.console("minipc-break-glass close")
        assert not site.by_network

        # A network card with another name than in the rules. The converge below repairs them.
        site.console("sed -i 's/operator0/renamed0/g' /etc/minipc/firewall.nft /etc/minipc/firewall-break-glass.nft")
        site.console("minipc-break-glass")
        assert site.by_network
    finally:
        site.settings["firewall_operator_access"] = "networks"
        site.console("minipc-break-glass")
        tunnel.up(site.machine)
    repaired = site.converge()
    assert repaired.code == 0, repaired.output
    assert site.by_network
