"""Checks of Alertmanager: routing, inhibition, delivery and access."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.verify.conftest import eventually, not_exercised

UNIT = "prometheus-alertmanager.service"
LONG_AGO = "2000-01-01T00:00:00Z"
ETC = "/etc/prometheus/minipc"


@pytest.fixture(scope="session")
def ask(sh):
    """Return a function that runs curl as the operator; the password is never in a command line."""
    user = f"user = operator:$(cat {ETC}/alertmanager.password)"

    def run(options: str) -> str:
        curl = f'curl -sS --noproxy "*" --config $f {options}'
        return sh(f'(umask 077; f=$(mktemp); echo "{user}" > $f; {curl}; code=$?; rm $f; exit $code)')

    return run


def routed(sh, *labels: str) -> str:
    return sh(f"amtool config routes test --config.file={ETC}/alertmanager.yml {' '.join(labels)}")


def test_only_the_machine_itself_can_connect(listeners):
    """Alertmanager listens on loopback only and opens no cluster port."""
    found = {(address, port) for address, port, program in listeners if program.startswith("prometheus-aler")}
    assert found == {("127.0.0.1", 9093)}


def test_every_priority_gets_to_the_operator(sh, settings):
    """Alerts of every priority are routed to the channels that want them."""
    channels = settings.alertmanager.channels
    for priority in ("P1", "P2", "P3"):
        wanted = ",".join(channel.name for channel in channels if priority in channel.priorities)
        assert routed(sh, "alertname=Anything", f"priority={priority}", "layer=data") == (wanted or "nobody")
    for channel in channels:
        assert routed(sh, "alertname=ChannelTest", f"channel={channel.name}", "priority=P3") == channel.name
    assert routed(sh, "alertname=Watchdog", "priority=P3", "layer=monitoring") in ("watchdog", "nobody")


def test_without_its_password_nobody_silences_anything(sh):
    """Alertmanager refuses every request without its password.

    A web page that the operator has open in a browser cannot silence an alert either: its script has no password.
    """
    silence = "-X POST -H 'Content-Type: application/json' -H 'Origin: https://example.org' -d '{}' "
    tries = [
        f"{silence} http://127.0.0.1:9093/api/v2/silences",
        "http://127.0.0.1:9093/",
        "http://127.0.0.1:9093/metrics",
    ]
    code = "curl -s --noproxy '*' -o /dev/null -w '%{http_code}'"
    assert [sh(f"{code} {each}") for each in tries] == ["401"] * 3
    assert [sh(f"{code} -u operator:operator {each}") for each in tries] == ["401"] * 3
    kept = sh(f"stat -c '%U %a' {ETC}/alertmanager.password {ETC}/alertmanager-web.yml").splitlines()
    assert kept == ["prometheus 600"] * 2


def test_prometheus_may_hand_its_alerts_over(sh):
    """Prometheus delivers its alerts to Alertmanager without errors."""
    query = "curl -sS --noproxy '*' http://127.0.0.1:9090/api/v1/query --data-urlencode"
    up = sh(f"{query} 'query=up{{job=\"alertmanager\"}}' || true")
    if "success" not in up:
        not_exercised("Prometheus is not on this machine")
    assert eventually(lambda: '"1"]' in sh(f"{query} 'query=up{{job=\"alertmanager\"}}'"), within_s=60, every_s=2), up
    failed = f"{query} 'query=increase(prometheus_notifications_errors_total[1m]) > 0'"
    assert eventually(lambda: '"result":[]' in sh(failed), within_s=90, every_s=3), sh(failed)


def test_the_ping_reaches_its_url(sh, ask):
    """The URL that expects a regular ping while alerts work gets it."""
    if "receiver: watchdog" not in sh(f"cat {ETC}/alertmanager.yml"):
        not_exercised("no URL expects a ping (alertmanager.watchdog_url, watcher.alive_url)")

    def count(kind):
        text = ask("http://127.0.0.1:9093/metrics")
        lines = re.findall(rf'^alertmanager_notifications{kind}\{{.*receiver_name="watchdog".*\}} (\d+)', text, re.M)
        return sum(map(int, lines))

    assert eventually(lambda: count("_total") > count("_failed_total"), within_s=150, every_s=2), (
        "journalctl -u prometheus-alertmanager says why"
    )


def test_it_runs_with_what_is_configured(sh, ask):
    """Alertmanager runs with the configuration that is on disk."""
    status = json.loads(ask("http://127.0.0.1:9093/api/v2/status"))
    assert status["cluster"]["status"] == "disabled"
    running = status["config"]["original"]
    for text in ("send_resolved", "inhibit_rules", "group_by"):
        assert (text in running) == (text in sh(f"cat {ETC}/alertmanager.yml")), text


def test_what_another_alert_explains_is_silent(sh, ask, settings):
    """An alert that another alert explains is suppressed, but only for the same service."""
    if "source_matchers" not in sh(f"cat {ETC}/alertmanager.yml"):
        not_exercised("no alert of this machine explains another one")
    if not any(service.ingress for service in settings.services.declared):
        not_exercised("no declared service has an ingress, and only questions about services explain others")
    labels = {"priority": "P3", "layer": "verify"}
    alerts = [
        {"labels": labels | {"alertname": f"Verify{check}", "check": check, "service": service}, "endsAt": LONG_AGO}
        for check, service in (("runtime", "verify-a"), ("answers", "verify-a"), ("answers", "verify-b"))
    ]
    post = "--fail -H 'Content-Type: application/json' -d %s http://127.0.0.1:9093/api/v2/alerts"
    active = [{key: value for key, value in alert.items() if key != "endsAt"} for alert in alerts]
    ask(post % shlex.quote(json.dumps(active)))
    try:
        # A query computes their state, also before the first group is sent.
        found = json.loads(ask("'http://127.0.0.1:9093/api/v2/alerts?filter=layer=%22verify%22'"))
        inhibited = {
            (each["labels"]["check"], each["labels"]["service"]): each["status"]["inhibitedBy"] for each in found
        }
        assert inhibited.keys() == {("runtime", "verify-a"), ("answers", "verify-a"), ("answers", "verify-b")}
        assert [key for key, by in inhibited.items() if by] == [("answers", "verify-a")]
    finally:
        ask(post % shlex.quote(json.dumps(alerts)))


def test_notifications_are_delivered(sh, ask, settings):
    """No channel of the alerts fails, and nobody else can read its secrets."""
    if not settings.alertmanager.channels:
        not_exercised("no channel is configured: alertmanager_channels is empty")
    files = [f"{ETC}/{channel.name}_{part}" for channel in settings.alertmanager.channels for part in channel.secrets]
    assert set(sh(f"stat -c '%U %a' {' '.join(files)} {ETC}/alertmanager.password").splitlines()) == {"prometheus 600"}
    metrics = ask("http://127.0.0.1:9093/metrics")
    assert re.findall(r"^alertmanager_notifications_failed_total\{.*\} [1-9]", metrics, re.M) == []


def test_the_unit_starts_at_boot_and_has_only_what_it_needs(units, exposure):
    """Alertmanager starts at boot and runs with few privileges."""
    unit = units(UNIT)
    assert (unit["UnitFileState"], unit["Restart"], unit["User"]) == ("enabled", "always", "prometheus")
    assert int(unit["MemoryHigh"]) < int(unit["MemoryMax"])
    assert exposure(UNIT) < 3
