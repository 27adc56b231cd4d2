"""Parking: free spaces now, and in half an hour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minipc_workload.screens import Content, Screen

if TYPE_CHECKING:
    from minipc_workload.database import Connection


async def read(db: Connection) -> Content:
    """Each lot with its latest observation and next forecast; incomplete when one has no forecast."""
    cursor = await db.execute(
        """SELECT lot.id, lot.name, lot.capacity, seen.free, seen.observed_at, next.predicted_free, next.target_at
           FROM parking_lots lot
           JOIN LATERAL (SELECT free, observed_at FROM parking_observations
                         WHERE lot_id = lot.id ORDER BY observed_at DESC LIMIT 1) seen ON true
           LEFT JOIN LATERAL (SELECT predicted_free, target_at FROM forecasts
                              WHERE lot_id = lot.id AND target_at > now()
                              ORDER BY target_at DESC LIMIT 1) next ON true
           ORDER BY lot.id"""
    )
    rows = await cursor.fetchall()
    items = [
        row
        | {
            "observed_at": row["observed_at"].isoformat(),
            "target_at": row["target_at"].isoformat() if row["target_at"] else None,
        }
        for row in rows
    ]
    return Content(items, complete=all(row["target_at"] for row in rows))


SCREEN = Screen("parking", read)
