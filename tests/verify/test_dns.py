"""Checks of the DNS updater: the public records follow the machine's public address."""

from __future__ import annotations

import shlex

import pytest

from minipc.dns.shipped import ADDRESS_COMMAND, CONFIG_FILE
from tests.verify.conftest import not_exercised


@pytest.fixture(autouse=True)
def following(settings):
    if settings.dns.provider == "none":
        not_exercised("no DNS provider is configured (dns_provider)")
    if not settings.dns.follow:
        not_exercised("the public address is fixed (dns_follow is off): nothing of it runs on the machine")


def test_the_timer_runs_and_the_last_look_went_well(units):
    """The DNS update timer is active and its last run succeeded."""
    assert units("minipc-dns.timer")["ActiveState"] == "active"
    assert units("minipc-dns.timer")["UnitFileState"] == "enabled"
    assert units("minipc-dns.service")["Result"] == "success"


def test_it_looks_now_and_finds_everything_in_order(sh, units):
    """A DNS update that is started now succeeds."""
    sh("systemctl start minipc-dns.service")
    assert sh("journalctl -u minipc-dns.service -n 1 -o cat -t minipc-dns").endswith("changed")


def test_the_machine_learns_its_public_address(sh, settings):
    """The machine can determine its public address."""
    for kind in {record.type for record in settings.dns.records}:
        assert sh(f"{ADDRESS_COMMAND} {kind}")


def test_only_root_reads_the_token(sh):
    """Only root can read the token of the DNS provider."""
    assert sh("stat -c '%a %U' /etc/minipc/dns.token") == "600 root"
    for path in (CONFIG_FILE, "/etc/systemd/system/minipc-dns.service"):
        assert sh(f"grep -cFf /etc/minipc/dns.token {shlex.quote(path)} || true") == "0"


def test_it_runs_with_little(sh):
    """The DNS updater runs with few privileges."""
    score = sh("systemd-analyze security --no-pager minipc-dns.service | tail -n 1")
    assert float(score.split(": ")[1].split()[0]) < 2.0
