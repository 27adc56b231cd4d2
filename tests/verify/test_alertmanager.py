"""Alertmanager: an alert gets to whom it should, the ones that another explains don't, and nobody else talks to it."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.verify.conftest import eventually, not_exercised

UNIT = "prometheus-alertmanager.service"
ETC = "/etc/prometheus/minipc"


@pytest.fixture(scope="session")
def ask(sh):
    """curl as its user; the password is never in a command line."""
    user = f"user = operator:$(cat {ETC}/alertmanager.password)"

    def run(options: str) -> str:
        curl = f'curl -sS --noproxy "*" --config $f {options}'
        return sh(f'(umask 077; f=$(mktemp); echo "{user}" > $f; {curl}; code=$?; rm $f; exit $code)')

    return run


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


def test_without_its_password_nobody_silences_anything(sh):
    """Nor a page of another origin that an operator has open: its script has no password to send."""
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
    query = "curl -sS --noproxy '*' http://127.0.0.1:9090/api/v1/query --data-urlencode"
    up = sh(f"{query} 'query=up{{job=\"alertmanager\"}}' || true")
    if "success" not in up:
        not_exercised("Prometheus is not on this machine")
    assert eventually(lambda: '"1"]' in sh(f"{query} 'query=up{{job=\"alertmanager\"}}'"), within_s=60, every_s=2), up
    failed = f"{query} 'query=increase(prometheus_notifications_errors_total[1m]) > 0'"
    assert eventually(lambda: '"result":[]' in sh(failed), within_s=90, every_s=3), sh(failed)


def test_whoever_waits_for_the_ping_gets_it(ask, settings):
    if not settings.alertmanager.watchdog:
        not_exercised("nobody waits for the machine's ping (alertmanager_watchdog)")

    def count(kind):
        text = ask("http://127.0.0.1:9093/metrics")
        lines = re.findall(rf'^alertmanager_notifications{kind}\{{integration="webhook".*\}} (\d+)', text, re.M)
        return sum(map(int, lines))

    assert eventually(lambda: count("_total") > count("_failed_total"), within_s=150, every_s=2), (
        "journalctl -u prometheus-alertmanager says why"
    )


def test_it_runs_with_what_is_configured(sh, ask):
    status = json.loads(ask("http://127.0.0.1:9093/api/v2/status"))
    assert status["cluster"]["status"] == "disabled"
    running = status["config"]["original"]
    for text in ("send_resolved", "inhibit_rules", "group_by"):
        assert (text in running) == (text in sh(f"cat {ETC}/alertmanager.yml")), text


def test_what_another_alert_explains_is_silent(ask):
    """Of two alerts, one of which explains the other, only the cause is active."""
    alerts = [
        {
            "labels": {"alertname": f"Verify{check}", "check": check, "priority": "P3", "layer": "verify"},
            "endsAt": "2000-01-01T00:00:00Z",
        }
        for check in ("runtime", "user-api")
    ]
    post = "--fail -H 'Content-Type: application/json' -d %s http://127.0.0.1:9093/api/v2/alerts"
    active = [{key: value for key, value in alert.items() if key != "endsAt"} for alert in alerts]
    ask(post % shlex.quote(json.dumps(active)))
    try:
        query = "'http://127.0.0.1:9093/api/v2/alerts?filter=layer=%22verify%22'"
        found = {alert["labels"]["check"]: alert["status"]["state"] for alert in json.loads(ask(query))}
        # Asking for their state works it out, also before the first group is sent.
        assert found.keys() == {"runtime", "user-api"}
        inhibited = {alert["labels"]["check"]: bool(alert["status"]["inhibitedBy"]) for alert in json.loads(ask(query))}
        assert inhibited == {"runtime": False, "user-api": True}
    finally:
        ask(post % shlex.quote(json.dumps(alerts)))


def test_slack_is_told(sh, ask, settings):
    if not settings.alertmanager.slack:
        not_exercised("alerts reach Slack: alertmanager_slack is False")
    assert sh(f"stat -c '%U %a' {ETC}/slack_url") == "prometheus 600"
    assert "send_resolved: true" in sh(f"cat {ETC}/alertmanager.yml")
    metrics = ask("http://127.0.0.1:9093/metrics")
    assert re.findall(r"^alertmanager_notifications_failed_total\{.*slack.*\} [1-9]", metrics, re.M) == []


def test_the_unit_starts_at_boot_and_has_only_what_it_needs(units, exposure):
    unit = units(UNIT)
    assert (unit["UnitFileState"], unit["Restart"], unit["User"]) == ("enabled", "always", "prometheus")
    assert int(unit["MemoryHigh"]) < int(unit["MemoryMax"])
    assert exposure(UNIT) < 3
