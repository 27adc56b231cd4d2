"""The loop around a job: runs it on time, keeps the heartbeat, stops when told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import httpx
from prometheus_client import start_http_server

from minipc_workload import metrics, simulated
from minipc_workload.database import Connection, Database
from minipc_workload.downstream import Downstream
from minipc_workload.errors import DatabaseUnavailableError
from minipc_workload.jobs import Batch, forecast, ingest, push
from minipc_workload.logs import working_for
from minipc_workload.resilience import CircuitBreaker
from minipc_workload.settings import Settings

log = logging.getLogger(__name__)

# No job may be silent for longer, however long its interval.
HEARTBEAT_EVERY_S = 30.0
# How long a batch may go on after SIGTERM.
GRACE_S = 10.0
DATABASE_TIMEOUT_S = 10.0

Job = Callable[[], Awaitable[Batch]]


async def serve(name: str, settings: Settings) -> None:
    """Runs one worker until SIGTERM or SIGINT."""
    start_http_server(settings.workers[name].metrics_port, settings.metrics_host)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as closing:
        db = Database(settings, name, max_size=2, timeout_s=DATABASE_TIMEOUT_S)
        await db.open()
        closing.push_async_callback(db.close)
        job = _job(name, settings, db, closing)
        log.info("service started", extra={"version": settings.version})
        await until_stopped(Worker(name, settings, db, job).loop(stop), stop)
    log.info("service stopped")


async def until_stopped(loop: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Runs the loop; once told to stop, lets it finish for GRACE_S seconds and then cancels it."""
    running = asyncio.create_task(loop)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        await asyncio.wait({running}, timeout=GRACE_S)
    if not running.done():
        # Each item is a transaction of its own, and what was not delivered stays in the outbox.
        log.warning("batch cut short by stop")
        running.cancel()
        await asyncio.wait({running}, timeout=1.0)
    if running.done() and not running.cancelled():
        running.result()


def _job(name: str, settings: Settings, db: Database, closing: AsyncExitStack) -> Job:
    def downstream(service: str, url: str | None, simulation: Callable[[], httpx.AsyncBaseTransport]) -> Downstream:
        breaker = CircuitBreaker(service, on_change=metrics.breaker_changed)
        client = Downstream(service, url or "http://simulated", breaker, None if url else simulation())
        closing.push_async_callback(client.close)
        return client

    match name:
        case "ingest":
            parking = downstream("parking-source", settings.upstream_url, simulated.source)
            weather = downstream("weather-source", settings.upstream_url, simulated.source)
            return lambda: ingest.run(db, parking, weather)
        case "forecast":
            return lambda: forecast.run(db)
        case "push":
            gateway = downstream("push-gateway", settings.push_gateway_url, simulated.push_gateway)
            outbox = push.PostgresOutbox(db)

            async def deliver() -> Batch:
                batch = await push.run(outbox, gateway)
                metrics.OUTBOX_PENDING.set(await outbox.pending())
                return batch

            return deliver
    raise ValueError(f"no such worker: {name}")


class Worker:
    """One job and its heartbeat row."""

    def __init__(self, name: str, settings: Settings, db: Database, job: Job) -> None:
        self._name = name
        self._settings = settings.workers[name]
        self._db = db
        self._job = job
        self._last_status: str | None = None
        metrics.JOB_STALE_THRESHOLD.labels(name).set(self._settings.stale_s)
        metrics.JOB_LAST_SUCCESS.labels(name).set(0)

    async def loop(self, stop: asyncio.Event) -> None:
        """Runs the job at once and then every interval. The heartbeat is the loop's own: a job that hangs stops it."""
        due = time.monotonic()
        while not stop.is_set():
            await self._beat()
            if time.monotonic() >= due:
                due = time.monotonic() + self._settings.interval_s
                with working_for(f"{self._name}-{uuid.uuid4().hex[:16]}"):
                    await self._run_once()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(max(0.0, due - time.monotonic()), HEARTBEAT_EVERY_S))

    async def _run_once(self) -> None:
        began = time.monotonic()
        try:
            batch = await self._job()
            status, counts = batch.status, {"done": batch.done, "failed": batch.failed}
        except Exception as error:
            # An error once; while it lasts a warning, or an outage would send an error every few seconds.
            level = logging.WARNING if self._last_status == "failed" else logging.ERROR
            unexpected = not isinstance(error, DatabaseUnavailableError)
            log.log(level, "job failed", exc_info=unexpected, extra={"job_name": self._name, "reason": str(error)})
            status, counts = "failed", {}
        seconds = time.monotonic() - began
        metrics.JOB_DURATION.labels(self._name).observe(seconds)
        metrics.JOB_RUNS.labels(self._name, status).inc()
        self._last_status = status
        when_ok = logging.INFO if counts.get("done") else logging.DEBUG
        log.log(
            when_ok if status == "ok" else logging.WARNING,
            "job finished",
            extra={"job_name": self._name, "status": status, "duration_s": round(seconds, 3), **counts},
        )
        await self._beat(status)

    async def _beat(self, status: str | None = None) -> None:
        """Writes the heartbeat row, with the outcome when a batch has just ended. The metrics follow the row."""

        async def work(db: Connection) -> float:
            cursor = await db.execute(
                """INSERT INTO worker_heartbeats AS mine
                       (worker, beat_at, last_success_at, last_status, stale_threshold_s)
                   VALUES (%(worker)s, now(), CASE WHEN %(good)s THEN now() END, %(status)s, %(stale_s)s)
                   ON CONFLICT (worker) DO UPDATE SET beat_at = now(), stale_threshold_s = excluded.stale_threshold_s,
                       last_success_at = coalesce(excluded.last_success_at, mine.last_success_at),
                       last_status = coalesce(excluded.last_status, mine.last_status)
                   RETURNING coalesce(extract(epoch FROM last_success_at), 0)::float8 AS last_success""",
                {
                    "worker": self._name,
                    "good": status in ("ok", "degraded"),
                    "status": status,
                    "stale_s": self._settings.stale_s,
                },
            )
            row = await cursor.fetchone()
            return float(row["last_success"]) if row else 0.0

        try:
            metrics.JOB_LAST_SUCCESS.labels(self._name).set(await self._db.run(work))
            metrics.HEARTBEAT.labels(self._name).set_to_current_time()
        except Exception as error:
            # Not the end of the worker: monitors see it by the row's age.
            log.warning("heartbeat failed", extra={"reason": f"{type(error).__name__}: {error}"})
