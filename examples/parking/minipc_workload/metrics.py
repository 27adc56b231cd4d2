"""All metrics of the service. Their names are a contract with the alert rules and dashboards."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

HTTP_DURATION = Histogram(
    "http_request_duration_seconds",
    "Time to answer a request.",
    ["service", "method", "route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0),
)
HTTP_REQUESTS = Counter("http_requests", "Requests answered.", ["service", "method", "route", "status"])

JOB_DURATION = Histogram(
    "job_duration_seconds",
    "Time one batch of a worker took.",
    ["job_name"],
    buckets=(0.05, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
)
JOB_RUNS = Counter("job_runs", "Batches finished, by status: ok, degraded, failed.", ["job_name", "status"])
JOB_LAST_SUCCESS = Gauge(
    "job_last_success_timestamp_seconds", "End of the last batch that was ok or degraded; 0: never.", ["job_name"]
)
JOB_STALE_THRESHOLD = Gauge("job_stale_threshold_seconds", "Older than this, the last success is stale.", ["job_name"])
HEARTBEAT = Gauge("worker_heartbeat_timestamp_seconds", "Last turn of the worker's loop.", ["worker"])
OUTBOX_PENDING = Gauge("outbox_pending", "Notifications neither delivered nor given up.")

CACHE_HITS = Counter("cache_hits", "Answers taken from the cache.", ["screen"])
CACHE_MISSES = Counter("cache_misses", "Answers that had to be read from the database.", ["screen"])
CACHE_ERRORS = Counter("cache_errors", "Calls that Redis did not answer.")

BREAKER_STATE = Gauge("circuit_breaker_state", "0 closed, 1 half-open, 2 open.", ["service"])

POOL = {
    "pool_size": Gauge("db_pool_size", "Connections in the pool."),
    "pool_max": Gauge("db_pool_max", "Connections the pool may have."),
    "pool_available": Gauge("db_pool_available", "Connections that are idle."),
    "requests_waiting": Gauge("db_pool_waiting", "Requests that wait for a connection."),
}
