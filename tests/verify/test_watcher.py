"""The external monitor: it runs, it asks, it takes the ping of who knows the token only. Alerts: tests/lab."""

from __future__ import annotations

import json

import pytest

from minipc import keys
from minipc.secrets import load
from minipc.secrets.catalogue import TLS_KEY, WATCHER_PING_TOKEN
from tests.verify.conftest import eventually, not_exercised

UNIT = "minipc-watcher.service"
ETC = "/etc/minipc/watcher"


@pytest.fixture(scope="session")
def watched(sh):
    """What it is told to watch."""
    return json.loads(sh(f"cat {ETC}/settings.json"))


@pytest.fixture(scope="session")
def state(sh):
    return lambda: json.loads(sh("cat /var/lib/minipc-watcher/state.json"))


def test_it_asks_the_public_address_and_remembers_what_it_saw(sh, watched, settings, state):
    assert watched["url"] == (settings.watcher.url or f"https://{settings.edge.domain}/api/health")
    assert watched["verify_tls"] == (settings.edge.acme == "production")
    assert eventually(lambda: sh("ls /var/lib/minipc-watcher/state.json 2>/dev/null || true"), within_s=20)
    assert set(state()) >= {"service", "ping", "units", "disk", "copies", "pinged_at", "waiting"}


def test_it_can_look_at_its_own_machine(state):
    """Confined as it is, it can ask systemd and read how the last copy went."""
    reasons = [state()[name]["reason"] for name in ("units", "disk", "copies")]
    assert not [reason for reason in reasons if "can't be" in reason]


def test_what_it_has_to_tell_was_told(state):
    assert state()["waiting"] == [], "a channel does not work: journalctl -u minipc-watcher"


def test_only_who_knows_the_token_pings(environment, settings, public, tmp_path):
    if settings.watcher.ping_grace_s is None:
        not_exercised("no ping is expected (watcher_ping_grace_s is None)")
    found = load(environment, [TLS_KEY, WATCHER_PING_TOKEN])
    address = settings.offsite.address or public.ipv4
    certificate = tmp_path / "offsite.crt"
    certificate.write_text(keys.certificate(found[TLS_KEY], address))
    url = f"https://{address}:{settings.watcher.ping_port}/ping/"

    def status(token):
        # The address is read from standard input: it has the token.
        argv = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--max-time", "10"]
        return public.run(*argv, "--cacert", str(certificate), "--config", "-", stdin=f'url = "{url}{token}"\n').stdout

    assert status("wrong") == "404"
    assert status(found[WATCHER_PING_TOKEN].reveal()) == "200"


def test_its_secrets_are_its_own(sh):
    assert sh(f"stat -c '%U %a' {ETC}/channels.json {ETC}/tls.key").splitlines() == ["minipc-watcher 600"] * 2


def test_the_unit_is_bounded_and_confined(units, exposure):
    properties = units(UNIT)
    assert (properties["ActiveState"], properties["UnitFileState"]) == ("active", "enabled")
    assert (properties["Restart"], properties["User"]) == ("always", "minipc-watcher")
    assert int(properties["MemoryMax"]) == 96 * 1024**2
    assert exposure(UNIT) < 2.0
