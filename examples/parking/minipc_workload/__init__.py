"""The reference service: a parking and outing assistant that stands for the user's real service.

Read in this order: settings, resilience, database, views, api, worker, then the three jobs ingest, forecast and push.
docs/reference/services.md lists endpoints, metrics, environment variables and log messages.
"""

WORKERS = ("ingest", "forecast", "push")
