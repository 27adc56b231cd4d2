"""Grafana's dashboards, rendered from the operator's questions and the saved log queries."""

from minipc.dashboards.build import logs_dashboard, questions_dashboard, rendered
from minipc.dashboards.service import service_dashboard

__all__ = ["logs_dashboard", "questions_dashboard", "rendered", "service_dashboard"]
