"""Grafana's dashboards, rendered from the operator's questions and the saved log queries."""

from minipc.dashboards.build import logs_dashboard, questions_dashboard, rendered
from minipc.dashboards.schema import Dashboard

__all__ = ["Dashboard", "logs_dashboard", "questions_dashboard", "rendered"]
