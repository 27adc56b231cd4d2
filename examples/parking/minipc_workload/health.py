"""The verdict for monitors, in less than 200 ms also while the database hangs."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import psycopg
import structlog

from minipc_workload import WORKERS
from minipc_workload.database import connect_arguments
from minipc_workload.resilience import deadline
from minipc_workload.settings import Settings

log = structlog.stdlib.get_logger(__name__)

# Seconds since the last heartbeat, by worker.
Ages = Mapping[str, float]

ABANDON_S = 5.0
QUERY = b"SELECT worker, extract(epoch FROM now() - beat_at)::float8 FROM worker_heartbeats"


class Probe:
    """Read the heartbeats, one query at a time: callers that come meanwhile wait for the same answer.

    It has its own connection: the verdict must not queue behind the users' requests.
    """

    def __init__(self, settings: Settings) -> None:
        self._arguments = connect_arguments(settings, "probe", statement_timeout_s=2.0)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._running: asyncio.Task[Ages | None] | None = None
        self._asked_at = 0.0
        self._failed = True

    @property
    def waiting_s(self) -> float:
        """Seconds that the current query has waited; infinite if the last one failed, or none was answered yet."""
        if self._failed:
            return math.inf
        return 0.0 if self._running is None or self._running.done() else time.monotonic() - self._asked_at

    async def ask(self, budget_s: float) -> Ages | None:
        """Return the ages, None if the database failed or did not answer within the budget in seconds."""
        if self._running is None or self._running.done():
            self._asked_at = time.monotonic()
            self._running = asyncio.create_task(self._attempt())
        # It goes on when it takes too long: a new query for each caller would pile up connections.
        done, _ = await asyncio.wait({self._running}, timeout=budget_s)
        return self._running.result() if done else None

    async def _attempt(self) -> Ages | None:
        try:
            ages = await deadline(self.read(), ABANDON_S)
            self._failed = False
            return ages
        except (psycopg.Error, TimeoutError) as error:
            self._failed = True
            log.warning("database probe failed", reason=f"{type(error).__name__}: {error}")
            return None

    async def read(self) -> Ages:
        """Return the ages by the database's clock. Raises psycopg.Error if it is down or has no schema."""
        # Taken out while in use: a query that hangs and is abandoned takes its connection with it.
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                return await self._query(connection)
            except psycopg.OperationalError:
                pass  # the server was restarted: once more on a new connection
        return await self._query(await psycopg.AsyncConnection.connect(**self._arguments, autocommit=True))

    async def _query(self, connection: psycopg.AsyncConnection[Any]) -> Ages:
        try:
            ages = dict(await (await connection.execute(QUERY)).fetchall())
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return ages

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()


def verdict(ages: Ages | None, uptime_s: float, max_age_s: float) -> tuple[int, dict[str, Any]]:
    """Return HTTP status and body of /api/health. A worker that never gave a heartbeat is stale."""
    if ages is None:
        db, worker = "down", "unknown"
    else:
        stale = [name for name in WORKERS if ages.get(name, math.inf) > max_age_s]
        db, worker = "ok", f"stale: {', '.join(stale)}" if stale else "ok"
    healthy = db == worker == "ok"
    body = {"status": "ok" if healthy else "fail", "db": db, "worker": worker, "uptime_s": round(uptime_s, 1)}
    return (200 if healthy else 503), body
