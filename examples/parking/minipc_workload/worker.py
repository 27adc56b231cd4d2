"""The loop around a job: run it on time, keep the heartbeat, stop on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import uuid
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import start_http_server
from structlog.contextvars import bound_contextvars

from minipc_workload import forecast, ingest, metrics, push
from minipc_workload.batches import Batch
from minipc_workload.database import Database
from minipc_workload.downstream import Downstream
from minipc_workload.resilience import UnavailableError, deadline
from minipc_workload.settings import Settings, reveal

log = structlog.stdlib.get_logger(__name__)

# No job may be silent for longer, however long its interval.
HEARTBEAT_EVERY_S = 30.0
# How long a batch may go on after SIGTERM.
GRACE_S = 10.0
DATABASE_TIMEOUT_S = 10.0

BEAT = """
    INSERT INTO worker_heartbeats AS mine (worker, beat_at, last_success_at, last_status, stale_threshold_s)
    VALUES (%(worker)s, now(), CASE WHEN %(good)s THEN now() END, %(status)s, %(stale_s)s)
    ON CONFLICT (worker) DO UPDATE SET beat_at = now(), stale_threshold_s = excluded.stale_threshold_s,
        last_success_at = coalesce(excluded.last_success_at, mine.last_success_at),
        last_status = coalesce(excluded.last_status, mine.last_status)
    RETURNING coalesce(extract(epoch FROM last_success_at), 0)::float8 AS last_success"""

Job = Callable[[], Awaitable[Batch]]


async def serve(name: str, settings: Settings) -> None:
    """Run one worker until SIGTERM or SIGINT, then give its batch GRACE_S seconds."""
    start_http_server(int(getattr(settings, f"metrics_port_{name}")), settings.metrics_host)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    db = Database(settings, name, max_size=2, timeout_s=DATABASE_TIMEOUT_S)
    await db.open()
    services, job = connect(name, settings, db)
    log.info("service started", version=settings.version)
    running = asyncio.create_task(Worker(name, settings, db, job).loop(stop))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    try:
        await deadline(running, GRACE_S)
    except TimeoutError:
        # Each item is its own transaction, and what was not delivered stays in the outbox.
        log.warning("batch cut short by stop")
    for downstream in services:
        await downstream.close()
    await db.close()
    log.info("service stopped")


def connect(name: str, settings: Settings, db: Database) -> tuple[list[Downstream], Job]:
    """Return the services that a worker calls, and its job."""
    if name == "forecast":
        return [], lambda: forecast.run(db)
    if name == "push":
        gateway = Downstream("push-gateway", reveal(settings.push_gateway_url))
        return [gateway], lambda: push.run(db, gateway)
    url = reveal(settings.upstream_url)
    parking, weather = Downstream("parking-source", url), Downstream("weather-source", url)
    return [parking, weather], lambda: ingest.run(db, parking, weather)


class Worker:
    """One job and its heartbeat row."""

    def __init__(self, name: str, settings: Settings, db: Database, job: Job) -> None:
        self._name, self._db, self._job = name, db, job
        self._interval_s = int(getattr(settings, f"{name}_interval_s"))
        self._stale_s = int(getattr(settings, f"{name}_stale_s"))
        self._last_status: str | None = None
        metrics.JOB_STALE_THRESHOLD.labels(name).set(self._stale_s)
        metrics.JOB_LAST_SUCCESS.labels(name).set(0)

    async def loop(self, stop: asyncio.Event) -> None:
        """Run the job at once and then every interval. The loop itself beats: a job that hangs stops the heartbeat."""
        due = time.monotonic()
        while not stop.is_set():
            await self._beat()
            if time.monotonic() >= due:
                due = time.monotonic() + self._interval_s
                with bound_contextvars(request_id=f"{self._name}-{uuid.uuid4().hex[:16]}"):
                    await self._run_once()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(max(0.0, due - time.monotonic()), HEARTBEAT_EVERY_S))

    async def _run_once(self) -> None:
        began = time.monotonic()
        counts: dict[str, int] = {}
        try:
            batch = await self._job()
            status, counts = str(batch.status), {"done": batch.done, "failed": batch.failed}
        except Exception as error:
            # An error once, a warning while it lasts: an outage would send an error every few seconds.
            level = logging.WARNING if self._last_status == "failed" else logging.ERROR
            unexpected = not isinstance(error, UnavailableError)
            log.log(level, "job failed", exc_info=unexpected, job_name=self._name, reason=str(error))
            status = "failed"
        seconds = time.monotonic() - began
        metrics.JOB_DURATION.labels(self._name).observe(seconds)
        metrics.JOB_RUNS.labels(self._name, status).inc()
        self._last_status = status
        level = logging.WARNING if status != "ok" else logging.INFO if counts["done"] else logging.DEBUG
        log.log(level, "job finished", job_name=self._name, status=status, duration_s=round(seconds, 3), **counts)
        await self._beat(status)

    async def _beat(self, status: str | None = None) -> None:
        """Write the heartbeat row, with the outcome of a batch that has just ended. The metrics follow the row."""
        good = status in ("ok", "degraded")
        try:
            (row,) = await self._db.fetch(BEAT, worker=self._name, good=good, status=status, stale_s=self._stale_s)
        except Exception as error:
            # Not the end of the worker: monitors see it by the age of the row.
            log.warning("heartbeat failed", reason=f"{type(error).__name__}: {error}")
            return
        metrics.JOB_LAST_SUCCESS.labels(self._name).set(row["last_success"])
        metrics.HEARTBEAT.labels(self._name).set_to_current_time()
