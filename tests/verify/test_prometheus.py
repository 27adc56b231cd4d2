"""Prometheus: everything is measured, every rule can be computed, and nobody but the machine itself gets in."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.verify.conftest import eventually, not_exercised

PORTS = {"prometheus": 9090, "node": 9100, "blackbox": 9115, "redis": 9121, "postgres": 9187}
UNITS = ["prometheus.service", *(f"prometheus-{name}-exporter.service" for name in PORTS if name != "prometheus")]
# Metrics that begin with an event, or that only some machines have: why each is not there yet.
LATER = {
    "minipc_backup_path_present": "a backup of configuration and state",
    "minipc_drill_": "a restore drill",
    "minipc_rehearsal_": "a rehearsal, and `minipc drift` after it",
    "minipc_drift_": "`minipc drift`",
    "minipc_bundle_": "a break-glass bundle",
    "loki_": "Loki, where its artifact could be had",
    "argocd_": "K3s and ArgoCD",
    "minipc_gitops_": "K3s and a deploy repository",
    "node_timex_": "a machine that may ask for its clock's state; a container may not",
    "service:http_errors:ratio_30d": "five minutes of measuring",
    "service:http_error_budget:": "five minutes of measuring",
    "service:": "requests of users",
    "job:": "five minutes of measuring",
}
_STRINGS = re.compile(r'"[^"]*"|\{|\}|\[[^\]]*\]')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)")
_WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}


@pytest.fixture(scope="session")
def ask(sh):
    """A call of Prometheus' API, on the machine."""

    def get(path: str, **query: str):
        options = " ".join(f"--data-urlencode {shlex.quote(f'{name}={value}')}" for name, value in query.items())
        text = sh(f"curl -sS --get --max-time 10 {options} http://127.0.0.1:{PORTS['prometheus']}/api/v1/{path}")
        answer = json.loads(text)
        assert answer["status"] == "success", answer
        return answer["data"]

    return get


@pytest.fixture(scope="session")
def rules(ask):
    return [rule for group in ask("rules")["groups"] for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    """The names of the metrics in an expression."""
    text = re.sub(r"\{[^{}]*\}", " ", re.sub(r'"(?:[^"\\]|\\.)*"', "", expression))
    text = _GROUPING.sub(" ", _STRINGS.sub(" ", text))
    names = re.findall(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()", text)
    return {name for name in names if name.lower() not in _WORDS and not re.fullmatch(r"e\d+|[smhdwy]", name)}


def test_names_of_metrics_are_found_in_expressions():
    text = (
        'sum by (a) (rate(b_total{c="d{e}",f=~"g"}[5m])) / on (h) group_left () max(i:j) > 4e9 and vector(1) == bool 0'
    )
    assert metrics_of(text) == {"b_total", "i:j"}


def test_only_the_machine_itself_and_the_vpn_can_connect(listeners, settings):
    vpn = {settings.vpn.address, settings.vpn.address_ipv6}
    for name, port in PORTS.items():
        at = {address for address, found, _ in listeners if found == port}
        assert at - (vpn if name in settings.vpn.services else set()) == {"127.0.0.1"}, name
    ours = {(address, port) for address, port, program in listeners if program.startswith("prometheus")}
    assert {address for address, _ in ours} == {"127.0.0.1"}


def test_everything_is_measured(ask, sh):
    nodes = sh("if [ -x /usr/local/bin/k3s ]; then k3s kubectl get nodes --output name; fi")
    joined = {name.removeprefix("node/") for name in nodes.split()}

    def down():
        return {
            (target["labels"]["job"], target["scrapeUrl"], target["lastError"])
            for target in ask("targets", state="active")["activeTargets"]
            # An agent that has not joined yet is no fault of this machine's.
            if target["health"] != "up" and target["labels"].get("node", "") in {"", *joined}
        }

    eventually(lambda: not down(), within_s=80, every_s=2)
    assert down() == set()
    jobs = {target["labels"]["job"] for target in ask("targets", state="active")["activeTargets"]}
    assert jobs >= {"prometheus", "alertmanager", "node", "blackbox", "postgres", "redis", "caddy", "probe"}


def test_every_rule_can_be_computed(rules):
    assert len(rules) > 60
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] == "err"] == []


def test_every_metric_that_a_rule_asks_for_exists(ask, rules):
    """A metric that was renamed would silence its alert for ever."""
    asked = {name for rule in rules for name in metrics_of(rule["query"])}
    assert len(asked) > 40
    there = set(ask("label/__name__/values"))
    missing = {name for name in asked - there if not name.startswith(tuple(LATER))}
    assert missing == set()


def test_the_clock_is_measured(ask, environment):
    if environment == "lab":
        not_exercised("a container may not ask for its clock's state")
    assert "node_timex_offset_seconds" in ask("label/__name__/values")


def test_every_question_has_its_alert(rules):
    from minipc.checks import load

    wanted = {check.alert for check in load().checks if check.alert}
    assert wanted <= {rule["name"] for rule in rules}


def test_it_keeps_what_is_configured_and_no_more(ask, settings):
    flags = ask("status/flags")
    days, size = ask("status/runtimeinfo")["storageRetention"].split(" or ")
    number, unit = re.fullmatch(r"(\d+)(MiB|GiB)", size).groups()
    assert days == f"{settings.prometheus.retention_days}d"
    assert int(number) * {"MiB": 1, "GiB": 1024}[unit] == settings.prometheus.retention_mb
    assert flags["web.enable-lifecycle"] == flags["web.enable-admin-api"] == "false"


def test_the_exporters_reach_what_they_measure(ask):
    """Also after the checks of others have stopped one of them for a moment."""

    def up():
        return [sample["value"][1] for name in ("pg_up", "redis_up") for sample in ask("query", query=name)["result"]]

    assert eventually(lambda: up() == ["1", "1"], within_s=60, every_s=1), up()


def test_passwords_are_roots_alone(sh):
    for name in ("postgres", "redis"):
        assert sh(f"stat -c '%U %a' /etc/prometheus/minipc/{name}-exporter.env") == "root 600"


@pytest.mark.parametrize("name", UNITS)
def test_the_units_start_at_boot_within_their_memory_and_have_only_what_they_need(units, exposure, name):
    unit = units(name)
    assert (unit["UnitFileState"], unit["Restart"], unit["User"]) == ("enabled", "always", "prometheus")
    assert unit["Slice"] == "minipc-monitoring.slice"
    assert int(unit["MemoryHigh"]) < int(unit["MemoryMax"]) <= 500 * 1024**2
    assert exposure(name) < 3


def test_the_set_stays_within_its_memory(sh, settings):
    """Resident memory of all of them together: shared pages count more than once, so it is less in truth."""
    found = [line.split(maxsplit=1) for line in sh("ps -eo rss=,args=").splitlines()]
    used = sum(int(rss) for rss, command in found if command.startswith("/usr/bin/prometheus")) // 1024
    assert 0 < used < settings.prometheus.set_memory_mb


def test_killed_it_comes_back_with_what_it_knew(disturb, ask, sh):
    oldest = 'min_over_time(timestamp(up{job="prometheus"})[1h:15s])'
    before = float(ask("query", query=oldest)["result"][0]["value"][1])
    disturb("systemctl kill --signal KILL prometheus.service")
    assert eventually(
        lambda: sh("curl -s 127.0.0.1:9090/-/ready || true") == "Prometheus Server is Ready.", within_s=60
    )
    assert float(ask("query", query=oldest)["result"][0]["value"][1]) <= before + 60
