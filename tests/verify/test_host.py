"""Checks of Debian itself: time, journal, kernel settings, SSH and accounts."""

from __future__ import annotations

import re
import secrets as random

import pytest

from minipc_machine.unexpected import SET_UID
from tests.verify.conftest import not_exercised

# Score of `systemd-analyze security`: 0 is fully confined, 10 is unrestricted. Above 5 it says "medium".
EXPOSURE = 5.0
# Reasons: docs/reference/hardening.md.
MAX_EXPOSURE = {
    "k3s.service": 10.0,
    "k3s-agent.service": 10.0,
    "minipc-gitops-drift.service": 6.0,
    "apt-daily-upgrade.service": 10.0,  # Debian's: it replaces any file
    "minipc-reboot.service": 10.0,
    "minipc-revert@x.service": 10.0,
    "minipc-revert-boot.service": 10.0,
}


def in_container(sh) -> bool:
    return sh("systemd-detect-virt --container || true") not in ("none", "")


@pytest.fixture(scope="session", autouse=True)
def dry_run(sh):
    """Start a dry run of the security updates and return a function for its exit code.

    It takes seconds, so it starts first and is read last.
    """
    result = sh("mktemp /run/minipc-verify.XXXXXX")
    sh(f"(unattended-upgrade --dry-run; echo $? > {result}) </dev/null >/dev/null 2>&1 &")
    return lambda: sh(f"for i in $(seq 1200); do [ -s {result} ] && break; sleep 0.1; done; cat {result}; rm {result}")


@pytest.fixture(scope="session")
def sshd(sh, settings):
    """Return sshd's effective settings for root, from the operator side and from other addresses."""
    operator = settings.firewall.operator_networks[0].split("/")[0]

    def effective(user, address):
        return sh(f"sshd -T -C user={user},host=x,addr={address}").splitlines()

    return {"root, operator side": effective("root", operator), "root, elsewhere": effective("root", "203.0.113.9")}


def test_it_is_debian_13(sh):
    """The machine runs Debian 13."""
    assert 'VERSION_ID="13"' in sh("cat /etc/os-release")


def test_no_unit_has_failed(sh):
    """No systemd unit has failed."""
    assert sh("systemctl list-units --failed --no-legend --plain | cut -d' ' -f1") == ""


def test_the_journal_is_persistent_and_kept_long_enough(sh, settings):
    """The journal is persistent and kept for the configured time."""
    assert sh("ls /var/log/journal/*/system.journal")
    kept = re.search(r"MaxRetentionSec=(\d+)day", sh("systemd-analyze cat-config systemd/journald.conf"))
    assert kept
    assert int(kept[1]) >= settings.host.journal_days >= 30


def test_the_journal_takes_a_message_and_finds_it(sh):
    """A message that is written to the journal can be read back."""
    mark = random.token_hex(8)
    assert (
        sh(f"systemd-cat -t minipc-verify echo {mark}; journalctl --sync; journalctl -t minipc-verify -n1 -o cat")
        == mark
    )


def test_passwords_are_refused_by_ssh(sshd):
    """SSH accepts keys only and refuses passwords."""
    for effective in sshd.values():
        assert "passwordauthentication no" in effective
        assert "kbdinteractiveauthentication no" in effective
        assert "authenticationmethods publickey" in effective


def test_root_logs_in_by_key_and_from_the_operator_side_only(sshd):
    """Root can log in over SSH only with a key and only from the operator side."""
    assert "permitrootlogin without-password" in sshd["root, operator side"]
    assert "permitrootlogin no" in sshd["root, elsewhere"]


def test_ssh_offers_no_weak_algorithm(operator, settings):
    """SSH offers no weak algorithm."""
    done = operator.run("nmap", "-Pn", "-n", "-p22", "--script", "ssh2-enum-algos", operator.ipv4, timeout_s=60)
    assert "encryption_algorithms" in done.stdout, done.stdout + done.stderr
    weak = re.findall(r"cbc|3des|arcfour|sha1\b|sha1-|md5|diffie-hellman-group|umac-64|nistp", done.stdout)
    assert weak == []


def test_only_the_configured_keys_may_log_in(sh, settings):
    """Only the configured SSH keys can log in."""
    operator = settings.host.operator_user
    for path in ("/root/.ssh/authorized_keys", f"/home/{operator}/.ssh/authorized_keys"):
        assert sh(f"cat {path}").splitlines() == list(settings.host.operator_keys)
    others = sh("find /root /home -name 'authorized_keys*' | sort").splitlines()
    assert others == [f"/home/{operator}/.ssh/authorized_keys", "/root/.ssh/authorized_keys"]


def test_the_operator_becomes_root_with_sudo(sh, settings):
    """The operator can become root with sudo."""
    # No output but the id: sudo prints a warning, and waits for DNS, if the host name does not resolve.
    assert sh(f"runuser -u {settings.host.operator_user} -- sudo -n id -u 2>&1") == "0"


def test_no_account_has_an_empty_password(sh):
    """No account has an empty password.

    A password for the console is allowed: it is needed when the network fails. SSH accepts none.
    """
    assert sh("awk -F: '$2 == \"\" {print $1}' /etc/shadow") == ""


def test_root_is_the_only_account_with_its_rights(sh):
    """Root is the only account with administrator rights."""
    assert sh("awk -F: '$3 == 0 {print $1}' /etc/passwd") == "root"
    assert sh('getent group sudo docker | awk -F: \'$4 != "" {print $1 ":" $4}\'') == ""


def test_nobody_logs_in_who_has_no_business_here(sh, settings):
    """Only root, the operator and postgres have a login shell.

    The account postgres needs it for `runuser` and has no password. `git-shell` offers Git's own commands only.
    """
    people = sh("awk -F: '$7 !~ /(nologin|false|sync|git-shell)$/ {print $1}' /etc/passwd").split()
    assert set(people) <= {"root", settings.host.operator_user, "postgres"}
    assert sh(f"awk -F: '$1 == \"{settings.host.operator_user}\" {{print substr($2, 1, 1)}}' /etc/shadow") in ("!", "*")


def test_homes_are_private(sh, settings):
    """Home directories are private and contain no host-based trust."""
    assert set(sh(f"stat -c %a /root /home/{settings.host.operator_user}").split()) == {"700"}
    assert sh("find /root /home /etc -name .rhosts -o -name hosts.equiv") == ""


def test_no_program_gained_root_rights(sh):
    """Only Debian's own programs run as root for other users (set-uid)."""
    # What is in container images runs in containers.
    places = "/usr /opt /srv /var /home /tmp -xdev -path /var/lib/rancher -prune -o"
    found = sh(f"find {places} -perm -4000 -type f -printf '%f\\n' 2>/dev/null || true").split()
    assert "sudo" in found
    assert set(found) <= SET_UID


def test_ssh_forwards_nothing_but_the_operators_own_tunnels(sshd):
    """SSH forwards nothing except local tunnels of the operator."""
    for effective in sshd.values():
        for line in ("x11forwarding no", "allowagentforwarding no", "allowstreamlocalforwarding no", "gatewayports no"):
            assert line in effective
        assert "allowtcpforwarding local" in effective


def test_sudo_gives_each_command_its_own_terminal(sh, settings):
    """Sudo gives each command a separate terminal."""
    assert "use_pty" in sh(f"runuser -u {settings.host.operator_user} -- sudo -n -l")


def test_no_login_can_write_memory_of_a_crashed_process(sh, settings):
    """Crashed processes of a login write no core dump."""
    assert sh(f"su - {settings.host.operator_user} -c 'ulimit -H -c'") == "0"


@pytest.mark.parametrize("module", ["dccp", "sctp", "rds", "tipc", "cramfs", "hfsplus", "udf", "firewire-core"])
def test_a_driver_nobody_needs_is_not_loaded(sh, module):
    """A kernel module that is not needed cannot be loaded."""
    assert "/bin/false" in sh(f"modprobe --show-config 2>/dev/null | grep '^install {module.replace('-', '_')} '")
    assert sh(f"grep -c '^{module.replace('-', '_')} ' /proc/modules 2>/dev/null || true") in ("0", "")


def test_units_of_ours_have_only_what_they_need(sh, exposure, settings):
    """All units that minipc installs run with few privileges."""
    listing = "cd /etc/systemd/system && grep -rls 'Written by minipc' . --include='*.service' --include='*.conf'"
    paths = [path.split("/")[1] for path in sh(listing).splitlines()]
    names = {path.removesuffix(".d") for path in paths if path.removesuffix(".d").endswith(".service")}
    ours = {name.replace("@.service", "@x.service") for name in names}
    assert "minipc-service-address.service" in ours
    # They start containers, which podman confines. tests/verify/test_services.py checks what is in the containers.
    containers = tuple(f"minipc-{service.name}-" for service in settings.services.declared)
    found = {name: exposure(name) for name in sorted(ours) if not name.startswith(containers)}
    assert {name: value for name, value in found.items() if value > MAX_EXPOSURE.get(name, EXPOSURE)} == {}


def test_the_service_address_is_up(sh, settings, target):
    """The address of the data services is configured."""
    if target.role == "agent":
        assert " via " in sh(f"ip route show {settings.host.service_address}")
        return
    assert f"{settings.host.service_address}/32" in sh("ip -4 -o address show dev lo")


@pytest.mark.parametrize(
    "name", ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.accept_redirects=0", "net.ipv4.conf.all.rp_filter=2"]
)
def test_network_setting(sh, name):
    """The kernel's network setting is as configured."""
    key, value = name.split("=")
    assert sh(f"sysctl -n {key}") == value


@pytest.mark.parametrize(
    "name",
    [
        *("kernel.kptr_restrict=2", "kernel.panic=10", "kernel.core_pattern=|/bin/false", "fs.protected_fifos=2"),
        *("kernel.perf_event_paranoid=3", "net.core.bpf_jit_harden=2", "vm.swappiness=10"),
    ],
)
def test_kernel_setting(sh, name):
    """The kernel setting is as configured."""
    if in_container(sh):
        not_exercised("a container shares the controller's kernel and must not change it")
    key, value = name.split("=")
    assert sh(f"sysctl -n {key}") == value


def test_time_is_kept(sh, units, environment):
    """The clock is synchronised with a time server."""
    chrony = units("chrony.service")
    assert chrony["UnitFileState"] == "enabled"
    if in_container(sh):
        not_exercised("a container may not set the controller's clock; chrony is enabled and its unit refuses to start")
    assert chrony["ActiveState"] == "active"
    reached = [line for line in sh("chronyc -c sources").splitlines() if line.split(",")[5] != "0"]
    if environment.disposable and not reached:
        not_exercised("no time server answers in the lab; chrony runs and asks")
    assert sh("timedatectl show -p NTPSynchronized --value") == "yes"


def test_a_reboot_for_an_update_waits_for_its_hour(sh, units, settings):
    """Automatic reboots happen only at the configured hour, and never in the middle of a backup or a rebuild."""
    assert "on='false'" in sh("apt-config shell on Unattended-Upgrade::Automatic-Reboot")
    timer = units("minipc-reboot.timer")["ActiveState"] == "active"
    assert timer == bool(settings.host.reboot_at)
    assert not timer or f"OnCalendar={settings.host.reboot_at}" in sh("systemctl cat minipc-reboot.timer")
    assert "ConditionPathExists=!/var/lib/minipc/rebuild-unfinished" in sh("systemctl cat apt-daily-upgrade.service")


def test_apt_waits_for_its_lock(sh):
    """Apt waits for its lock instead of failing."""
    assert 'DPkg::Lock::Timeout "300"' in sh("apt-config dump DPkg::Lock::Timeout")


def test_the_disk_is_encrypted_if_it_should_be(sh, settings):
    """The root file system is encrypted if host_disk_encryption says so."""
    wanted = settings.host.disk_encryption
    if wanted != "none":
        assert "crypt" in sh("lsblk -srno TYPE $(findmnt -nvo SOURCE /)").split()
    if wanted == "tpm2":
        assert "tpm2" in sh("clevis luks list -d /dev/disk/by-partlabel/root"), "run `minipc disk prepare`"


def test_time_zone_and_name(sh, settings):
    """Time zone and host name are as configured."""
    assert sh("readlink -f /etc/localtime") == f"/usr/share/zoneinfo/{settings.host.timezone}"
    assert sh("hostname") == settings.host.name
    assert sh(f"getent ahostsv4 {settings.host.name}").split()[0] == "127.0.1.1"


def test_security_updates_install_themselves(sh, units, dry_run):
    """Security updates are installed automatically."""
    assert units("apt-daily-upgrade.timer")["ActiveState"] == "active"
    assert "origin=Debian,codename=${distro_codename}-security" in sh(
        "apt-config dump Unattended-Upgrade::Origins-Pattern"
    )
    assert dry_run() == "0"
