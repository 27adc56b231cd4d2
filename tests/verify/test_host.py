"""Debian itself: time, journal, kernel settings, SSH, the operator's account."""

from __future__ import annotations

import re
import secrets as random

import pytest

from tests.verify.conftest import not_exercised


@pytest.fixture(scope="session")
def sshd(sh, settings):
    """sshd's effective settings for root, from the operator side and from elsewhere."""
    operator = settings.firewall.operator_networks[0].split("/")[0]

    def effective(user, address):
        return sh(f"sshd -T -C user={user},host=x,addr={address}").splitlines()

    return {"root, operator side": effective("root", operator), "root, elsewhere": effective("root", "203.0.113.9")}


def test_it_is_debian_13(sh):
    assert 'VERSION_ID="13"' in sh("cat /etc/os-release")


def test_no_unit_has_failed(sh):
    assert sh("systemctl list-units --failed --no-legend --plain | cut -d' ' -f1") == ""


def test_the_journal_is_persistent_and_kept_long_enough(sh, settings):
    assert sh("ls /var/log/journal/*/system.journal")
    kept = re.search(r"MaxRetentionSec=(\d+)day", sh("systemd-analyze cat-config systemd/journald.conf"))
    assert kept
    assert int(kept[1]) >= settings.host.journal_days >= 30


def test_the_journal_takes_a_message_and_finds_it(sh):
    mark = random.token_hex(8)
    assert (
        sh(f"systemd-cat -t minipc-verify echo {mark}; journalctl --sync; journalctl -t minipc-verify -n1 -o cat")
        == mark
    )


def test_passwords_are_refused_by_ssh(sshd):
    for effective in sshd.values():
        assert "passwordauthentication no" in effective
        assert "kbdinteractiveauthentication no" in effective
        assert "authenticationmethods publickey" in effective


def test_root_logs_in_by_key_and_from_the_operator_side_only(sshd):
    assert "permitrootlogin without-password" in sshd["root, operator side"]
    assert "permitrootlogin no" in sshd["root, elsewhere"]


def test_ssh_offers_no_weak_algorithm(operator, settings):
    done = operator.run("nmap", "-Pn", "-n", "-p22", "--script", "ssh2-enum-algos", operator.ipv4, timeout_s=60)
    assert "encryption_algorithms" in done.stdout, done.stdout + done.stderr
    weak = re.findall(r"cbc|3des|arcfour|sha1\b|sha1-|md5|diffie-hellman-group|umac-64|nistp", done.stdout)
    assert weak == []


def test_only_the_configured_keys_may_log_in(sh, settings):
    operator = settings.host.operator_user
    for path in ("/root/.ssh/authorized_keys", f"/home/{operator}/.ssh/authorized_keys"):
        assert sh(f"cat {path}").splitlines() == list(settings.host.operator_keys)
    others = sh("find /root /home -name 'authorized_keys*' | sort").splitlines()
    assert others == [f"/home/{operator}/.ssh/authorized_keys", "/root/.ssh/authorized_keys"]


def test_the_operator_becomes_root_with_sudo(sh, settings):
    # Without a word: sudo complains, and waits for DNS, when the machine doesn't know its own name.
    assert sh(f"runuser -u {settings.host.operator_user} -- sudo -n id -u 2>&1") == "0"


def test_no_account_has_an_empty_password(sh):
    """A password for the console may be there: it is the way in when the network is not. SSH takes none."""
    assert sh("awk -F: '$2 == \"\" {print $1}' /etc/shadow") == ""


def test_the_service_address_is_up(sh, settings):
    assert f"{settings.host.service_address}/32" in sh("ip -4 -o address show dev lo")


@pytest.mark.parametrize(
    "name", ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.accept_redirects=0", "net.ipv4.conf.all.rp_filter=2"]
)
def test_network_setting(sh, name):
    key, value = name.split("=")
    assert sh(f"sysctl -n {key}") == value


@pytest.mark.parametrize(
    "name", ["kernel.kptr_restrict=2", "kernel.panic=10", "fs.protected_fifos=2", "vm.swappiness=10"]
)
def test_kernel_setting(sh, name):
    if sh("systemd-detect-virt --container || true") not in ("none", ""):
        not_exercised("a container shares the controller's kernel and must not change it")
    key, value = name.split("=")
    assert sh(f"sysctl -n {key}") == value


def test_time_is_kept(sh, units):
    chrony = units("chrony.service")
    assert chrony["UnitFileState"] == "enabled"
    if sh("systemd-detect-virt --container || true") not in ("none", ""):
        not_exercised("a container may not set the controller's clock; chrony is enabled and its unit refuses to start")
    assert chrony["ActiveState"] == "active"
    assert sh("timedatectl show -p NTPSynchronized --value") == "yes"


def test_security_updates_install_themselves(sh, units):
    assert units("apt-daily-upgrade.timer")["ActiveState"] == "active"
    assert "origin=Debian,codename=${distro_codename}-security" in sh(
        "apt-config dump Unattended-Upgrade::Origins-Pattern"
    )
    assert sh("unattended-upgrade --dry-run >/dev/null 2>&1; echo $?") == "0"


def test_apt_waits_for_its_lock(sh):
    assert 'DPkg::Lock::Timeout "300"' in sh("apt-config dump DPkg::Lock::Timeout")


def test_time_zone_and_name(sh, settings):
    assert sh("readlink -f /etc/localtime") == f"/usr/share/zoneinfo/{settings.host.timezone}"
    assert sh("hostname") == settings.host.name
    assert sh(f"getent ahostsv4 {settings.host.name}").split()[0] == "127.0.1.1"
