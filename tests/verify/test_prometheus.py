"""Checks of Prometheus and its exporters: targets, rules, metrics and access."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.verify.conftest import eventually, not_exercised

PORTS = {"prometheus": 9090, "node": 9100, "blackbox": 9115, "redis": 9121, "postgres": 9187}
UNITS = ["prometheus.service", *(f"prometheus-{name}-exporter.service" for name in PORTS if name != "prometheus")]
# Metrics that exist only after an event, or only on some machines: prefix and reason.
LATER = {
    "alertmanager_notifications_failed_total": "a channel of the alerts",
    "minipc_backup_path_present": "a backup of configuration and state",
    "minipc_drill_": "a restore drill",
    "minipc_rehearsal_": "a rehearsal, and `minipc drift` after it",
    "minipc_drift_": "`minipc drift`",
    "minipc_bundle_": "a break-glass bundle",
    "minipc_preflight_": "`minipc preflight`",
    "loki_": "Loki, where its artifact is available",
    "argocd_": "K3s and ArgoCD",
    "minipc_gitops_": "K3s and a deploy repository",
    "minipc_node_": "K3s",
    "minipc_cluster_": "K3s",
    "minipc_postgres_log_cut_": "a log of PostgreSQL that was cut because it grew too quickly",
    "node_timex_": "a machine that may ask for its clock's state; a container may not",
}
_STRINGS = re.compile(r'"[^"]*"|\{|\}|\[[^\]]*\]')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)")
_WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}


@pytest.fixture(scope="session")
def ask(sh):
    """Return a function that calls Prometheus' API on the machine."""

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
    """Return the names of the metrics in an expression."""
    text = re.sub(r"\{[^{}]*\}", " ", re.sub(r'"(?:[^"\\]|\\.)*"', "", expression))
    text = _GROUPING.sub(" ", _STRINGS.sub(" ", text))
    names = re.findall(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()", text)
    return {name for name in names if name.lower() not in _WORDS and not re.fullmatch(r"e\d+|[smhdwy]", name)}


def test_names_of_metrics_are_found_in_expressions():
    """The names of metrics are found in expressions."""
    text = (
        'sum by (a) (rate(b_total{c="d{e}",f=~"g"}[5m])) / on (h) group_left () max(i:j) > 4e9 and vector(1) == bool 0'
    )
    assert metrics_of(text) == {"b_total", "i:j"}


def test_only_the_machine_itself_and_the_vpn_can_connect(listeners, settings):
    """Prometheus and its exporters are reachable only from the machine and the VPN."""
    vpn = {settings.vpn.address, settings.vpn.address_ipv6}
    for name, port in PORTS.items():
        at = {address for address, found, _ in listeners if found == port}
        assert at - (vpn if name in settings.vpn.services else set()) == {"127.0.0.1"}, name
    ours = {(address, port) for address, port, program in listeners if program.startswith("prometheus")}
    assert {address for address, _ in ours} == {"127.0.0.1"}


def test_everything_is_measured(ask, sh, settings):
    """Prometheus can read every configured target."""
    nodes = sh("if [ -x /usr/local/bin/k3s ]; then k3s kubectl get nodes --output name; fi")
    joined = {name.removeprefix("node/") for name in nodes.split()}

    def down():
        return {
            (target["labels"]["job"], target["scrapeUrl"], target["lastError"])
            for target in ask("targets", state="active")["activeTargets"]
            # An agent that has not joined yet is not a fault of this machine.
            if target["health"] != "up" and target["labels"].get("node", "") in {"", *joined}
        }

    eventually(lambda: not down(), within_s=80, every_s=2)
    assert down() == set()
    jobs = {target["labels"]["job"] for target in ask("targets", state="active")["activeTargets"]}
    assert jobs >= {"prometheus", "alertmanager", "node", "blackbox", "postgres", "redis", "caddy"}
    assert ("probe" in jobs) == any(service.ingress for service in settings.services.declared)


def test_every_rule_can_be_computed(rules):
    """Every alert rule can be evaluated."""
    assert len(rules) > 40
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] == "err"] == []


def test_every_metric_that_a_rule_asks_for_exists(ask, rules, settings):
    """Every metric that an alert rule uses exists.

    If a metric were renamed, its alert would never fire. What a service's own files ask for is the service's matter.
    """
    platform = [rule for rule in rules if "service" not in rule["labels"]]
    asked = {name for rule in platform for name in metrics_of(rule["query"])}
    assert len(asked) > 30
    there = set(ask("label/__name__/values"))
    missing = {name for name in asked - there if not name.startswith(tuple(LATER))}
    if settings.offsite.s3 or settings.offsite.sftp:
        missing.discard("minipc_machine_replaced")  # Only an off-site host can say it.
    assert missing == set()


def test_the_clock_is_measured(ask, environment):
    """The offset of the clock is measured."""
    if environment.shares_kernel:
        not_exercised("a container may not ask for its clock's state")
    assert "node_timex_offset_seconds" in ask("label/__name__/values")


def test_every_question_has_its_alert(rules, settings):
    """Every operator question has its alert rule."""
    from minipc.checks import load

    wanted = {check.alert for check in load(settings.services.declared).checks if check.alert}
    assert wanted <= {rule["name"] for rule in rules}


def test_it_keeps_what_is_configured_and_no_more(ask, settings):
    """Prometheus keeps metrics as long as configured and cannot be changed over HTTP."""
    flags = ask("status/flags")
    days, size = ask("status/runtimeinfo")["storageRetention"].split(" or ")
    found = re.fullmatch(r"(\d+)(MiB|GiB)", size)
    assert found, size
    number, unit = found.groups()
    assert days == f"{settings.prometheus.retention_days}d"
    assert int(number) * {"MiB": 1, "GiB": 1024}[unit] == settings.prometheus.retention_mb
    assert flags["web.enable-lifecycle"] == flags["web.enable-admin-api"] == "false"


def test_the_exporters_reach_what_they_measure(ask):
    """The exporters reach the database and the cache.

    Other checks may have stopped one of them shortly before.
    """

    def up():
        return [sample["value"][1] for name in ("pg_up", "redis_up") for sample in ask("query", query=name)["result"]]

    assert eventually(lambda: up() == ["1", "1"], within_s=60, every_s=1), up()


def test_passwords_are_roots_alone(sh):
    """Only root and the monitoring account can read the exporters' passwords."""
    files = "/etc/prometheus/minipc/postgres-exporter.env /etc/prometheus/minipc/redis-exporter.json"
    assert sh(f"stat -c '%U %a' {files}").splitlines() == ["root 600", "prometheus 600"]


@pytest.mark.parametrize("name", UNITS)
def test_the_units_start_at_boot_within_their_memory_and_have_only_what_they_need(units, exposure, name):
    """The unit starts at boot, has a memory limit and runs with few privileges."""
    unit = units(name)
    assert (unit["UnitFileState"], unit["Restart"], unit["User"]) == ("enabled", "always", "prometheus")
    assert unit["Slice"] == "minipc-monitoring.slice"
    assert int(unit["MemoryHigh"]) < int(unit["MemoryMax"]) <= 500 * 1024**2
    assert exposure(name) < 3


def test_the_set_stays_within_its_memory(sh, settings):
    """Prometheus and its exporters together stay within their memory limit.

    Shared pages are counted more than once, so the true value is lower.
    """
    found = [line.split(maxsplit=1) for line in sh("ps -eo rss=,args=").splitlines()]
    used = sum(int(rss) for rss, command in found if command.startswith("/usr/bin/prometheus")) // 1024
    assert 0 < used < settings.prometheus.set_memory_mb


def test_killed_it_comes_back_with_what_it_knew(disturb, ask, sh):
    """Prometheus restarts after a crash and keeps its measurements."""
    oldest = 'min_over_time(timestamp(up{job="prometheus"})[1h:15s])'
    before = float(ask("query", query=oldest)["result"][0]["value"][1])
    disturb("systemctl kill --signal KILL prometheus.service")
    assert eventually(
        lambda: sh("curl -s 127.0.0.1:9090/-/ready || true") == "Prometheus Server is Ready.", within_s=60
    )
    assert float(ask("query", query=oldest)["result"][0]["value"][1]) <= before + 60
