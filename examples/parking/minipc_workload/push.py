"""Deliver the outbox to the push gateway: at least once, with a key by which the gateway recognises a repetition."""

from __future__ import annotations

from structlog.contextvars import bound_contextvars

from minipc_workload import metrics
from minipc_workload.batches import Batch, log
from minipc_workload.database import Database, Row
from minipc_workload.downstream import Downstream
from minipc_workload.resilience import PermanentError, UnavailableError

BATCH_MAX = 100
KEEP_DAYS = 30

# The oldest due row. A claim is a lease: if the worker dies, the row is due again when the lease ends. The lease is
# longer than all attempts of one delivery take (4 × 5 s and 21 s).
CLAIM = """
    UPDATE outbox SET attempts = attempts + 1, next_attempt_at = now() + interval '2 min'
    FROM push_subscriptions subscription
    WHERE subscription.id = outbox.subscription_id AND outbox.id = (
        SELECT id FROM outbox WHERE delivered_at IS NULL AND failed_at IS NULL AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING outbox.id, outbox.request_id, outbox.payload, outbox.created_at < now() - interval '1 day' AS expired,
        subscription.endpoint, subscription.p256dh, subscription.auth"""
DELIVERED = "UPDATE outbox SET delivered_at = now(), last_error = NULL WHERE id = %(id)s"
# Due again in a minute, unless it is given up.
FAILED = """
    UPDATE outbox SET last_error = %(reason)s, next_attempt_at = now() + interval '1 min',
        failed_at = CASE WHEN %(final)s THEN now() END WHERE id = %(id)s"""
PENDING = "SELECT count(*) AS waiting FROM outbox WHERE delivered_at IS NULL AND failed_at IS NULL"
FORGET = "DELETE FROM outbox WHERE delivered_at < now() - make_interval(days => %(days)s)"


async def run(db: Database, gateway: Downstream) -> Batch:
    """Deliver what is due. If the gateway is down the batch ends; the rows wait, for a day at most."""
    batch = Batch()
    while batch.done + batch.failed < BATCH_MAX and (rows := await db.fetch(CLAIM)):
        (row,) = rows
        # The id of the request that caused it, so that one search finds both.
        with bound_contextvars(request_id=row["request_id"]):
            try:
                await gateway.call("POST", "/notifications", _body(row), {"Idempotency-Key": f"outbox-{row['id']}"})
                await db.fetch(DELIVERED, id=row["id"])
                batch += Batch(done=1)
            except (PermanentError, UnavailableError) as error:
                refused = isinstance(error, PermanentError)
                event = "notification refused" if refused else "notification delayed"
                log.warning(event, outbox_id=row["id"], reason=str(error))
                await db.fetch(FAILED, id=row["id"], reason=str(error), final=refused or row["expired"])
                batch += Batch(failed=1)
                if not refused:
                    break
    await db.fetch(FORGET, days=KEEP_DAYS)
    metrics.OUTBOX_PENDING.set((await db.fetch(PENDING))[0]["waiting"])
    return batch


def _body(row: Row) -> Row:
    subscription = {name: row[name] for name in ("endpoint", "p256dh", "auth")}
    return {"subscription": subscription, "notification": row["payload"]}
