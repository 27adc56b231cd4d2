"""The dashboard of one service; a variable chooses which."""

from __future__ import annotations

from dataclasses import dataclass

from minipc.dashboards.build import CHART_WIDTH, GRID, HEIGHT, LOG_HEIGHT, LOKI, PROMETHEUS, Json, dashboard, position

_VARIABLE = "$service"


@dataclass(frozen=True)
class Chart:
    """A chart: PromQL about the chosen service, its unit in Grafana, and how a line is named."""

    title: str
    expression: str
    unit: str
    legend: str


CHARTS = (
    Chart(
        "Answers (1: yes)",
        'min by (via, path, page) (probe_success{job="probe",service="$service"})',
        "none",
        "{{via}} {{path}} {{page}}",
    ),
    Chart(
        "Time for an answer",
        'max by (via, path) (probe_duration_seconds{job="probe",service="$service"})',
        "s",
        "{{via}} {{path}}",
    ),
    Chart(
        "Processes that are ready",
        'max by (process) (minipc_process_ready{service="$service"}) '
        '/ max by (process) (minipc_process_wanted{service="$service"})',
        "percentunit",
        "{{process}}",
    ),
    Chart(
        "Restarts within 15 minutes",
        'sum by (process) (increase(minipc_process_restarts{service="$service"}[15m]))',
        "short",
        "{{process}}",
    ),
    Chart(
        "Time since the last success of each cron job",
        'time() - max by (cron) (minipc_cron_last_success_timestamp_seconds{service="$service"})',
        "s",
        "{{cron}}",
    ),
    Chart(
        "Volumes: used share of their size",
        'max by (volume) (minipc_volume_bytes{service="$service"}) '
        '/ max by (volume) (minipc_volume_limit_bytes{service="$service"})',
        "percentunit",
        "{{volume}}",
    ),
    Chart(
        "Memory, as the process itself publishes it",
        'max by (process, pod) (process_resident_memory_bytes{service="$service"})',
        "bytes",
        "{{process}} {{pod}}",
    ),
    Chart("Can be measured (1: yes)", 'min by (process) (up{job="service",service="$service"})', "none", "{{process}}"),
)


def service_dashboard() -> Json:
    """Return the dashboard: what is known about every service, and its log."""
    panels = [_chart(chart, number) for number, chart in enumerate(CHARTS)]
    bottom = (len(CHARTS) + 1) // 2 * HEIGHT
    variable = {
        "type": "query",
        "name": "service",
        "label": "Service",
        "datasource": PROMETHEUS,
        "query": {"query": "label_values(minipc_process_wanted, service)", "refId": "services"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
    }
    summary = "One service: answers, processes, cron jobs, volumes, log."
    return dashboard("minipc-service", "Service", summary, [*panels, _log(bottom)], [variable])


def _chart(chart: Chart, number: int) -> Json:
    return {
        "type": "timeseries",
        "title": chart.title,
        "gridPos": position(number % 2 * CHART_WIDTH, number // 2 * HEIGHT, CHART_WIDTH),
        "datasource": PROMETHEUS,
        "targets": [
            {
                "refId": "A",
                "datasource": PROMETHEUS,
                "expr": chart.expression,
                "legendFormat": chart.legend,
                "instant": False,
                "range": True,
            }
        ],
        "fieldConfig": {
            "defaults": {"unit": chart.unit, "min": 0, "noValue": "no data", "custom": {"fillOpacity": 0}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
    }


def _log(y: int) -> Json:
    query = f'{{service="{_VARIABLE}"}}'
    return {
        "type": "logs",
        "title": "Log",
        "gridPos": position(0, y, GRID, LOG_HEIGHT),
        "datasource": LOKI,
        "targets": [{"refId": "A", "datasource": LOKI, "expr": query, "queryType": "range"}],
        "options": {"showTime": True, "wrapLogMessage": True, "sortOrder": "Descending"},
    }
