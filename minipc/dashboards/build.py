"""From questions to panels: one row for each, in the order of asking."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from minipc.checks import Check, Checks
from minipc.checks.verdict import what_next
from minipc.dashboards.schema import Dashboard
from minipc.logs.queries import REQUEST_ID, SavedQuery

HEIGHT = 5
STAT_WIDTH, CHART_WIDTH = 5, 12
TEXT_WIDTH = 24 - STAT_WIDTH - CHART_WIDTH
UNITS = {"boolean": "none", "seconds": "s", "ratio": "percentunit", "count": "short", "per minute": "short"}
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
LOKI = {"type": "loki", "uid": "loki"}


def questions_dashboard(checks: Checks) -> Dashboard:
    """The operator's questions: what is the answer now, how was it, what does a no mean, what is next."""
    panels: list[dict[str, Any]] = []
    for number, check in enumerate(checks.checks):
        panels += _row(check, number, checks.sla[check.priority])
    return _dashboard("minipc-questions", "Is it well?", "The questions in the order of asking.", panels)


def logs_dashboard(queries: Iterable[SavedQuery]) -> Dashboard:
    """The saved log queries."""
    panels: list[dict[str, Any]] = []
    for number, query in enumerate(queries):
        y = number * 9
        counts = query.logql.startswith(("sum", "count", "rate", "topk"))
        panels.append(_titled(number * 2 + 1, query.question, y))
        panels.append(
            {
                "id": number * 2 + 2,
                "type": "timeseries" if counts else "logs",
                "title": query.name,
                "description": query.question,
                "gridPos": {"x": 0, "y": y + 1, "w": 24, "h": 8},
                "datasource": LOKI,
                "targets": [_log_target(query)],
                "fieldConfig": _fields("short", [{"value": None, "color": "blue"}]) if counts else None,
                "options": {} if counts else {"showTime": True, "wrapLogMessage": True, "sortOrder": "Descending"},
            }
        )
    variable = {"type": "textbox", "name": "request_id", "label": "Request", "query": "none", "hide": 0}
    return _dashboard("minipc-logs", "Logs", "The saved queries of playbooks/log_queries.yaml.", panels, [variable])


def rendered(dashboard: Dashboard) -> bytes:
    """As Grafana reads it from a file."""
    fields = dashboard.model_dump(by_alias=True, exclude_none=True)
    for panel in fields["panels"]:
        for step in panel.get("fieldConfig", {}).get("defaults", {}).get("thresholds", {}).get("steps", []):
            # Null is a value here: the beginning.
            step.setdefault("value", None)
    return json.dumps(fields, indent=1, ensure_ascii=False).encode() + b"\n"


def _row(check: Check, number: int, sla: str) -> list[dict[str, Any]]:
    y = number * (HEIGHT + 1)
    first = number * 10 + 1
    told = f"**{check.priority}, {sla}.** {check.meaning}\n\nNext: {what_next(check)}"
    text = {
        "id": first + 1,
        "type": "text",
        "title": "",
        "gridPos": {"x": 24 - TEXT_WIDTH, "y": y + 1, "w": TEXT_WIDTH, "h": HEIGHT},
        "options": {"mode": "markdown", "content": told},
    }
    row = _titled(first, check.question, y)
    if check.expression is None:
        nobody = "Nothing on this machine can measure it. `minipc triage` asks."
        return [
            row,
            text
            | {
                "gridPos": {"x": 0, "y": y + 1, "w": 24, "h": HEIGHT},
                "options": {"mode": "markdown", "content": f"{told}\n\n{nobody}"},
            },
        ]
    look: dict[str, Any] = {
        "description": check.meaning,
        "datasource": PROMETHEUS,
        "fieldConfig": _fields(UNITS[check.unit], _steps(check), _mappings(check)),
    }
    stat = look | {
        "id": first + 2,
        "type": "stat",
        "title": "now",
        "gridPos": {"x": 0, "y": y + 1, "w": STAT_WIDTH, "h": HEIGHT},
        "targets": [_target(check, instant=True)],
        "options": {
            "colorMode": "background",
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
            "textMode": "value_and_name" if check.each else "value",
        },
    }
    chart: dict[str, Any] = look | {
        "id": first + 3,
        "type": "timeseries",
        "title": f"no when {check.bad_when}" + (f" for {check.lasting}" if check.lasting != "0s" else ""),
        "gridPos": {"x": STAT_WIDTH, "y": y + 1, "w": CHART_WIDTH, "h": HEIGHT},
        "targets": [_target(check, instant=False)],
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": bool(check.each)}},
    }
    lines = {"thresholdsStyle": {"mode": "line+area"}, "fillOpacity": 0}
    chart["fieldConfig"] = {"defaults": chart["fieldConfig"]["defaults"] | {"custom": lines}}
    return [row, stat, chart, text]


def _target(check: Check, *, instant: bool) -> dict[str, Any]:
    legend = f"{{{{{check.each}}}}}" if check.each else check.question
    return {
        "refId": "A",
        "datasource": PROMETHEUS,
        "expr": check.expression,
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
    }


def _log_target(query: SavedQuery) -> dict[str, Any]:
    expr = query.logql.replace(REQUEST_ID, "${request_id}")
    return {"refId": "A", "datasource": LOKI, "expr": expr, "queryType": "range", "legendFormat": "{{service}}"}


def _steps(check: Check) -> list[dict[str, Any]]:
    """Which values are good (green) and which are a no (red), by rising value."""
    good, bad = "green", "red"
    threshold = check.threshold
    just_above = threshold + 1e-9
    match check.operator:
        case ">":
            return [{"value": None, "color": good}, {"value": just_above, "color": bad}]
        case ">=":
            return [{"value": None, "color": good}, {"value": threshold, "color": bad}]
        case "<":
            return [{"value": None, "color": bad}, {"value": threshold, "color": good}]
        case "<=":
            return [{"value": None, "color": bad}, {"value": just_above, "color": good}]
    inside, outside = (bad, good) if check.operator == "==" else (good, bad)
    return [
        {"value": None, "color": outside},
        {"value": threshold, "color": inside},
        {"value": just_above, "color": outside},
    ]


def _mappings(check: Check) -> list[dict[str, Any]]:
    """A boolean reads yes or no: nothing is said by colour alone."""
    if check.unit != "boolean":
        return []
    texts = {str(value): {"text": "no" if check.is_bad(value) else "yes"} for value in (0, 1)}
    return [{"type": "value", "options": texts}]


def _fields(unit: str, steps: list[dict[str, Any]], mappings: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"defaults": {"unit": unit, "thresholds": {"steps": steps}, "mappings": mappings or []}}


def _titled(number: int, title: str, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        "collapsed": False,
        "panels": [],
    }


def _dashboard(
    uid: str, title: str, description: str, panels: list[dict[str, Any]], variables: list[dict[str, Any]] | None = None
) -> Dashboard:
    return Dashboard.model_validate(
        {
            "uid": uid,
            "title": title,
            "description": description,
            "tags": ["minipc"],
            "schemaVersion": 41,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "timezone": "browser",
            "time": {"from": "now-6h", "to": "now"},
            "templating": {"list": variables or []},
            "annotations": {"list": []},
            "links": [],
            "panels": panels,
        }
    )
