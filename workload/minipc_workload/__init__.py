"""The reference workload: a parking and outing assistant that stands for the user's real service.

Reading order: settings, resilience, database, screens/, api, then worker and jobs/. `docs/reference/workload.md` lists
endpoints, metrics, environment variables and log messages.
"""

from __future__ import annotations

WORKERS = ("ingest", "forecast", "push")
