"""Outing: where it is pleasant to go now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from minipc_workload.screens import Content, Screen

if TYPE_CHECKING:
    from minipc_workload.database import Connection


async def read(db: Connection) -> Content:
    """Each district with its latest weather and what that means for an outing."""
    cursor = await db.execute(
        """SELECT district.id, district.name, seen.observed_at, seen.temperature_c, seen.rain_mm, seen.air_quality
           FROM districts district
           JOIN LATERAL (SELECT observed_at, temperature_c, rain_mm, air_quality FROM weather_observations
                         WHERE district_id = district.id ORDER BY observed_at DESC LIMIT 1) seen ON true
           ORDER BY district.id"""
    )
    items = [
        row
        | {
            "observed_at": row["observed_at"].isoformat(),
            "advice": advice(row["temperature_c"], row["rain_mm"], row["air_quality"]),
        }
        for row in await cursor.fetchall()
    ]
    return Content(items, complete=True)


def advice(temperature_c: float, rain_mm: float, air_quality: int) -> Literal["good", "fair", "stay in"]:
    """What the weather means for an outing. Air quality is the US EPA's index: above 150 is unhealthy for everyone."""
    if rain_mm > 5 or air_quality > 150 or not -5 <= temperature_c <= 36:
        return "stay in"
    if rain_mm > 0.5 or air_quality > 100 or not 8 <= temperature_c <= 30:
        return "fair"
    return "good"


SCREEN = Screen("outing", read)
