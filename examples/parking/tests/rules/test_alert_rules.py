"""The example's own alert rules: with some measurements each alert must fire, and with others it must not."""

from __future__ import annotations

import pytest

from minipc.checks import load
from minipc.checks.rules import of_questions, of_services
from minipc.config import load as load_config
from tests.alert_cases import Case, level, probe, promtool_files, two_probes
from tests.promtool import evaluate

SERVICE = "parking"
API = 'service="parking",process="api",exported_service="api",method="GET",route="/api/parking"'
JOB = 'service="parking",process="ingest",job_name="ingest"'


def own(metric: str) -> str:
    return f'{metric}{{service="{SERVICE}"}}'


QUESTIONS: list[Case] = [
    Case(
        "ManyErrors",
        {f'http_requests_total{{{API},status="500"}}': "0+2x40"},
        {f'http_requests_total{{{API},status="500"}}': "0+1x40"},
    ),
    Case(
        "WorkerStalled",
        {'worker_heartbeat_timestamp_seconds{service="parking",worker="push"}': "0x40"},
        {'worker_heartbeat_timestamp_seconds{service="parking",worker="push"}': "0+15x40"},
    ),
    Case(
        "JobStale",
        {f"job_last_success_timestamp_seconds{{{JOB}}}": "0x40", f"job_stale_threshold_seconds{{{JOB}}}": "60x40"},
        {f"job_last_success_timestamp_seconds{{{JOB}}}": "0x40", f"job_stale_threshold_seconds{{{JOB}}}": "600x40"},
    ),
    # A worker that is gone is remembered.
    Case(
        "JobStale",
        {
            f"job_last_success_timestamp_seconds{{{JOB}}}": "0x4 _x60",
            f"job_stale_threshold_seconds{{{JOB}}}": "300x4 _x60",
        },
        {},
        at="15m",
    ),
    level("BreakerOpen", 'circuit_breaker_state{service="parking",exported_service="push-gateway"}', "2", "1", "1m"),
    two_probes("StaleButServing", probe("page", service=SERVICE, page="outing-fresh", alert="no")),
    Case(
        "ForecastOld",
        {'job_last_success_timestamp_seconds{service="parking",job_name="forecast"}': "-1600x40"},
        {'job_last_success_timestamp_seconds{service="parking",job_name="forecast"}': "-1400x40"},
    ),
    Case(
        "OutboxGrowing",
        {own("outbox_pending"): "20x80"},
        {own("outbox_pending"): "20x20 0x60"},
        at="11m",
    ),
    Case(
        "CacheMisses",
        {own("cache_hits_total"): "0+1x120", own("cache_misses_total"): "0+30x120"},
        {own("cache_hits_total"): "0+30x120", own("cache_misses_total"): "0+1x120"},
        at="22m",
    ),
    # Without load nothing can be said.
    Case(
        "CacheMisses",
        {},
        {own("cache_hits_total"): "0x120", own("cache_misses_total"): "0+1x120"},
        at="22m",
    ),
]

RULES: list[Case] = [
    Case(
        "ErrorBudgetBurnsFast",
        {f'http_requests_total{{{API},status="{status}"}}': f"0+{n}x80" for status, n in (("200", 10), ("500", 1))},
        {f'http_requests_total{{{API},status="{status}"}}': f"0+{n}x80" for status, n in (("200", 100), ("500", 1))},
        at="10m",
    ),
    Case(
        "ErrorBudgetBurnsSlowly",
        {f'http_requests_total{{{API},status="{status}"}}': f"0+{n}x160" for status, n in (("200", 20), ("500", 1))},
        {f'http_requests_total{{{API},status="{status}"}}': f"0+{n}x160" for status, n in (("200", 100), ("500", 1))},
        at="30m",
    ),
    Case(
        "SlowRequests",
        {
            f'http_request_duration_seconds_bucket{{{API},status="200",le="{le}"}}': f"0+{n}x80"
            for le, n in (("0.2", 1), ("1.0", 10), ("+Inf", 10))
        },
        {
            f'http_request_duration_seconds_bucket{{{API},status="200",le="{le}"}}': f"0+{n}x80"
            for le, n in (("0.2", 10), ("1.0", 10), ("+Inf", 10))
        },
        at="15m",
    ),
    Case(
        "PoolExhausted",
        {
            own("db_pool_waiting"): "2x40",
            own("db_pool_size"): "8x40",
            own("db_pool_max"): "8x40",
        },
        {
            own("db_pool_waiting"): "2x40",
            own("db_pool_size"): "4x40",
            own("db_pool_max"): "8x40",
        },
    ),
    Case(
        "CacheErrors",
        {own("cache_errors_total"): "0+2x40"},
        {own("cache_errors_total"): "9x40"},
        at="8m",
    ),
]

# Takes ten seconds: a week of measurements.
WEEK = Case(
    "SlowJob",
    {
        f"job_duration_seconds_sum{{{JOB}}}": "0+60x5040 302580+600x40",
        f"job_duration_seconds_count{{{JOB}}}": "0+60x5080",
    },
    {
        f"job_duration_seconds_sum{{{JOB}}}": "0+60x5080",
        f"job_duration_seconds_count{{{JOB}}}": "0+60x5080",
    },
    at="169h",
    every="2m",
    evaluation="5m",
)


@pytest.fixture(scope="module")
def services():
    return [load_config("lab", services_folders=["examples/parking/services"]).services.named(SERVICE)]


def test_the_questions_alerts_fire_when_they_should_and_only_then(services, tmp_path):
    evaluate(tmp_path, promtool_files(of_questions(load(services), "x", services), QUESTIONS))


def test_the_rules_alerts_fire_when_they_should_and_only_then(services, tmp_path):
    evaluate(tmp_path, promtool_files(of_services(services, "x"), RULES))


@pytest.mark.long
def test_a_job_is_compared_with_its_last_week(services, tmp_path):
    evaluate(tmp_path, promtool_files(of_services(services, "x"), [WEEK]))


def test_every_alert_has_measurements(services):
    questions = {check.alert for check in load(services).checks if check.owner}
    rules = {
        rule["alert"] for group in of_services(services, "x")["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert {case.alert for case in QUESTIONS} == questions
    assert {case.alert for case in [*RULES, WEEK]} == rules
