"""Alertmanager: an alert gets to whom it should, the ones that another explains don't, and nobody else talks to it."""

from __future__ import annotations

import json
import re

from tests.verify.conftest import eventually, not_exercised

UNIT = "prometheus-alertmanager.service"
ETC = "/etc/prometheus/minipc"


def routed(sh, *labels: str) -> str:
    return sh(f"amtool config routes test --config.file={ETC}/alertmanager.yml {' '.join(labels)}")


def test_only_the_machine_itself_can_connect(listeners):
    """And there is no second port: one Alertmanager has nobody to gossip with."""
    found = {(address, port) for address, port, program in listeners if program.startswith("prometheus-aler")}
    assert found == {("127.0.0.1", 9093)}


def test_every_priority_gets_to_the_operator(sh, settings):
    for priority in ("P1", "P2", "P3"):
        assert routed(sh, "alertname=Anything", f"priority={priority}", "layer=data") == "operator"
    watchdog = "watchdog" if settings.alertmanager.watchdog else "nobody"
    assert routed(sh, "alertname=Watchdog", "priority=P3", "layer=monitoring") == watchdog


def test_whoever_waits_for_the_ping_gets_it(sh, settings):
    if not settings.alertmanager.watchdog:
        not_exercised("nobody waits for the machine's ping (alertmanager_watchdog)")

    def count(kind):
        text = sh("curl -sS http://127.0.0.1:9093/metrics")
        lines = re.findall(rf'^alertmanager_notifications{kind}\{{integration="webhook".*\}} (\d+)', text, re.M)
        return sum(map(int, lines))

    assert eventually(lambda: count("_total") > count("_failed_total"), within_s=150, every_s=2), (
        "journalctl -u prometheus-alertmanager says why"
    )


def test_it_runs_with_what_is_configured(sh):
    status = json.loads(sh("curl -sS http://127.0.0.1:9093/api/v2/status"))
    assert status["cluster"]["status"] == "disabled"
    running = status["config"]["original"]
    for text in ("send_resolved", "inhibit_rules", "group_by"):
        assert (text in running) == (text in sh(f"cat {ETC}/alertmanager.yml")), text


def test_what_another_alert_explains_is_silent(sh):
    """Of two alerts, one of which explains the other, only the cause is active."""
    alerts = [
        {
            "labels": {"alertname": f"Verify{check}", "check": check, "priority": "P3", "layer": "verify"},
            "endsAt": "2000-01-01T00:00:00Z",
        }
        for check in ("runtime", "user-api")
    ]
    post = "curl -sS --fail -H 'Content-Type: application/json' -d @- http://127.0.0.1:9093/api/v2/alerts"
    active = [{key: value for key, value in alert.items() if key != "endsAt"} for alert in alerts]
    sh(f"{post} <<'END'\n{json.dumps(active)}\nEND")
    try:
        query = "curl -sS 'http://127.0.0.1:9093/api/v2/alerts?filter=layer=%22verify%22'"
        found = {alert["labels"]["check"]: alert["status"]["state"] for alert in json.loads(sh(query))}
        # Asking for their state works it out, also before the first group is sent.
        assert found.keys() == {"runtime", "user-api"}
        inhibited = {alert["labels"]["check"]: bool(alert["status"]["inhibitedBy"]) for alert in json.loads(sh(query))}
        assert inhibited == {"runtime": False, "user-api": True}
    finally:
        sh(f"{post} <<'END'\n{json.dumps(alerts)}\nEND")


def test_slack_is_told(sh, settings):
    if not settings.alertmanager.slack:
        not_exercised("alerts reach Slack: alertmanager_slack is False")
    assert sh(f"stat -c '%U %a' {ETC}/slack_url") == "prometheus 600"
    assert "send_resolved: true" in sh(f"cat {ETC}/alertmanager.yml")
    failed = (
        "curl -s 127.0.0.1:9093/metrics | grep -c '^alertmanager_notifications_failed_total{.*slack.*} [1-9]' || true"
    )
    assert sh(failed) == "0"


def test_the_unit_starts_at_boot_and_has_only_what_it_needs(units, exposure):
    unit = units(UNIT)
    assert (unit["UnitFileState"], unit["Restart"], unit["User"]) == ("enabled", "always", "prometheus")
    assert int(unit["MemoryHigh"]) < int(unit["MemoryMax"])
    assert exposure(UNIT) < 3
