"""What users write: settings, push subscriptions, events. Changes leave a line in the audit log, in one transaction."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from minipc_workload.database import Connection
from minipc_workload.logs import request_id

Row = dict[str, Any]

# Columns are named, never `*`: a migration that adds one while we run would change what a prepared statement returns,
# and PostgreSQL refuses that ("cached plan must not change result type").


async def put_settings(db: Connection, user: str, settings: Row) -> Row:
    """Creates or replaces the notification settings of a user."""
    cursor = await db.execute(
        """INSERT INTO notification_settings (user_id, parking_alerts, outing_alerts, min_free_spaces)
           VALUES (%(user)s, %(parking_alerts)s, %(outing_alerts)s, %(min_free_spaces)s)
           ON CONFLICT (user_id) DO UPDATE SET parking_alerts = excluded.parking_alerts,
               outing_alerts = excluded.outing_alerts, min_free_spaces = excluded.min_free_spaces, updated_at = now()
           RETURNING user_id, parking_alerts, outing_alerts, min_free_spaces, updated_at""",
        {"user": user, **settings},
    )
    await _audit(db, user, "settings put")
    return _one(await cursor.fetchone())


async def get_settings(db: Connection, user: str) -> Row | None:
    """The notification settings of a user."""
    cursor = await db.execute(
        """SELECT user_id, parking_alerts, outing_alerts, min_free_spaces, updated_at
           FROM notification_settings WHERE user_id = %s""",
        [user],
    )
    return await cursor.fetchone()


async def add_subscription(db: Connection, subscription: Row) -> Row:
    """Creates a push subscription, or renews its keys; a new one is confirmed by a first notification."""
    cursor = await db.execute(
        """INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth)
           VALUES (%(user)s, %(endpoint)s, %(p256dh)s, %(auth)s)
           ON CONFLICT (user_id, endpoint) DO UPDATE SET p256dh = excluded.p256dh, auth = excluded.auth
           RETURNING id, user_id, endpoint, created_at""",
        subscription,
    )
    row = _one(await cursor.fetchone())
    await db.execute(
        """INSERT INTO outbox (subscription_id, dedup_key, request_id, payload) VALUES (%s, 'welcome', %s, %s)
           ON CONFLICT (subscription_id, dedup_key) DO NOTHING""",
        [row["id"], request_id.get(), Jsonb({"title": "Notifications are on"})],
    )
    await _audit(db, subscription["user"], "subscription put")
    return row


async def list_subscriptions(db: Connection, user: str) -> list[Row]:
    """The push subscriptions of a user, without their keys."""
    cursor = await db.execute(
        "SELECT id, user_id, endpoint, created_at FROM push_subscriptions WHERE user_id = %s ORDER BY id", [user]
    )
    return await cursor.fetchall()


async def add_event(db: Connection, event: Row) -> Row:
    """Stores something that happened in the app."""
    cursor = await db.execute(
        """INSERT INTO app_events (user_id, kind, payload, request_id) VALUES (%s, %s, %s, %s)
           RETURNING id, occurred_at, user_id, kind, payload, request_id""",
        [event["user"], event["kind"], Jsonb(event["payload"]), request_id.get()],
    )
    return _one(await cursor.fetchone())


async def get_event(db: Connection, event_id: int) -> Row | None:
    """One event."""
    cursor = await db.execute(
        "SELECT id, occurred_at, user_id, kind, payload, request_id FROM app_events WHERE id = %s", [event_id]
    )
    return await cursor.fetchone()


async def _audit(db: Connection, user: str, action: str) -> None:
    await db.execute(
        "INSERT INTO audit_log (user_id, action, request_id) VALUES (%s, %s, %s)", [user, action, request_id.get()]
    )


def _one(row: Row | None) -> Row:
    if row is None:
        raise LookupError("INSERT … RETURNING gave no row")
    return row
