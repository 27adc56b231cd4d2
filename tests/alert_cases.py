"""For each alert: measurements at which it fires, and measurements at which it must not. promtool evaluates them.

Values in promtool's notation: `1x40` is 41 times 1, `0+2x40` counts up. Time begins at 0, every measurement is `every`
apart (more than 5 min would make Prometheus forget the series).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

Series = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One alert.

    Attributes:
        bad, good: series -> values.
        at: when it is looked at; `good_at` for the good ones when it differs.
        every: distance of the values.
    """

    alert: str
    bad: Series
    good: Series
    at: str = "5m"
    good_at: str = ""
    every: str = "15s"


def probe(path: str, via: str = "edge", module: str = "answers") -> str:
    return f'probe_success{{job="probe",via="{via}",module="{module}",path="{path}"}}'


def two_probes(alert: str, series: str) -> Case:
    """Two failures in a row fire, one does not."""
    return Case(alert, {series: "1 0 0 0"}, {series: "1 0 1 0"}, at="2m30s", every="60s")


def level(alert: str, series: str, bad: str, good: str, at: str = "5m") -> Case:
    """A value that stays bad, and one that stays good."""
    return Case(alert, {series: f"{bad}x200"}, {series: f"{good}x200"}, at)


def bundle(**changed: str) -> Series:
    """What a break-glass bundle that fits is measured by, with changes."""
    well = {"check_success": "1x320", "matches": "1x320", "created_timestamp_seconds": "0x320"}
    well |= {"checked_timestamp_seconds": "0x320"}
    return {f"minipc_bundle_{name}": values for name, values in well.items()} | changed


DISK = 'device="d",fstype="ext4",mountpoint="/"'
API = 'job="workload-api",service="api",method="GET",route="/api/parking"'
JOB = 'job="workload-worker",job_name="ingest"'

CASES: dict[str, list[Case]] = {
    "checks": [
        two_probes("ApiDown", probe("/api/livez")),
        two_probes("RuntimeDown", probe("/api/livez", "api")),
        level("DatabaseDown", "pg_up", "0", "1", "2m"),
        two_probes("DatabaseTooSlow", probe("/api/readyz", "api")),
        level("CacheDown", "redis_up", "0", "1", "2m"),
        level("ChangedByHand", "minipc_gitops_drift_objects", "1", "0", "3m"),
        two_probes("ScreenFailing", probe("/api/outing")),
        Case(
            "ManyErrors",
            {f'http_requests_total{{{API},status="500"}}': "0+2x40"},
            {f'http_requests_total{{{API},status="500"}}': "0+1x40"},
        ),
        level("SlowAnswers", 'probe_duration_seconds{job="probe",via="edge",path="/api/health"}', "0.3", "0.1"),
        level("WorkerDown", 'up{job="workload-worker",worker="push"}', "0", "1", "2m"),
        Case(
            "WorkerStalled",
            {'worker_heartbeat_timestamp_seconds{worker="push"}': "0x40"},
            {'worker_heartbeat_timestamp_seconds{worker="push"}': "0+15x40"},
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
        level("BreakerOpen", 'circuit_breaker_state{service="push-gateway"}', "2", "1", "1m"),
        two_probes("StaleButServing", probe("/api/outing", module="fresh")),
        Case(
            "ForecastOld",
            {'job_last_success_timestamp_seconds{job_name="forecast"}': "-1600x40"},
            {'job_last_success_timestamp_seconds{job_name="forecast"}': "-1400x40"},
        ),
        Case("OutboxGrowing", {"outbox_pending": "20x80"}, {"outbox_pending": "20x20 0x60"}, at="11m"),
        Case(
            "CacheMisses",
            {"cache_hits_total": "0+1x120", "cache_misses_total": "0+30x120"},
            {"cache_hits_total": "0+30x120", "cache_misses_total": "0+1x120"},
            at="22m",
        ),
        # Without load nothing can be said.
        Case("CacheMisses", {}, {"cache_hits_total": "0x120", "cache_misses_total": "0+1x120"}, at="22m"),
        level("BackupOld", 'minipc_backup_last_success_timestamp_seconds{repo="repo2"}', "-93400", "-93000"),
        level("DrillOld", 'minipc_drill_last_pass_timestamp_seconds{repo="repo1"}', "-3024000", "-3000000"),
        Case("ArchivingFails", {"pg_stat_archiver_failed_count": "0+1x40"}, {"pg_stat_archiver_failed_count": "7x40"}),
        Case(
            "DiskFull",
            {f"node_filesystem_avail_bytes{{{DISK}}}": "5x40", f"node_filesystem_size_bytes{{{DISK}}}": "100x40"},
            {f"node_filesystem_avail_bytes{{{DISK}}}": "15x40", f"node_filesystem_size_bytes{{{DISK}}}": "100x40"},
        ),
        level("UnitFailed", 'node_systemd_unit_state{name="a.service",state="failed"}', "1", "0", "2m"),
        level("ClockOff", "node_timex_offset_seconds", "-0.6", "0.1", "7m"),
    ],
    "workload": [
        level("DeployUnhealthy", 'up{job="workload-api"}', "0", "1", "1m"),
        level(
            "DeployUnhealthy", 'node_systemd_unit_state{name="workload-migrate.service",state="failed"}', "1", "0", "1m"
        ),
        Case(
            "ErrorBudgetBurnsFast",
            {f'http_requests_total{{{API},status="{status}"}}': f"0+{n}x80" for status, n in (("200", 10), ("500", 1))},
            {
                f'http_requests_total{{{API},status="{status}"}}': f"0+{n}x80"
                for status, n in (("200", 100), ("500", 1))
            },
            at="10m",
        ),
        Case(
            "ErrorBudgetBurnsSlowly",
            {
                f'http_requests_total{{{API},status="{status}"}}': f"0+{n}x160"
                for status, n in (("200", 20), ("500", 1))
            },
            {
                f'http_requests_total{{{API},status="{status}"}}': f"0+{n}x160"
                for status, n in (("200", 100), ("500", 1))
            },
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
            {"db_pool_waiting": "2x40", "db_pool_size": "8x40", "db_pool_max": "8x40"},
            {"db_pool_waiting": "2x40", "db_pool_size": "4x40", "db_pool_max": "8x40"},
        ),
        level("GitOpsDrift", "minipc_gitops_drift_objects", "1", "0", "12m"),
        Case("CacheErrors", {"cache_errors_total": "0+2x40"}, {"cache_errors_total": "9x40"}, at="8m"),
    ],
    "postgres": [
        level(
            "SlowQuery",
            'pg_stat_activity_max_tx_duration{backend_type="client backend",state="active",datname="w",usename="u"}',
            "90",
            "30",
        ),
        level(
            "SlowQuery",
            'pg_stat_activity_max_tx_duration{backend_type="client backend",state="idle in transaction"}',
            "90",
            "30",
        ),
        level("ConnectionsNearlyUsed", 'pg_stat_activity_count{datname="w"}', "90", "20", "7m"),
        Case("Deadlocks", {"pg_stat_database_deadlocks": "0x8 5x40"}, {"pg_stat_database_deadlocks": "5x40"}),
        level("WalPilesUp", "pg_wal_size_bytes", "5000000000", "1000000000", "7m"),
    ],
    "backups": [
        level("BackupFailed", 'minipc_backup_success{repo="repo2"}', "0", "1", "1m"),
        Case(
            "BackupPathMissing",
            {'minipc_backup_path_present{component="edge",path="/x"}': "0x400"},
            {'minipc_backup_path_present{component="edge",path="/x"}': "0x200 1x200"},
            at="26h",
            every="4m",
        ),
        level("ArchiveOld", "pg_stat_archiver_last_archive_age", "1000", "500", "2m"),
        level("DrillFailed", 'minipc_drill_verdict{repo="repo1",verdict="fail"}', "1", "0", "1m"),
        level("RpoOverBudget", 'minipc_drill_rpo_seconds{repo="repo1"}', "90000", "300", "1m"),
        level("RtoOverBudget", 'minipc_drill_duration_seconds{repo="repo1"}', "15000", "300", "1m"),
        level("RtoOverBudget", "minipc_rehearsal_rto_seconds", "15000", "300", "1m"),
        level("RehearsalFailed", "minipc_rehearsal_success", "0", "1", "1m"),
        Case("BundleOutdated", bundle(minipc_bundle_matches="0x320"), bundle(), at="65m"),
        Case("BundleOutdated", bundle(minipc_bundle_created_timestamp_seconds="-7776000x320"), {}, at="65m"),
        # None was ever made; one could not be looked at, whatever was known of it before.
        Case("BundleOutdated", {"up": "1x320"}, {}, at="65m"),
        Case(
            "BundleOutdated",
            {"minipc_bundle_checked_timestamp_seconds": "0x320", "minipc_bundle_check_success": "0x320"},
            bundle(minipc_bundle_check_success="0x20 1x300"),
            at="65m",
        ),
    ],
    "host": [
        Case(
            "DiskFullSoon",
            {
                f"node_filesystem_avail_bytes{{{DISK}}}": "300-1x120",
                f"node_filesystem_size_bytes{{{DISK}}}": "1000x120",
            },
            {
                f"node_filesystem_avail_bytes{{{DISK}}}": "300-0x120",
                f"node_filesystem_size_bytes{{{DISK}}}": "1000x120",
            },
            at="1h",
            every="1m",
        ),
        Case(
            "InodesUsedUp",
            {f"node_filesystem_files_free{{{DISK}}}": "5x40", f"node_filesystem_files{{{DISK}}}": "100x40"},
            {f"node_filesystem_files_free{{{DISK}}}": "50x40", f"node_filesystem_files{{{DISK}}}": "100x40"},
            at="7m",
        ),
        Case(
            "MemoryShort",
            {"node_memory_MemAvailable_bytes": "5x40", "node_memory_MemTotal_bytes": "100x40"},
            {"node_memory_MemAvailable_bytes": "50x40", "node_memory_MemTotal_bytes": "100x40"},
            at="7m",
        ),
        Case("OutOfMemory", {"node_vmstat_oom_kill": "0x8 1x40"}, {"node_vmstat_oom_kill": "1x40"}),
        Case("ClockUnsynchronised", {"node_timex_sync_status": "0x160"}, {"node_timex_sync_status": "1x160"}, at="35m"),
        Case(
            "TimerInactive",
            {'node_systemd_unit_state{name="minipc-drill.timer",state="active"}': "0x80"},
            {'node_systemd_unit_state{name="minipc-drill.timer",state="active"}': "1x80"},
            at="12m",
        ),
        level("HostDrift", "minipc_drift_changes", "2", "0", "1m"),
        level("DriftUnchecked", "minipc_drift_checked_timestamp_seconds", "-180000", "-100000", "1m"),
        level("DriftUnchecked", "minipc_drift_check_success", "0", "1", "1m"),
    ],
    "k3s": [level("NodeDown", 'up{job="kubelet"}', "0", "1")],
    "k3s_agent": [level("AgentDown", 'up{job="agent-kubelet",node="a"}', "0", "1")],
    "argocd": [
        Case(
            "ApplicationBroken",
            {'argocd_app_info{name="workload",health_status="Degraded"}': "1x60"},
            {'argocd_app_info{name="workload",health_status="Healthy"}': "1x60"},
            at="10m",
        ),
        Case(
            "ApplicationDiffers",
            {'argocd_app_info{name="workload",sync_status="OutOfSync"}': "1x400"},
            {'argocd_app_info{name="workload",sync_status="Synced"}': "1x400"},
            at="70m",
        ),
    ],
    "edge": [
        level(
            "CertificateExpires", 'probe_ssl_earliest_cert_expiry{job="probe",via="edge"}', "1000000", "3000000", "6m"
        ),
        Case(
            "DoorErrors",
            {'caddy_http_response_duration_seconds_count{code="502"}': "0+2x40"},
            {'caddy_http_response_duration_seconds_count{code="502"}': "0+1x40"},
        ),
    ],
    "redis": [
        Case(
            "CacheRefusesConnections",
            {"redis_rejected_connections_total": "0x8 3x40"},
            {"redis_rejected_connections_total": "3x40"},
        ),
        Case(
            "CacheRefusesStrangers",
            {"redis_acl_access_denied_auth_total": "0+3x40"},
            {"redis_acl_access_denied_auth_total": "30x40"},
        ),
    ],
    "prometheus": [
        Case("Watchdog", {"up": "1x40"}, {}),
        level("TargetDown", 'up{job="redis"}', "0", "1", "3m"),
        Case(
            "RulesFail",
            {"prometheus_rule_evaluation_failures_total": "0x8 3x40"},
            {"prometheus_rule_evaluation_failures_total": "3x40"},
        ),
        level("ConfigurationRefused", "prometheus_config_last_reload_successful", "0", "1", "2m"),
        level("ConfigurationRefused", "alertmanager_config_last_reload_successful", "0", "1", "2m"),
        level("TextfileUnreadable", "node_textfile_scrape_error", "1", "0", "2m"),
    ],
    "loki": [
        Case(
            "LogSilence",
            {"loki_distributor_lines_received_total": "100x80"},
            {"loki_distributor_lines_received_total": "0+1x80"},
            at="17m",
        ),
        Case(
            "LogsRefused",
            {'loki_discarded_samples_total{reason="greater_than_max_sample_age"}': "0x8 3x40"},
            {'loki_discarded_samples_total{reason="greater_than_max_sample_age"}': "3x60"},
        ),
    ],
    "alertmanager": [
        Case(
            "NotificationsFail",
            {'alertmanager_notifications_failed_total{integration="slack"}': "0x8 3x40"},
            {'alertmanager_notifications_failed_total{integration="slack"}': "3x40"},
        ),
        Case(
            "AlertsUndelivered",
            {"prometheus_notifications_dropped_total": "0+1x40"},
            {"prometheus_notifications_dropped_total": "0x8 1x40"},
            at="8m",
        ),
    ],
}

# Takes minutes: a week of measurements.
WEEK = Case(
    "SlowJob",
    {"job_duration_seconds_sum": "0+60x2520 151380+600x20", "job_duration_seconds_count": "0+60x2540"},
    {"job_duration_seconds_sum": "0+60x2540", "job_duration_seconds_count": "0+60x2540"},
    at="169h",
    every="4m",
)

# Nothing is measured at all: each question that must be answerable says so.
SILENCE_AT = "12m"


def promtool_file(rules: str, cases: list[Case], evaluation: str = "15s") -> str:
    """A file for `promtool test rules`.

    Args:
        rules: path of the rule file, relative to the test file.
    """
    tests = []
    for case in cases:
        for good in (False, True):
            series = case.good if good else case.bad
            if not series:
                continue
            firing = f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}'
            fires: list[object] = [] if good else [{"labels": "{}", "value": 1}]
            tests.append(
                {
                    "name": f"{case.alert} {'is silent' if good else 'fires'}",
                    "interval": case.every,
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": f"count(count by (alertname) ({firing}))",
                            "eval_time": (case.good_at or case.at) if good else case.at,
                            "exp_samples": fires,
                        }
                    ],
                }
            )
    return yaml.safe_dump({"rule_files": [rules], "evaluation_interval": evaluation, "tests": tests}, sort_keys=False)


def silence_file(rules: str, checks: list[str], at: str, evaluation: str) -> str:
    """A file for promtool in which nothing is measured, and `checks` must say so."""
    expected = [{"labels": f'{{check="{name}"}}', "value": 1} for name in sorted(checks)]
    test = {
        "name": "nothing is measured",
        "input_series": [{"series": "unrelated", "values": "1x40"}],
        "promql_expr_test": [
            {
                "expr": 'count by (check) (ALERTS{alertname="NoData",alertstate="firing"})',
                "eval_time": at,
                "exp_samples": expected,
            }
        ],
    }
    return yaml.safe_dump({"rule_files": [rules], "evaluation_interval": evaluation, "tests": [test]}, sort_keys=False)
