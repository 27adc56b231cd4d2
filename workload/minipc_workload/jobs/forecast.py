"""Forecasts free spaces half an hour ahead, and scores what was forecast before: both are evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from minipc_workload.jobs import Batch, each
from minipc_workload.logs import request_id

if TYPE_CHECKING:
    from minipc_workload.database import Connection, Database

HORIZON = timedelta(minutes=30)
# One forecast for each lot and five minutes.
SLOT_S = 300
# A trend fades: only half of it is carried into the future.
DAMPING = 0.5


async def run(db: Database) -> Batch:
    """Forecasts every lot, then scores the forecasts whose time has come.

    Raises:
        DatabaseUnavailableError: nothing can be read or stored.
    """
    target_at = slot_after(datetime.now(UTC) + HORIZON)
    lots = await db.run(_lots)
    batch = await each(lots, lambda lot: db.run(lambda connection: _forecast(connection, lot, target_at)))
    await db.run(backtest)
    return batch


def slot_after(moment: datetime) -> datetime:
    """The next full five minutes."""
    return datetime.fromtimestamp((moment.timestamp() // SLOT_S + 1) * SLOT_S, UTC)


def predict(history: Sequence[tuple[datetime, int]], target_at: datetime, capacity: int) -> int:
    """Free spaces at the target: the last value plus the damped trend since the first.

    Args:
        history: observations, oldest first, at least one.
    """
    (first_at, first), (last_at, last) = history[0], history[-1]
    elapsed_s = (last_at - first_at).total_seconds()
    slope = (last - first) / elapsed_s if elapsed_s else 0.0
    expected = last + DAMPING * slope * (target_at - last_at).total_seconds()
    return min(capacity, max(0, round(expected)))


async def _lots(db: Connection) -> list[dict[str, Any]]:
    cursor = await db.execute("SELECT id, name, capacity FROM parking_lots ORDER BY id")
    return await cursor.fetchall()


async def _forecast(db: Connection, lot: dict[str, Any], target_at: datetime) -> None:
    cursor = await db.execute(
        """SELECT observed_at, free FROM parking_observations
           WHERE lot_id = %s AND observed_at > now() - interval '1 hour' ORDER BY observed_at""",
        [lot["id"]],
    )
    history = [(row["observed_at"], row["free"]) for row in await cursor.fetchall()]
    if not history:
        raise ValueError("no observation in the last hour")
    free = predict(history, target_at, lot["capacity"])
    cursor = await db.execute(
        """INSERT INTO forecasts (lot_id, target_at, predicted_free) VALUES (%s, %s, %s)
           ON CONFLICT (lot_id, target_at) DO NOTHING RETURNING id""",
        [lot["id"], target_at, free],
    )
    if await cursor.fetchone():
        await _notify(db, lot, free, target_at)


async def _notify(db: Connection, lot: dict[str, Any], free: int, target_at: datetime) -> None:
    """Puts a notification in the outbox for whoever asked for it, at most one for each lot and hour."""
    await db.execute(
        """INSERT INTO outbox (subscription_id, dedup_key, request_id, payload)
           SELECT subscription.id, %(key)s, %(request_id)s, %(payload)s::jsonb
           FROM push_subscriptions subscription JOIN notification_settings wish USING (user_id)
           WHERE wish.parking_alerts AND %(free)s < wish.min_free_spaces
           ON CONFLICT (subscription_id, dedup_key) DO NOTHING""",
        {
            "key": f"parking:{lot['id']}:{target_at:%Y-%m-%dT%H}",
            "request_id": request_id.get(),
            "payload": json.dumps({"title": f"{lot['name']}: about {free} spaces left at {target_at:%H:%M} UTC"}),
            "free": free,
        },
    )


async def backtest(db: Connection) -> None:
    """Compares each due forecast with the observation nearest to its target, at most five minutes away."""
    await db.execute(
        """INSERT INTO backtests (forecast_id, actual_free, error)
           SELECT forecast.id, seen.free, forecast.predicted_free - seen.free
           FROM forecasts forecast
           JOIN LATERAL (SELECT free FROM parking_observations
                         WHERE lot_id = forecast.lot_id
                           AND observed_at BETWEEN forecast.target_at - interval '5 min'
                                               AND forecast.target_at + interval '5 min'
                         ORDER BY abs(extract(epoch FROM observed_at - forecast.target_at)) LIMIT 1) seen ON true
           WHERE forecast.target_at BETWEEN now() - interval '1 day' AND now() - interval '5 min'
           ON CONFLICT (forecast_id) DO NOTHING"""
    )
