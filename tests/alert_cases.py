"""For each alert: measurements at which it fires, and measurements at which it must not. promtool evaluates them.

Values in promtool's notation: `1x40` is 41 times 1, `0+2x40` counts up. Time begins at 0, every measurement is `every`
apart (more than 5 min would make Prometheus forget the series).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minipc.checks import load
from minipc.checks.rule_files import rendered_rules
from minipc.checks.rules import Rules, of_component, of_questions
from minipc.config.service import Service
from minipc.core import yaml_text

Series = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One alert.

    Attributes:
        bad, good: series -> values.
        at: when it is looked at; `good_at` for the good ones when it differs.
        every: distance of the values.
        evaluation: distance of the evaluations; the same in all cases of an alert.
    """

    alert: str
    bad: Series
    good: Series
    at: str = "5m"
    good_at: str = ""
    every: str = "15s"
    evaluation: str = "15s"


SHOP = Service.model_validate(
    {
        "name": "shop",
        "image": "example.org/shop",
        "ingress": {"domains": ["shop.example.org"], "node_port": 30090},
        "processes": {"web": {"port": 8000, "metrics": {"port": 8000}}, "mail": {}},
        "cron": {"nightly": {"schedule": "0 3 * * *", "alert_after": "26h", "command": ["nightly"]}},
        "health": {"live": "/healthz", "ready": "/ready"},
        "redis": {"kind": "queue"},
        "volumes": {"uploads": {"mount": "/uploads", "size_gb": 1, "data_class": "must recover"}},
        "alerts": {"pages": {"basket": {"path": "/basket"}}},
    }
)
"""A service that has one of everything that is asked about."""


def probe(path: str, via: str = "ingress", service: str = "shop", **labels: str) -> str:
    more = "".join(f',{name}="{value}"' for name, value in labels.items())
    return f'probe_success{{job="probe",service="{service}",via="{via}",path="{path}"{more}}}'


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


UP_PROMETHEUS, UP_ALERTMANAGER = 'up{job="prometheus"}', 'up{job="alertmanager"}'
SENT = "prometheus_remote_storage_queue_highest_sent_timestamp_seconds"
REFUSED = "prometheus_remote_storage_samples_failed_total"
SENDING = {"prometheus_remote_storage_highest_timestamp_in_seconds": "0+15x60", SENT: "0+15x60", REFUSED: "0x60"}
DISK = 'device="d",fstype="ext4",mountpoint="/"'
WEB = 'service="shop",process="web"'
NIGHTLY = 'service="shop",cron="nightly"'
UPLOADS = 'service="shop",volume="uploads"'

CASES: dict[str, list[Case]] = {
    "checks": [
        two_probes("ServiceDown", probe("live")),
        two_probes("RuntimeDown", probe("live", "direct")),
        level("DatabaseDown", "pg_up", "0", "1", "2m"),
        two_probes("ServiceNotReady", probe("ready", "direct")),
        level("CacheDown", 'redis_up{job="redis"}', "0", "1", "2m"),
        level("QueueNotSaved", 'redis_rdb_last_bgsave_status{job="redis-queue",service="shop"}', "0", "1", "2m"),
        level("QueueDown", 'redis_up{job="redis-queue",service="shop"}', "0", "1", "2m"),
        Case(
            "QueueNearlyFull",
            {
                'redis_memory_used_bytes{job="redis-queue",service="shop"}': "95x40",
                'redis_memory_max_bytes{job="redis-queue",service="shop"}': "100x40",
            },
            {
                'redis_memory_used_bytes{job="redis-queue",service="shop"}': "50x40",
                'redis_memory_max_bytes{job="redis-queue",service="shop"}': "100x40",
                # A cache may be full.
                'redis_memory_used_bytes{job="redis"}': "99x40",
                'redis_memory_max_bytes{job="redis"}': "100x40",
            },
        ),
        level("ChangedByHand", "minipc_gitops_drift_objects", "1", "0", "3m"),
        two_probes("PageFailing", probe("page", page="basket", alert="yes")),
        Case(
            "ProcessDown",
            {f"minipc_process_ready{{{WEB}}}": "1x40", f"minipc_process_wanted{{{WEB}}}": "2x40"},
            {f"minipc_process_ready{{{WEB}}}": "2x10 1x4 2x40", f"minipc_process_wanted{{{WEB}}}": "2x60"},
        ),
        Case(
            "ProcessRestarts",
            {f"minipc_process_restarts{{{WEB}}}": "0 1 2 3 4 5x80"},
            {f"minipc_process_restarts{{{WEB}}}": "0 1x40 0x40"},
            at="10m",
        ),
        Case(
            "SlowAnswers",
            {
                'probe_duration_seconds{job="probe",service="shop",via="ingress",path="ready"}': "0.3x40",
                'minipc_service_answer_within_seconds{service="shop"}': "0.2x40",
            },
            {
                'probe_duration_seconds{job="probe",service="shop",via="ingress",path="ready"}': "0.3x40",
                'minipc_service_answer_within_seconds{service="shop"}': "2x40",
                # Another service that is slow, and may be.
                'probe_duration_seconds{job="probe",service="slow",via="ingress",path="ready"}': "8x40",
                'minipc_service_answer_within_seconds{service="slow"}': "9x40",
            },
        ),
        level("MetricsMissing", f'up{{job="service",{WEB}}}', "0", "1"),
        Case(
            "CronJobOverdue",
            {
                f"minipc_cron_last_success_timestamp_seconds{{{NIGHTLY}}}": "-93600x40",
                f"minipc_cron_alert_after_seconds{{{NIGHTLY}}}": "93600x40",
            },
            {
                f"minipc_cron_last_success_timestamp_seconds{{{NIGHTLY}}}": "-86400x40",
                f"minipc_cron_alert_after_seconds{{{NIGHTLY}}}": "93600x40",
            },
        ),
        Case(
            "VolumeNearlyFull",
            {f"minipc_volume_bytes{{{UPLOADS}}}": "95x40", f"minipc_volume_limit_bytes{{{UPLOADS}}}": "100x40"},
            {f"minipc_volume_bytes{{{UPLOADS}}}": "80x40", f"minipc_volume_limit_bytes{{{UPLOADS}}}": "100x40"},
        ),
        level("BackupOld", 'minipc_backup_last_success_timestamp_seconds{repo="repo2"}', "-93400", "-93000"),
        level("DrillOld", 'minipc_drill_last_pass_timestamp_seconds{repo="repo1"}', "-3024000", "-3000000"),
        Case("ArchivingFails", {"pg_stat_archiver_failed_count": "0+1x40"}, {"pg_stat_archiver_failed_count": "7x40"}),
        Case(
            "DiskFull",
            {f"node_filesystem_avail_bytes{{{DISK}}}": "5x40", f"node_filesystem_size_bytes{{{DISK}}}": "100x40"},
            {f"node_filesystem_avail_bytes{{{DISK}}}": "15x40", f"node_filesystem_size_bytes{{{DISK}}}": "100x40"},
        ),
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
        level("UnitFailed", 'node_systemd_unit_state{name="a.service",state="failed"}', "1", "0", "2m"),
        Case(
            "ChannelFails",
            {'alertmanager_notifications_failed_total{receiver_name="slack"}': "0x8 3x40"},
            {'alertmanager_notifications_failed_total{receiver_name="slack"}': "3x40"},
        ),
        Case(
            "UnitRestarts",
            {'node_systemd_service_restart_total{name="loki.service"}': "0+1x60"},
            {'node_systemd_service_restart_total{name="loki.service"}': "0 1 2x60"},
            at="11m",
        ),
        level("MachineReplaced", "minipc_machine_replaced", "1", "0"),
        Case(
            "MemoryShort",
            {"node_memory_MemAvailable_bytes": "5x40", "node_memory_MemTotal_bytes": "100x40"},
            {"node_memory_MemAvailable_bytes": "50x40", "node_memory_MemTotal_bytes": "100x40"},
            at="7m",
        ),
        level("ClusterDown", 'minipc_cluster_up{name="k3s (its datastore is corrupt)"}', "0", "1", "2m"),
        level("PodsEvicted", 'minipc_node_pressure{name="a/DiskPressure"}', "1", "0", "1m"),
        level("NodeNotReady", 'minipc_node_ready{name="a"}', "0", "1"),
        Case(
            "ApplicationUnknown",
            {'argocd_app_info{name="shop",sync_status="Unknown"}': "1x60"},
            {'argocd_app_info{name="shop",sync_status="Synced"}': "1x60"},
            at="10m",
        ),
        level("ClockOff", "node_timex_offset_seconds", "-0.6", "0.1", "7m"),
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
        Case(
            "WalPilesUp",
            {"minipc_wal_waiting_bytes": "6x40", "minipc_disk_size_bytes": "100x40"},
            {"minipc_wal_waiting_bytes": "4x40", "minipc_disk_size_bytes": "100x40"},
            at="7m",
        ),
        Case(
            "DiskReserveReleased",
            {"minipc_disk_reserve_bytes": "0x320"},
            {"minipc_disk_reserve_bytes": "0x100 5x220"},
            at="65m",
        ),
        Case(
            "WalNotSent",
            {"minipc_wal_stream_caught_up_timestamp_seconds": "0x60"},
            {"minipc_wal_stream_caught_up_timestamp_seconds": "0+15x60"},
            at="9m",
        ),
        level("PostgresLogCut", "minipc_postgres_log_cut_timestamp_seconds", "0", "-4000", "1m"),
    ],
    "backups": [
        Case("Digest", {"up": "1x40"}, {}),
        level("BackupFailed", 'minipc_backup_success{repo="repo2"}', "0", "1", "1m"),
        Case(
            "BackupPathMissing",
            {'minipc_backup_path_present{component="edge",path="/x"}': "0x400"},
            {'minipc_backup_path_present{component="edge",path="/x"}': "0x200 1x200"},
            at="26h",
            every="4m",
            evaluation="4m",
        ),
        Case(
            "ExpiryStopped",
            {'minipc_backup_expiry_stopped{repo="repo1"}': "1x320"},
            {'minipc_backup_expiry_stopped{repo="repo1"}': "1x20 0x300"},
            at="65m",
        ),
        level("BackupSnapshotUnreadable", "minipc_backup_unreadable_snapshots", "1", "0", "1m"),
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
            "InodesUsedUp",
            {f"node_filesystem_files_free{{{DISK}}}": "5x40", f"node_filesystem_files{{{DISK}}}": "100x40"},
            {f"node_filesystem_files_free{{{DISK}}}": "50x40", f"node_filesystem_files{{{DISK}}}": "100x40"},
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
        level("HostTampered", "minipc_drift_unexpected", "1", "0", "1m"),
        level("PreflightFailed", 'minipc_preflight_success{check="images"}', "0", "1", "1m"),
        level("DriftUnchecked", "minipc_drift_checked_timestamp_seconds", "-180000", "-100000", "1m"),
        level("DriftUnchecked", "minipc_drift_check_success", "0", "1", "1m"),
    ],
    "k3s": [level("NodeDown", 'up{job="kubelet"}', "0", "1")],
    "k3s_agent": [level("AgentDown", 'up{job="agent-kubelet",node="a"}', "0", "1")],
    "argocd": [
        Case(
            "ApplicationBroken",
            {'argocd_app_info{name="shop",health_status="Degraded"}': "1x60"},
            {'argocd_app_info{name="shop",health_status="Healthy"}': "1x60"},
            at="10m",
        ),
        Case(
            "ApplicationDiffers",
            {'argocd_app_info{name="shop",sync_status="OutOfSync"}': "1x400"},
            {'argocd_app_info{name="shop",sync_status="Synced"}': "1x400"},
            at="70m",
        ),
    ],
    "edge": [
        level(
            "CertificateExpires",
            'probe_ssl_earliest_cert_expiry{job="probe",service="shop",via="ingress"}',
            "1000000",
            "3000000",
            "6m",
        ),
        Case(
            "IngressErrors",
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
            "AlertsUndelivered",
            {"prometheus_notifications_dropped_total": "0+1x40"},
            {"prometheus_notifications_dropped_total": "0x8 1x40"},
            at="8m",
        ),
    ],
    "watcher": [
        Case("OffsiteSilent", SENDING | {SENT: "0x60"}, SENDING, at="12m"),
        # Refused is not silent.
        Case("OffsiteSilent", SENDING | {REFUSED: "0+1x60"}, SENDING, at="12m"),
    ],
    "watcher/outside": [
        two_probes("ServiceUnreachable", 'probe_success{job="outside",service="shop"}'),
        Case("NothingMeasured", {"unrelated": "1x40"}, {'up{job="node"}': "1x40"}),
        Case(
            "OffsiteDiskFull",
            {f"node_filesystem_avail_bytes{{{DISK}}}": "9x40", f"node_filesystem_size_bytes{{{DISK}}}": "100x40"},
            {f"node_filesystem_avail_bytes{{{DISK}}}": "11x40", f"node_filesystem_size_bytes{{{DISK}}}": "100x40"},
        ),
        level("OffsiteUnitFailed", 'node_systemd_unit_state{name="a.service",state="failed"}', "1", "0"),
        level("ReceiverDown", 'node_systemd_unit_state{name="minipc-watcher.service",state="active"}', "0", "1"),
        Case(
            "OffsiteChannelFails",
            {'alertmanager_notifications_failed_total{receiver_name="slack"}': "0x8 3x40"},
            {'alertmanager_notifications_failed_total{receiver_name="slack"}': "3x40"},
        ),
        level("CopyTrouble", 'minipc_offsite_copy_trouble{reason="x"}', "1", "0"),
        Case(
            "CopyOld",
            {"minipc_offsite_copy_last_success_timestamp_seconds": "0x800"},
            {"minipc_offsite_copy_last_success_timestamp_seconds": "0x800"},
            at="13h10m",
            good_at="12h",
            every="60s",
            evaluation="60s",
        ),
        Case(
            "CopyMissing",
            {"unrelated": "1x800"},
            {"minipc_offsite_copy_last_success_timestamp_seconds": "0x800"},
            at="13h10m",
            every="60s",
            evaluation="60s",
        ),
    ],
    "watcher/received": [
        Case("MachineSilent", {UP_PROMETHEUS: "1x4"}, {UP_PROMETHEUS: "1x60"}, at="10m"),
        Case("MachineCannotAlert", {UP_PROMETHEUS: "1x60", UP_ALERTMANAGER: "0x60"}, {UP_PROMETHEUS: "1x4"}, at="8m"),
        Case("MachineCannotAlert", {UP_PROMETHEUS: "1x60"}, {UP_PROMETHEUS: "1x60", UP_ALERTMANAGER: "1x60"}, at="8m"),
        Case(
            "MachineChannelFails",
            {'alertmanager_notifications_failed_total{receiver_name="slack"}': "0x8 3x40"},
            {'alertmanager_notifications_failed_total{receiver_name="slack"}': "3x40"},
        ),
    ],
}


def rules_of(name: str) -> Rules:
    """Return the rules of the questions ("checks", about the service SHOP) or of a component."""
    if name == "checks":
        return of_questions(load([SHOP]), "x", [SHOP])
    return of_component(name, rendered_rules()[name], "x")


def promtool_files(rules: Rules, cases: list[Case]) -> dict[str, str]:
    """Return the files for `promtool test rules *.test.yml`.

    Each alert has a file of its cases, and a file with its rules and all recording rules: promtool evaluates every rule
    of a file at every step of every case.
    """
    files = {}
    for alert in {case.alert for case in cases}:
        own = [case for case in cases if case.alert == alert]
        tests = {
            "rule_files": [f"{alert}.rules.yml"],
            "evaluation_interval": own[0].evaluation,
            "tests": [test for case in own for test in _promtool_tests(case)],
        }
        files[f"{alert}.rules.yml"] = yaml_text.dump(_only(alert, rules))
        files[f"{alert}.test.yml"] = yaml_text.dump(tests)
    return files


def _only(alert: str, rules: Rules) -> Rules:
    """Return the recording rules and those of one alert."""
    groups = [
        group | {"rules": [rule for rule in group["rules"] if rule.get("alert", alert) == alert]}
        for group in rules["groups"]
    ]
    return {"groups": [group for group in groups if group["rules"]]}


def _promtool_tests(case: Case) -> Iterator[dict[str, object]]:
    firing = f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}'
    for good in (False, True):
        series = case.good if good else case.bad
        if series:
            expected: list[object] = [] if good else [{"labels": "{}", "value": 1}]
            yield {
                "name": f"{case.alert} {'is silent' if good else 'fires'}",
                "interval": case.every,
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f"count(count by (alertname) ({firing}))",
                        "eval_time": (case.good_at or case.at) if good else case.at,
                        "exp_samples": expected,
                    }
                ],
            }


def silence_file(checks: Mapping[str, int], at: str, evaluation: str) -> str:
    """Return a file for promtool in which nothing is measured, and `checks` (id -> how many things) must say so."""
    expected = [{"labels": f'{{check="{name}"}}', "value": value} for name, value in sorted(checks.items())]
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
    file = {"rule_files": ["rules.yml"], "evaluation_interval": evaluation, "tests": [test]}
    return yaml_text.dump(file)
