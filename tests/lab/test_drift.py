"""What people and intruders change on a machine is drift, and a full disk recovers without a person."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minipc.core.environment import LAB
from minipc.core.polling import wait_until
from minipc.secrets.generate import generate
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab.inventory import entry
from tests.lab.conftest import converge, on, run

NAME = "drift"
RESERVE = "/var/lib/postgresql/reserve"
SQL = "runuser -u postgres -- psql -XAtq postgres"

# A command, and a part of the line in which drift names its effect.
PLANTS = {
    "echo 10.0.0.1 evil >> /etc/hosts": "drifted: host: Configure the host name",
    "chmod 666 /etc/minipc/disk-space.json": "drifted: postgres: Install the program that keeps disk space free",
    "systemctl disable --now minipc-disk-space.timer": "drifted: postgres: Enable the timer that keeps disk space free",
    "echo ssh-ed25519 AAAA >> /root/.ssh/authorized_keys": "drifted: host: Configure SSH and logins",
    "echo 'fsync = off' >> /var/lib/postgresql/17/main/postgresql.auto.conf": "drifted: postgres: Configure PostgreSQL",
    "mkdir -p /var/lib/x/.ssh; echo k > /var/lib/x/.ssh/authorized_keys; useradd -M -d /var/lib/x -s /bin/sh x": (
        "authorised key in /var/lib/x/.ssh/authorized_keys"
    ),
    "useradd -o -u 0 -g 0 -M -s /usr/sbin/nologin shadowy": "account shadowy has uid 0",
    "chmod u+s /usr/bin/bash": "program /usr/bin/bash runs as another account",
    "echo x >> /etc/sudoers.d/README": "file /etc/sudoers.d/README of a package was changed",
    "printf '[Service]\\nExecStart=/bin/true\\n' > /etc/systemd/system/helper.service": (
        "file /etc/systemd/system/helper.service belongs to no package"
    ),
    "systemd-run --unit=helper-listens python3 -m http.server 8888": "program python3 listens on tcp 0.0.0.0:8888",
    "nft add rule inet minipc input tcp dport 8888 accept": "firewall table inet minipc differs",
    "echo 'deb [trusted=yes] http://evil.example.org/ x main' > /etc/apt/sources.list.d/x.list": (
        "package source /etc/apt/sources.list.d/x.list is trusted without a signature"
    ),
    "mkdir -p /etc/cron.d; echo '* * * * * root true' > /etc/cron.d/job": "file /etc/cron.d/job belongs to no package",
    "sysctl -qw net.ipv4.conf.all.accept_redirects=1": "kernel setting net.ipv4.conf.all.accept_redirects is 1",
    f"{SQL} -c 'CREATE ROLE hidden SUPERUSER'": "database role hidden is a superuser",
}


@pytest.fixture(scope="module")
def machine(lab_ready: None) -> Iterator[lab.Machine]:
    lab.down(NAME)
    generate("lab")
    with lab.machine(NAME) as found:
        adopt(LAB, entry(found), found.host_key_fingerprint)
        done = converge(found, "host", "firewall", "repositories", "volumes", "postgres")
        assert done.code == 0, done.output
        yield found


def drift(machine: lab.Machine) -> str:
    done = run("minipc", "drift", "--inventory", "lab", "--host", machine.name, timeout_s=400)
    assert done.code in (0, 2), done.output
    return done.output


@pytest.mark.timeout(900)
def test_a_full_disk_recovers_by_itself(machine):
    def settings(offsite: str) -> None:
        on(machine, f"echo '{{\"offsite\": {offsite}}}' > /etc/minipc/disk-space.json")

    def there() -> bool:
        return on(machine, f"test -e {RESERVE} && echo yes || true").strip() == "yes"

    def waiting() -> int:
        return int(on(machine, "ls /var/lib/postgresql/17/main/pg_wal/archive_status | grep -c ready$ || true"))

    on(machine, "runuser -u postgres -- pgbackrest --stanza=main stanza-create")
    assert wait_until(there, within_s=60)
    repository = "/var/lib/pgbackrest/archive"
    settings('["127.0.0.1", "1"]')
    try:
        on(machine, f"chmod 000 {repository}")
        # 20 segments of WAL fit. On an overlay, PostgreSQL can also use the blocks that ext4 reserves for root.
        # Little here may use them: the space of the reserve would then only fill them up again.
        on(machine, "fallocate -l $(( $(df --output=avail -B1 / | tail -1) - 22 * 16777216 )) /var/fill")
        on(machine, f"for i in $(seq 20); do {SQL} -c 'SELECT pg_switch_wal(), txid_current()' || break; done; true")
        on(machine, "fallocate -l $(( $(df --output=avail -B1 / | tail -1) + 8388608 )) /var/rest")
        assert waiting() > 1
        on(machine, "systemctl start minipc-disk-space")
        assert there(), "WAL would take it while the other side is away"
        on(machine, f"chmod 750 {repository}")
        settings("[]")
        assert wait_until(lambda: not there(), within_s=60), "it was not released"
        assert wait_until(lambda: waiting() <= 1, within_s=240), on(
            machine, "df /; journalctl -n 40 --no-pager; tail -n 20 /var/log/postgresql/*.log", check=False
        )
        assert wait_until(lambda: on(machine, f"{SQL} -c 'SELECT 1'", check=False).strip() == "1", within_s=60)
    finally:
        on(machine, f"rm -f /var/fill /var/rest; chmod 750 {repository}")
    assert wait_until(there, within_s=60), "it was not created again"
    done = run("minipc", "disk", "release", "--inventory", "lab", "--host", machine.name)
    assert "released the reserve" in done.output
    done = run("minipc", "disk", "gain", "--yes", "--inventory", "lab", "--host", machine.name)
    assert "removing: downloaded packages" in done.output, done.output


@pytest.mark.timeout(900)
def test_each_change_by_hand_is_drift(machine):
    before = drift(machine)
    assert "unexpected: " not in before, before
    for plant in PLANTS:
        on(machine, plant)
    after = drift(machine)
    lines = after.splitlines()
    missed = [plant for plant, sign in PLANTS.items() if not any(sign in line for line in lines)]
    assert missed == [], after
    rules = on(machine, "nft list chain inet minipc input")
    assert "8888" in rules, "drift changes nothing"
