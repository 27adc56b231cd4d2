"""Forecast free spaces half an hour ahead, and score what was forecast before: both are evidence."""

from __future__ import annotations

from minipc_workload.batches import Batch
from minipc_workload.database import Database
from minipc_workload.logs import request_id

# One forecast for each lot and five minutes: the last value plus half of the hour's trend, because a trend fades.
# A new one notifies those who asked for it, at most once for each lot and hour.
FORECAST = """
    WITH history AS (
        SELECT lot_id, max(observed_at) AS last_at, (array_agg(free ORDER BY observed_at DESC))[1] AS last,
               coalesce(regr_slope(free, extract(epoch FROM observed_at)::float8), 0) AS slope
        FROM parking_observations WHERE observed_at > now() - interval '1 hour' GROUP BY lot_id),
    expected AS (
        SELECT lot.id, lot.name, target_at, CASE WHEN last_at IS NOT NULL THEN
                   least(capacity, greatest(0, round(last + 0.5 * slope * extract(epoch FROM target_at - last_at))))
               END AS free
        FROM parking_lots lot LEFT JOIN history ON lot_id = lot.id,
             date_bin('5 min', now() + interval '35 min', 'epoch') AS target_at),
    made AS (
        INSERT INTO forecasts (lot_id, target_at, predicted_free)
        SELECT id, target_at, free FROM expected WHERE free IS NOT NULL
        ON CONFLICT (lot_id, target_at) DO NOTHING RETURNING lot_id),
    notified AS (
        INSERT INTO outbox (subscription_id, dedup_key, request_id, payload)
        SELECT subscription.id, format('parking:%%s:%%s', expected.id, to_char(target_at, 'YYYY-MM-DD"T"HH24')),
               %(request_id)s,
               jsonb_build_object('title', format('%%s: about %%s spaces left at %%s UTC',
                                                  expected.name, free, to_char(target_at, 'HH24:MI')))
        FROM made JOIN expected ON expected.id = made.lot_id,
             push_subscriptions subscription JOIN notification_settings wish USING (user_id)
        WHERE wish.parking_alerts AND free < wish.min_free_spaces
        ON CONFLICT (subscription_id, dedup_key) DO NOTHING)
    SELECT count(free) AS done, count(*) - count(free) AS failed FROM expected"""
# Each due forecast against the observation nearest to its target, at most five minutes away.
SCORE = """
    INSERT INTO backtests (forecast_id, actual_free, error)
    SELECT forecast.id, seen.free, forecast.predicted_free - seen.free
    FROM forecasts forecast
    JOIN LATERAL (SELECT free FROM parking_observations
                  WHERE lot_id = forecast.lot_id
                    AND observed_at BETWEEN forecast.target_at - interval '5 min'
                                        AND forecast.target_at + interval '5 min'
                  ORDER BY abs(extract(epoch FROM observed_at - forecast.target_at)) LIMIT 1) seen ON true
    WHERE forecast.target_at BETWEEN now() - interval '1 day' AND now() - interval '5 min'
    ON CONFLICT (forecast_id) DO NOTHING"""


async def run(db: Database) -> Batch:
    """Forecast every lot, then score the forecasts that are due. A lot without observations counts as failed.

    Raises UnavailableError if the database is down.
    """
    (counts,) = await db.fetch(FORECAST, request_id=request_id())
    await db.fetch(SCORE)
    return Batch(**counts)
