"""Test a compromised account of the mini PC without rights: it gets no password, holds no lock, and hangs nothing."""

from __future__ import annotations

import pytest

from minipc.core.ports import MONITORING
from tests.lab.conftest import on, run

pytestmark = pytest.mark.timeout(600)
AS_NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups"
# Accepts one connection, and prints what it gets.
LISTEN = (
    "import socket; c = socket.create_server(('127.0.0.1', 17777)).accept()[0]; c.settimeout(2); print(c.recv(4096))"
)


def test_an_account_reaches_no_monitoring_and_no_service_behind_the_ingress(site):
    options = ("--inventory", "lab", "--host", site.name)
    assert run("minipc", "verify", *options, "firewall").code == 0


@pytest.mark.parametrize(
    "target",
    [
        f"{MONITORING['redis']}/scrape?target=redis://127.0.0.1:17777",
        f"{MONITORING['redis']}/scrape?target=redis://monitoring@127.0.0.1:17777",
        f"{MONITORING['postgres']}/probe?target=127.0.0.1:17777/postgres%3Fsslmode=disable",
    ],
)
def test_an_exporter_gives_no_password_to_the_server_that_it_is_pointed_at(site, target):
    """Root asks, for whom the port is open: the exporter itself must not know a password for that server."""
    script = f"""python3 -c "{LISTEN}" >/run/heard 2>&1 & sleep 1
    curl -s --max-time 10 'http://127.0.0.1:{target}' >/dev/null; wait; cat /run/heard; rm /run/heard"""
    heard = on(site, script)
    assert heard.startswith("b'"), heard
    assert "monitoring" not in heard
    assert "AUTH" not in heard


def test_the_locks_of_the_backups_are_held_by_root_only(site):
    on(site, "systemctl start minipc-backup@diff", timeout_s=240)
    held = f"{AS_NOBODY} flock --nonblock /var/lib/minipc/backups/backup.lock true 2>&1; echo $?"
    assert "Permission denied" in on(site, held)


def test_redis_that_hangs_is_killed_and_started_again(site):
    pid = "systemctl show redis-server -p MainPID --value"
    before = on(site, f"{pid}; kill -STOP $({pid})").strip()
    on(site, "systemctl start minipc-redis-alive; sleep 5", timeout_s=90)
    assert on(site, "systemctl is-active redis-server").strip() == "active"
    assert on(site, pid).strip() not in ("0", before)


def test_a_redis_that_answers_is_left_alone(site):
    pid = "systemctl show redis-server -p MainPID --value"
    before = on(site, pid)
    on(site, "systemctl start minipc-redis-alive; sleep 3", timeout_s=90)
    assert on(site, pid) == before
