"""Collects public-source values: rebuildable data. Two sources; one that is down leaves the other working."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from minipc_workload.downstream import Downstream
from minipc_workload.errors import CircuitOpenError, PermanentError, TransientError
from minipc_workload.jobs import Batch, each, log

if TYPE_CHECKING:
    from minipc_workload.database import Connection, Database

KEEP_DAYS = 30
CLOCK_TOLERANCE = timedelta(minutes=5)

Item = dict[str, Any]


async def run(db: Database, parking: Downstream, weather: Downstream) -> Batch:
    """Fetches both sources and stores what they say.

    Raises:
        DatabaseUnavailableError: nothing can be stored.
    """
    batch = await _collect(parking, "/parking", db, store_lot) + await _collect(weather, "/weather", db, store_weather)
    await db.run(_forget_old)
    return batch


async def _collect(
    source: Downstream, path: str, db: Database, store: Callable[[Connection, Item], Awaitable[None]]
) -> Batch:
    try:
        items = await source.get(path)
        if not isinstance(items, list):
            raise PermanentError(f"{source.service} did not answer with a list")
    except (TransientError, PermanentError, CircuitOpenError) as error:
        log.warning("source failed", extra={"source": source.service, "reason": f"{type(error).__name__}: {error}"})
        return Batch(failed=1)
    return await each(items, lambda item: db.run(lambda connection: store(connection, item)))


async def store_lot(db: Connection, item: Item) -> None:
    """Stores one lot and its free spaces."""
    free, capacity = int(item["free"]), int(item["capacity"])
    if not 0 <= free <= capacity:
        raise ValueError(f"{free} free spaces of {capacity}")
    await db.execute(
        """INSERT INTO parking_lots (id, name, capacity) VALUES (%s, %s, %s)
           ON CONFLICT (id) DO UPDATE SET name = excluded.name, capacity = excluded.capacity""",
        [item["id"], item["name"], capacity],
    )
    await db.execute(
        """INSERT INTO parking_observations (lot_id, observed_at, free) VALUES (%s, %s, %s)
           ON CONFLICT (lot_id, observed_at) DO UPDATE SET free = excluded.free""",
        [item["id"], observed_at(item), free],
    )


async def store_weather(db: Connection, item: Item) -> None:
    """Stores one district and its weather."""
    temperature_c, rain_mm = float(item["temperature_c"]), float(item["rain_mm"])
    if not (math.isfinite(temperature_c) and math.isfinite(rain_mm)):
        raise ValueError(f"temperature {temperature_c}, rain {rain_mm}")
    await db.execute(
        "INSERT INTO districts (id, name) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET name = excluded.name",
        [item["id"], item["name"]],
    )
    await db.execute(
        """INSERT INTO weather_observations (district_id, observed_at, temperature_c, rain_mm, air_quality)
           VALUES (%s, %s, %s, %s, %s)
           ON CONFLICT (district_id, observed_at) DO UPDATE SET temperature_c = excluded.temperature_c,
               rain_mm = excluded.rain_mm, air_quality = excluded.air_quality""",
        [item["id"], observed_at(item), temperature_c, rain_mm, int(item["air_quality"])],
    )


def observed_at(item: Item) -> datetime:
    """When the source saw it.

    Raises:
        ValueError: not a time with a zone, or in the future: it would look fresh for ever.
    """
    moment = datetime.fromisoformat(item["observed_at"])
    if moment.tzinfo is None:
        raise ValueError("observed_at has no time zone")
    if moment > datetime.now(UTC) + CLOCK_TOLERANCE:
        raise ValueError(f"observed_at {moment.isoformat()} is in the future")
    return moment


async def _forget_old(db: Connection) -> None:
    await db.execute(
        "DELETE FROM parking_observations WHERE observed_at < now() - make_interval(days => %s)", [KEEP_DAYS]
    )
    await db.execute(
        "DELETE FROM weather_observations WHERE observed_at < now() - make_interval(days => %s)", [KEEP_DAYS]
    )
