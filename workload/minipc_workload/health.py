"""The verdict for monitors, in less than 200 ms also while the database hangs."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from minipc_workload import WORKERS
from minipc_workload.errors import DatabaseUnavailableError
from minipc_workload.resilience import deadline

log = logging.getLogger(__name__)

# Seconds since the last heartbeat, by worker.
Ages = Mapping[str, float]

ABANDON_S = 5.0


class Probe:
    """Asks the database for the heartbeats, once at a time: whoever asks meanwhile waits for the same answer.

    Args:
        query: one round trip to the database; may hang.
    """

    def __init__(self, query: Callable[[], Awaitable[Ages]]) -> None:
        self._query = query
        self._running: asyncio.Task[Ages | None] | None = None
        self._asked_at = 0.0
        self._failed = True

    @property
    def waiting_s(self) -> float:
        """Seconds that the question under way is waiting; infinite when the last one failed, or none was answered yet.

        Not since the last answer: with several processes behind one address each is asked now and then only.
        """
        if self._failed:
            return math.inf
        return 0.0 if self._running is None or self._running.done() else time.monotonic() - self._asked_at

    async def ask(self, budget_s: float) -> Ages | None:
        """The ages, or None when the database failed or did not answer within so many seconds."""
        if self._running is None or self._running.done():
            self._asked_at = time.monotonic()
            self._running = asyncio.create_task(self._attempt())
        # Left running when it takes too long: a new one for each caller would pile up connections.
        done, _ = await asyncio.wait({self._running}, timeout=budget_s)
        return self._running.result() if done else None

    async def _attempt(self) -> Ages | None:
        try:
            ages = await deadline(self._query(), ABANDON_S)
            self._failed = False
            return ages
        except (DatabaseUnavailableError, TimeoutError) as error:
            self._failed = True  # it did not just take long
            log.warning("database probe failed", extra={"reason": str(error)})
            return None


def verdict(ages: Ages | None, uptime_s: float, max_age_s: float) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of /api/health. A worker that never gave a heartbeat counts as stale."""
    if ages is None:
        db, worker = "down", "unknown"
    else:
        stale = [name for name in WORKERS if ages.get(name, math.inf) > max_age_s]
        db, worker = "ok", f"stale: {', '.join(stale)}" if stale else "ok"
    healthy = db == worker == "ok"
    body = {"status": "ok" if healthy else "fail", "db": db, "worker": worker, "uptime_s": round(uptime_s, 1)}
    return (200 if healthy else 503), body
