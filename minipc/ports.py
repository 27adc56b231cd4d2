"""Loopback ports that are no settings: each program's own default, but Caddy's (its metrics), which is free."""

from __future__ import annotations

MONITORING = {
    "prometheus": 9090,
    "alertmanager": 9093,
    "node": 9100,
    "blackbox": 9115,
    "redis": 9121,
    "caddy": 9180,
    "postgres": 9187,
}
