"""Rules, inhibition and pace as they are rendered; whether Prometheus takes them is tests/lab/test_alert_rules.py."""

from __future__ import annotations

import pytest
import yaml

from minipc.checks import load
from minipc.checks.rules import dump, inhibitions, of_component, of_questions, of_services
from minipc.checks.time_scale import faster, scaled
from minipc.core.errors import ConfigError
from tests.alert_cases import CASES, SHOP

ALERT = """
groups:
  - name: one
    rules:
      - record: a:b:c
        expr: sum(up)
      - alert: OneDown
        expr: up == 0
        for: 5m
        labels: {priority: P2, layer: data}
        annotations: {meaning: It is down., next: look}
"""


def rules():
    return of_questions(load([SHOP]), "https://docs.example.org/triage", [SHOP])


def test_every_question_becomes_an_alert_with_everything_the_operator_needs():
    alerts = rules()["groups"][0]["rules"]
    assert [alert["alert"] for alert in alerts] == [check.alert for check in load([SHOP]).checks if check.alert]
    for alert in alerts:
        assert set(alert["labels"]) == {"priority", "layer", "check"}
        assert set(alert["annotations"]) >= {"question", "meaning", "next", "runbook", "value"}
        assert alert["annotations"]["runbook"] == f"https://docs.example.org/triage#{alert['labels']['check']}"
        assert "{each}" not in alert["annotations"]["next"]


def test_a_question_that_can_not_be_answered_is_an_alert():
    silent = {rule["labels"]["check"]: rule for rule in rules()["groups"][1]["rules"]}
    assert silent["database"]["expr"].startswith("absent(")
    assert '"part", "shop/mail"' in silent["processes"]["expr"]
    assert "unless on (part)" in silent["processes"]["expr"]
    assert "clock" not in silent
    assert silent["restored"]["for"] == "8d"


def test_what_is_explained_is_inhibited_by_everything_behind_it():
    machine, same = (rule for rule in inhibitions(load([SHOP])) if rule["target_matchers"] == ['check="pages"'])
    assert machine["source_matchers"] == ['check=~"cluster|database|pressure|replaced"', 'alertname!="NoData"']
    assert machine["equal"] == []
    assert same["source_matchers"] == ['check=~"answers|queues|ready|runtime"', 'alertname!="NoData"']
    assert same["equal"] == ["service"], "a fault of one service does not hide one of another"


def test_nothing_inhibits_a_cause():
    targets = {rule["target_matchers"][0] for rule in inhibitions(load([SHOP]))}
    causes = {f'check="{name}"' for name in ("cluster", "pressure", "replaced", "database", "disk")}
    assert not targets & causes


OWN = ALERT.replace("expr: up == 0", "expr: max(queue_length) > 5").replace("expr: sum(up)", "expr: sum(queue_length)")


def with_rules(tmp_path, text, name="shop"):
    (tmp_path / f"{name}.rules.yml").write_text(text)
    alerts = SHOP.alerts.model_copy(update={"rules": f"{name}.rules.yml"})
    return SHOP.model_copy(update={"name": name, "folder": str(tmp_path), "alerts": alerts})


def test_a_services_own_rules_are_about_that_service(tmp_path):
    services = [with_rules(tmp_path, OWN), SHOP, with_rules(tmp_path, OWN, "other")]
    first, second = of_services(services, "docs/runbook-triage.md")["groups"]
    assert (first["name"], second["name"]) == ("shop: one", "other: one")
    recording, alert = first["rules"]
    assert recording == {"record": "a:b:c", "expr": 'sum(queue_length{service="shop"})', "labels": {"service": "shop"}}
    assert alert["expr"] == 'max(queue_length{service="shop"}) > 5'
    assert alert["labels"] == {"priority": "P2", "layer": "data", "service": "shop"}
    assert alert["annotations"]["runbook"] == "docs/runbook-triage.md#own-questions"
    assert alert["annotations"]["each"] == "shop"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (OWN.replace("queue_length", '{job="node"}'), "a:b:c: a selector without a metric name"),
        (OWN.replace("max(queue_length)", 'up{service="other"}'), "OneDown: service="),
        (OWN.replace("P2", "P7"), "priority"),
        ("groups: [", "not valid YAML"),
    ],
)
def test_a_mistake_in_a_services_rules_names_its_file(tmp_path, text, told):
    with pytest.raises(ConfigError) as error:
        of_services([with_rules(tmp_path, text)], "x")
    assert "shop.rules.yml" in str(error.value)
    assert told in str(error.value)


def test_a_component_brings_its_own():
    group = of_component("redis", ALERT, "docs/runbook-triage.md")["groups"][0]
    recording, alert = group["rules"]
    assert recording == {"record": "a:b:c", "expr": "sum(up)"}
    assert alert["for"] == "5m"
    assert alert["labels"] == {"priority": "P2", "layer": "data", "component": "redis"}
    assert alert["annotations"]["runbook"] == "docs/runbook-triage.md#onedown"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("priority: P2, ", "", "priority"),
        ("P2", "P5", "priority"),
        ("layer: data", "layer: moon", "layer"),
        (", next: look", "", "next"),
        ("for: 5m", "for: soon", "for"),
        ("OneDown", "one_down", "alert"),
        ("a:b:c", "total", "record"),
        ("groups:", "group:", "group"),
        ("expr: up == 0", "expr: [", "not valid YAML"),
    ],
)
def test_each_mistake_names_the_component_and_the_field(before, after, told):
    with pytest.raises(ConfigError) as error:
        of_component("redis", ALERT.replace(before, after, 1), "x")
    assert "templates/redis/rules.yml.j2" in str(error.value)
    assert told in str(error.value)


def test_pace_one_changes_nothing():
    text = dump(rules()).decode()
    assert scaled(text, 1) == text


def test_pace_divides_windows_patience_and_offsets_and_nothing_else():
    text = 'for: 3m\nexpr: max_over_time(a{path="/api/5m"}[121s]) > 180 and b[7d:5m] offset 5m\nrepeat_interval: 4h\n'
    assert scaled(text, 10) == (
        'for: 18000ms\nexpr: max_over_time(a{path="/api/5m"}[12100ms]) > 180 and b[60480000ms:30000ms] offset 30000ms\n'
        "repeat_interval: 1440000ms\n"
    )
    assert faster("1s", 10_000) == "1ms"


def test_every_duration_of_the_questions_is_scaled():
    slow, fast = dump(rules()).decode(), dump(rules(), 10).decode()
    assert "for: 1m\n" in slow
    assert "[121s]" in slow
    for left in ("for: 1m\n", "[121s]", "[5m]", "[15m", "[2m]"):
        assert left not in fast


def test_the_file_is_yaml_with_a_header():
    text = dump(rules()).decode()
    assert text.startswith("# Written by minipc")
    assert len(yaml.safe_load(text)["groups"]) == 2


def test_every_alert_has_measurements_that_make_it_fire_and_some_that_do_not():
    from minipc.checks.rule_files import rendered_rules
    from minipc.checks.rules import ComponentAlert, parse

    wanted = {"checks": {check.alert for check in load([SHOP]).checks if check.alert}}
    for component, text in rendered_rules().items():
        rules = [rule for group in parse(text, component).groups for rule in group.rules]
        wanted[component] = {rule.alert for rule in rules if isinstance(rule, ComponentAlert)}
    assert {name: {case.alert for case in cases if case.bad} for name, cases in CASES.items()} == wanted
    silent = {case.alert for cases in CASES.values() for case in cases if case.good}
    assert {alert for alerts in wanted.values() for alert in alerts} - silent == {"Watchdog", "Digest"}
