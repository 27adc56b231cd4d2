"""Build the dashboards as Grafana's JSON (dashboard schema version 41).

Why not grafana-foundation-sdk: docs/decisions/0045-dashboards-as-plain-json.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from minipc.checks import Check, Checks
from minipc.checks.verdict import what_next
from minipc.logs.queries import REQUEST_ID, SavedQuery

Json = dict[str, Any]

GRID = 24  # columns of Grafana's grid
HEIGHT, STAT_WIDTH, CHART_WIDTH = 5, 5, 12
LOG_HEIGHT = 8
UNITS = {"boolean": "none", "seconds": "s", "ratio": "percentunit", "count": "short", "per minute": "short"}
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
LOKI = {"type": "loki", "uid": "loki"}


def questions_dashboard(checks: Checks) -> Json:
    """Return the dashboard of the operator's questions: one row each with the answer, its history and what to do."""
    panels: list[Json] = []
    for number, check in enumerate(checks.checks):
        y = number * (HEIGHT + 1)
        panels += [_row(check.question, y), *_question(check, checks.sla[check.priority], y + 1)]
    return dashboard("minipc-questions", "Is it well?", "The operator's questions, in order.", panels)


def logs_dashboard(queries: Iterable[SavedQuery]) -> Json:
    """Return the dashboard of the saved log queries."""
    panels: list[Json] = []
    for number, query in enumerate(queries):
        y = number * (LOG_HEIGHT + 1)
        panels += [_row(query.question, y), _log_panel(query, y + 1)]
    variable = {"type": "textbox", "name": "request_id", "label": "Request", "query": "none", "hide": 0}
    return dashboard("minipc-logs", "Logs", "The saved queries of playbooks/log_queries.yaml.", panels, [variable])


def rendered(dashboard: Json) -> bytes:
    """Return the content of the file that Grafana reads."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False).encode() + b"\n"


def _question(check: Check, sla: str, y: int) -> list[Json]:
    """Return the panels of a question: current value, history and text; only the text without an expression."""
    content = f"**{check.priority}, {sla}.** {check.meaning}\n\nNext: {what_next(check)}"
    if check.expression is None:
        content += "\n\nNothing on this machine can measure it. `minipc triage` asks from outside."
        return [_text(content, 0, y)]
    stat = {
        "type": "stat",
        "title": "now",
        "gridPos": position(0, y, STAT_WIDTH),
        "targets": [_target(check, instant=True)],
        "fieldConfig": _fields(UNITS[check.unit], _steps(check), _mappings(check)),
        "options": {
            "colorMode": "background",
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
            "textMode": "value_and_name" if check.each else "value",
        },
    }
    lines = {"thresholdsStyle": {"mode": "line+area"}, "fillOpacity": 0}
    chart = {
        "type": "timeseries",
        "title": f"no when {check.bad_when}" + (f" for {check.lasting}" if check.lasting != "0s" else ""),
        "gridPos": position(STAT_WIDTH, y, CHART_WIDTH),
        "targets": [_target(check, instant=False)],
        "fieldConfig": _fields(UNITS[check.unit], _steps(check), _mappings(check), lines),
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": bool(check.each)}},
    }
    common = {"description": check.meaning, "datasource": PROMETHEUS}
    return [stat | common, chart | common, _text(content, STAT_WIDTH + CHART_WIDTH, y)]


def _target(check: Check, *, instant: bool) -> Json:
    return {
        "refId": "A",
        "datasource": PROMETHEUS,
        "expr": check.expression,
        "legendFormat": f"{{{{{check.each}}}}}" if check.each else check.question,
        "instant": instant,
        "range": not instant,
    }


def _log_panel(query: SavedQuery, y: int) -> Json:
    counts = query.logql.startswith(("sum", "count", "rate", "topk"))
    target = {
        "refId": "A",
        "datasource": LOKI,
        "expr": query.logql.replace(REQUEST_ID, "${request_id}"),
        "queryType": "range",
        "legendFormat": "{{service}}",
    }
    shown = (
        {"fieldConfig": _fields("short", [{"value": None, "color": "blue"}])}
        if counts
        else {"options": {"showTime": True, "wrapLogMessage": True, "sortOrder": "Descending"}}
    )
    return {
        "type": "timeseries" if counts else "logs",
        "title": query.name,
        "description": query.question,
        "gridPos": position(0, y, GRID, LOG_HEIGHT),
        "datasource": LOKI,
        "targets": [target],
        **shown,
    }


def _steps(check: Check) -> list[Json]:
    """Return which values are good (green) and bad (red), in rising order; the first step has no value."""
    threshold, just_above = check.threshold, check.threshold + 1e-9
    below, at, above = (check.is_bad(value) for value in (threshold - 1, threshold, threshold + 1))
    steps: list[Json] = []
    for value, bad in ((None, below), (threshold, at), (just_above, above)):
        color = "red" if bad else "green"
        if not steps or steps[-1]["color"] != color:
            steps.append({"value": value, "color": color})
    return steps


def _mappings(check: Check) -> list[Json]:
    """Return the words for a boolean, so that colour is not the only information."""
    if check.unit != "boolean":
        return []
    texts = {str(value): {"text": "no" if check.is_bad(value) else "yes"} for value in (0, 1)}
    return [{"type": "value", "options": texts}]


def _fields(
    unit: str, steps: list[Json], mappings: list[Json] | None = None, custom: Json | None = None
) -> dict[str, Any]:
    thresholds = {"mode": "absolute", "steps": steps}
    defaults = {"unit": unit, "thresholds": thresholds, "mappings": mappings or [], "noValue": "no data"}
    return {"defaults": defaults | ({"custom": custom} if custom else {}), "overrides": []}


def _text(content: str, x: int, y: int) -> Json:
    options = {"mode": "markdown", "content": content}
    return {"type": "text", "title": "", "gridPos": position(x, y, GRID - x), "options": options}


def _row(title: str, y: int) -> Json:
    return {"type": "row", "title": title, "gridPos": position(0, y, GRID, 1), "collapsed": False, "panels": []}


def position(x: int, y: int, width: int, height: int = HEIGHT) -> Json:
    """Return where a panel is on Grafana's grid."""
    return {"x": x, "y": y, "w": width, "h": height}


def dashboard(uid: str, title: str, description: str, panels: list[Json], variables: list[Json] | None = None) -> Json:
    """Return a dashboard; its panels get their numbers."""
    return {
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
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }
