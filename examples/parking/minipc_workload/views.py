"""The two screens: how they are read, how old their data is, and what an answer may call itself because of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from minipc_workload import metrics
from minipc_workload.cache import Cache
from minipc_workload.database import Database, Row
from minipc_workload.resilience import UnavailableError
from minipc_workload.settings import Settings

FreshnessClass = Literal["fresh", "aging", "stale"]

# to_json writes times as ISO text, which is what the cache and the answer need.
# Air quality is the US EPA's index: above 150 is unhealthy for everyone.
PARKING = """
    SELECT lot.id, lot.name, lot.capacity, seen.free, to_json(seen.observed_at) AS observed_at,
           next.predicted_free, to_json(next.target_at) AS target_at
    FROM parking_lots lot
    JOIN LATERAL (SELECT free, observed_at FROM parking_observations
                  WHERE lot_id = lot.id ORDER BY observed_at DESC LIMIT 1) seen ON true
    LEFT JOIN LATERAL (SELECT predicted_free, target_at FROM forecasts
                       WHERE lot_id = lot.id AND target_at > now() ORDER BY target_at DESC LIMIT 1) next ON true
    ORDER BY lot.id"""
OUTING = """
    SELECT district.id, district.name, to_json(seen.observed_at) AS observed_at,
           seen.temperature_c, seen.rain_mm, seen.air_quality,
           CASE WHEN rain_mm > 5 OR air_quality > 150 OR temperature_c NOT BETWEEN -5 AND 36 THEN 'stay in'
                WHEN rain_mm > 0.5 OR air_quality > 100 OR temperature_c NOT BETWEEN 8 AND 30 THEN 'fair'
                ELSE 'good' END AS advice
    FROM districts district
    JOIN LATERAL (SELECT observed_at, temperature_c, rain_mm, air_quality FROM weather_observations
                  WHERE district_id = district.id ORDER BY observed_at DESC LIMIT 1) seen ON true
    ORDER BY district.id"""


async def show(name: str, db: Database, cache: Cache, settings: Settings) -> Row | None:
    """Return the answer of a screen: from the cache, from the database, or from an old cache entry during an outage.

    None if there is nothing to show: no data yet, or neither database nor cache has it.
    """
    now = datetime.now(UTC)
    cached = await cache.get(name)
    if cached and (now - datetime.fromisoformat(cached["generated_at"])).total_seconds() <= settings.cache_ttl_s:
        metrics.CACHE_HITS.labels(name).inc()
        return answer(cached, now, settings)
    metrics.CACHE_MISSES.labels(name).inc()
    try:
        items = await db.fetch(PARKING if name == "parking" else OUTING)
    except UnavailableError:
        return answer(cached, now, settings, fallback=True) if cached else None
    if not items:
        return None
    complete = all(item.get("target_at", True) for item in items)
    entry = {"generated_at": now.isoformat(), "items": items, "complete": complete}
    await cache.put(name, entry)
    return answer(entry, now, settings)


def answer(entry: Row, now: datetime, settings: Settings, fallback: bool = False) -> Row:
    """Return what a screen says now.

    Args:
        entry: `generated_at` (when it was read from the database), at least one of `items`, and `complete`: whether
            nothing that belongs on the screen is missing.
        fallback: it comes from the cache because the database cannot be asked.
    """
    times = [datetime.fromisoformat(item["observed_at"]) for item in entry["items"]]
    ages = [max(0.0, (now - time).total_seconds()) for time in times]
    classes = [classify(age, settings) for age in ages]
    return {
        "status": status_of(classes, entry["complete"], fallback),
        "generated_at": entry["generated_at"],
        "observed_at": max(times).isoformat(),
        "freshness": {"age_s": round(min(ages)), "class": classify(min(ages), settings)},
        "items": [
            item | {"freshness": {"age_s": round(age), "class": name}}
            for item, age, name in zip(entry["items"], ages, classes, strict=True)
        ],
    }


def classify(age_s: float, settings: Settings) -> FreshnessClass:
    """Return the freshness class of an age in seconds."""
    if age_s <= settings.fresh_s:
        return "fresh"
    return "aging" if age_s <= settings.stale_s else "stale"


def status_of(classes: Sequence[FreshnessClass], complete: bool, fallback: bool) -> Literal["ok", "degraded", "stale"]:
    """Return `ok` if all is current, `degraded` if something is old or missing, `stale` if nothing is current."""
    if all(name == "stale" for name in classes) or (fallback and "fresh" not in classes):
        return "stale"
    return "degraded" if fallback or not complete or "stale" in classes else "ok"
