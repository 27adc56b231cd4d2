"""Screens answer what they can: from the cache, from the database, or from an old cache entry if need be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from minipc_workload import metrics
from minipc_workload.cache import Cache
from minipc_workload.database import Database
from minipc_workload.errors import DatabaseUnavailableError
from minipc_workload.freshness import Limits, answer
from minipc_workload.screens import Screen


async def show(screen: Screen, db: Database, cache: Cache, limits: Limits, cache_ttl_s: int) -> dict[str, Any] | None:
    """The answer, or None when there is nothing to show: no data yet, or neither database nor cache has it."""
    now = datetime.now(UTC)
    cached = await cache.get(screen.name)
    if cached and (now - datetime.fromisoformat(cached["generated_at"])).total_seconds() <= cache_ttl_s:
        metrics.CACHE_HITS.labels(screen.name).inc()
        return _answer(cached, now, limits, fallback=False)
    metrics.CACHE_MISSES.labels(screen.name).inc()
    try:
        content = await db.run(screen.read)
    except DatabaseUnavailableError:
        return _answer(cached, now, limits, fallback=True) if cached else None
    if not content.items:
        return None
    entry = {"generated_at": now.isoformat(), "items": content.items, "complete": content.complete}
    await cache.put(screen.name, entry)
    return _answer(entry, now, limits, fallback=False)


def _answer(entry: dict[str, Any], now: datetime, limits: Limits, fallback: bool) -> dict[str, Any]:
    generated_at = datetime.fromisoformat(entry["generated_at"])
    return answer(generated_at, entry["items"], entry["complete"], fallback, now, limits)
