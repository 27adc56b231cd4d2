"""Collect the values of the public source: rebuildable data. If one of the two feeds is down, the other goes on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, FiniteFloat, model_validator

from minipc_workload.batches import Batch, each, log
from minipc_workload.database import Database
from minipc_workload.downstream import Downstream
from minipc_workload.resilience import PermanentError, UnavailableError

KEEP_DAYS = 30
CLOCK_TOLERANCE = timedelta(minutes=5)


def not_in_future(moment: datetime) -> datetime:
    """Raise ValueError for a time in the future: the data would look fresh for ever."""
    if moment > datetime.now(UTC) + CLOCK_TOLERANCE:
        raise ValueError("is in the future")
    return moment


class Item(BaseModel):
    """What both feeds have in common."""

    id: str
    name: str
    observed_at: Annotated[AwareDatetime, AfterValidator(not_in_future)]


class Lot(Item):
    """A parking lot and its free spaces."""

    capacity: int = Field(gt=0)
    free: int = Field(ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Lot:
        if self.free > self.capacity:
            raise ValueError(f"{self.free} free spaces of {self.capacity}")
        return self


class Weather(Item):
    """The weather of a district."""

    temperature_c: FiniteFloat
    rain_mm: FiniteFloat = Field(ge=0)
    air_quality: int = Field(ge=0)


STORE_LOT = """
    WITH lot AS (
        INSERT INTO parking_lots (id, name, capacity) VALUES (%(id)s, %(name)s, %(capacity)s)
        ON CONFLICT (id) DO UPDATE SET name = excluded.name, capacity = excluded.capacity)
    INSERT INTO parking_observations (lot_id, observed_at, free) VALUES (%(id)s, %(observed_at)s, %(free)s)
    ON CONFLICT (lot_id, observed_at) DO UPDATE SET free = excluded.free"""
STORE_WEATHER = """
    WITH district AS (
        INSERT INTO districts (id, name) VALUES (%(id)s, %(name)s)
        ON CONFLICT (id) DO UPDATE SET name = excluded.name)
    INSERT INTO weather_observations (district_id, observed_at, temperature_c, rain_mm, air_quality)
    VALUES (%(id)s, %(observed_at)s, %(temperature_c)s, %(rain_mm)s, %(air_quality)s)
    ON CONFLICT (district_id, observed_at) DO UPDATE SET temperature_c = excluded.temperature_c,
        rain_mm = excluded.rain_mm, air_quality = excluded.air_quality"""
FORGET = """
    WITH parking AS (DELETE FROM parking_observations WHERE observed_at < now() - make_interval(days => %(days)s))
    DELETE FROM weather_observations WHERE observed_at < now() - make_interval(days => %(days)s)"""


async def run(db: Database, parking: Downstream, weather: Downstream) -> Batch:
    """Fetch and store both feeds. Raises UnavailableError if nothing can be stored."""
    batch = Batch()
    for source, path, kind, sql in (
        (parking, "/parking", Lot, STORE_LOT),
        (weather, "/weather", Weather, STORE_WEATHER),
    ):
        try:
            items = await source.call("GET", path)
            if not isinstance(items, list):
                raise PermanentError(f"{source.service} did not answer with a list")
        except (UnavailableError, PermanentError) as error:
            log.warning("source failed", source=source.service, reason=f"{type(error).__name__}: {error}")
            batch += Batch(failed=1)
        else:
            batch += await each(items, partial(store, db, kind, sql))
    await db.fetch(FORGET, days=KEEP_DAYS)
    return batch


async def store(db: Database, kind: type[Item], sql: str, item: Any) -> None:
    """Store one item of a feed. Raises ValueError if its values are impossible."""
    await db.fetch(sql, **kind.model_validate(item).model_dump())
