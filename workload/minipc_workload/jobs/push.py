"""Delivers the outbox to the push gateway: at least once, each with a key by which the gateway knows a repetition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from minipc_workload.downstream import Downstream
from minipc_workload.errors import CircuitOpenError, PermanentError, TransientError
from minipc_workload.jobs import Batch, log
from minipc_workload.logs import working_for

if TYPE_CHECKING:
    from minipc_workload.database import Connection, Database

BATCH_MAX = 100
KEEP_DAYS = 30

Row = dict[str, Any]


class Outbox(Protocol):
    """Where notifications wait."""

    async def claim(self) -> Row | None:
        """The next one that is due, now reserved; None when there is none."""

    async def delivered(self, row: Row) -> None:
        """It is done."""

    async def failed(self, row: Row, reason: str, final: bool) -> None:
        """It was not delivered; `final`: it never will be."""


async def run(outbox: Outbox, gateway: Downstream) -> Batch:
    """Delivers what is due. A gateway that is down ends the batch: what waits, waits, for a day at most."""
    batch = Batch()
    for _ in range(BATCH_MAX):
        row = await outbox.claim()
        if row is None:
            break
        # The id of the request that caused it, so that one search finds both.
        with working_for(row["request_id"]):
            try:
                await gateway.post("/notifications", _body(row), {"Idempotency-Key": f"outbox-{row['id']}"})
            except PermanentError as error:
                log.warning("notification refused", extra={"outbox_id": row["id"], "reason": str(error)})
                await outbox.failed(row, str(error), final=True)
                batch += Batch(failed=1)
            except (TransientError, CircuitOpenError) as error:
                log.warning("notification delayed", extra={"outbox_id": row["id"], "reason": str(error)})
                await outbox.failed(row, str(error), final=row["expired"])
                return batch + Batch(failed=1)
            else:
                await outbox.delivered(row)
                batch += Batch(done=1)
    return batch


def _body(row: Row) -> Row:
    subscription = {"endpoint": row["endpoint"], "p256dh": row["p256dh"], "auth": row["auth"]}
    return {"subscription": subscription, "notification": row["payload"]}


class PostgresOutbox:
    """The table `outbox`. A claim is a lease: when the worker dies, the row is due again once it has run out."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claim(self) -> Row | None:
        """The oldest due row. The lease is longer than all attempts of one delivery take (4 × 5 s and 21 s)."""

        async def work(db: Connection) -> Row | None:
            cursor = await db.execute(
                """UPDATE outbox SET attempts = attempts + 1, next_attempt_at = now() + interval '2 min'
                   FROM push_subscriptions subscription
                   WHERE subscription.id = outbox.subscription_id AND outbox.id = (
                       SELECT id FROM outbox
                       WHERE delivered_at IS NULL AND failed_at IS NULL AND next_attempt_at <= now()
                       ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
                   RETURNING outbox.id, outbox.request_id, outbox.payload,
                       outbox.created_at < now() - interval '1 day' AS expired,
                       subscription.endpoint, subscription.p256dh, subscription.auth"""
            )
            return await cursor.fetchone()

        return await self._db.run(work)

    async def delivered(self, row: Row) -> None:
        """Marks it."""
        await self._db.run(
            lambda db: db.execute(
                "UPDATE outbox SET delivered_at = now(), last_error = NULL WHERE id = %s", [row["id"]]
            )
        )

    async def failed(self, row: Row, reason: str, final: bool) -> None:
        """Notes the reason; unless final it is due again in a minute."""
        await self._db.run(
            lambda db: db.execute(
                """UPDATE outbox SET last_error = %s, next_attempt_at = now() + interval '1 min',
                       failed_at = CASE WHEN %s THEN now() END WHERE id = %s""",
                [reason, final, row["id"]],
            )
        )

    async def pending(self) -> int:
        """How many wait. Forgets what was delivered long ago."""

        async def work(db: Connection) -> int:
            await db.execute("DELETE FROM outbox WHERE delivered_at < now() - make_interval(days => %s)", [KEEP_DAYS])
            cursor = await db.execute(
                "SELECT count(*) AS waiting FROM outbox WHERE delivered_at IS NULL AND failed_at IS NULL"
            )
            row = await cursor.fetchone()
            return int(row["waiting"]) if row else 0

        return await self._db.run(work)
