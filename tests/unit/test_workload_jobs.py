"""Batches that finish degraded, the outbox, forecasts, and what ingest refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from minipc_workload.downstream import Downstream
from minipc_workload.errors import CircuitOpenError, DatabaseUnavailableError
from minipc_workload.jobs import Batch, each, forecast, ingest, push
from minipc_workload.resilience import CircuitBreaker
from minipc_workload.screens.outing import advice
from minipc_workload.simulated import source_at

from tests.workload_receiver import Received, receiver

# --- batches


@pytest.mark.parametrize(
    ("batch", "status"),
    [(Batch(), "ok"), (Batch(3, 0), "ok"), (Batch(3, 1), "degraded"), (Batch(0, 1), "failed")],
)
def test_status_of_a_batch(batch: Batch, status: str) -> None:
    assert batch.status == status


def test_one_bad_item_does_not_end_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    handled = []

    async def handle(item: dict[str, Any]) -> None:
        handled.append(item["id"])
        if item["id"] == "b":
            raise KeyError("free")

    batch = asyncio.run(each([{"id": "a"}, {"id": "b"}, {}, {"id": "c"}], handle))
    assert handled == ["a", "b", "c"]
    assert batch == Batch(done=2, failed=2)
    assert batch.status == "degraded"
    assert [record.__dict__["item"] for record in caplog.records] == ["b", "None"]


@pytest.mark.parametrize("error", [DatabaseUnavailableError("down"), CircuitOpenError("source")])
def test_what_every_item_needs_ends_the_batch(error: Exception) -> None:
    handled = []

    async def handle(item: int) -> None:
        handled.append(item)
        raise error

    with pytest.raises(type(error)):
        asyncio.run(each([1, 2, 3], handle))
    assert handled == [1]


# --- the outbox


class MemoryOutbox:
    def __init__(self, *endpoints: str, expired: bool = False) -> None:
        self.waiting = [
            {
                "id": number,
                "request_id": f"r{number}",
                "payload": {"title": "hello"},
                "expired": expired,
                "endpoint": endpoint,
                "p256dh": "p",
                "auth": "a",
            }
            for number, endpoint in enumerate(endpoints)
        ]
        self.outcome: dict[int, tuple[str, ...]] = {}

    async def claim(self) -> dict[str, Any] | None:
        return self.waiting.pop(0) if self.waiting else None

    async def delivered(self, row: dict[str, Any]) -> None:
        self.outcome[row["id"]] = ("delivered",)

    async def failed(self, row: dict[str, Any], reason: str, final: bool) -> None:
        self.outcome[row["id"]] = ("given up" if final else "waits", reason)


def deliver(outbox: MemoryOutbox, respond: Callable[[Received], tuple[int, Any]]) -> tuple[Batch, list[Received]]:
    async def no_wait(_: float) -> None:
        return None

    async def main(url: str) -> Batch:
        gateway = Downstream("push-gateway", url, CircuitBreaker("push-gateway"), sleep=no_wait)
        try:
            return await push.run(outbox, gateway)
        finally:
            await gateway.close()

    with receiver(respond) as server:
        return asyncio.run(main(server.url)), server.requests


def test_every_notification_goes_out_with_its_own_request_id() -> None:
    outbox = MemoryOutbox("e0", "e1")
    batch, requests = deliver(outbox, lambda request: (201, {}))
    assert batch == Batch(done=2)
    assert outbox.outcome == {0: ("delivered",), 1: ("delivered",)}
    assert [request.headers["x-request-id"] for request in requests] == ["r0", "r1"]
    assert [request.headers["idempotency-key"] for request in requests] == ["outbox-0", "outbox-1"]


def test_a_refused_notification_is_given_up_and_the_next_goes_out() -> None:
    outbox = MemoryOutbox("gone", "e1")
    batch, _ = deliver(outbox, lambda request: (410 if b"gone" in request.body else 201, {}))
    assert batch.status == "degraded"
    assert outbox.outcome == {0: ("given up", "push-gateway answered 410"), 1: ("delivered",)}


def test_a_gateway_that_is_down_leaves_everything_waiting() -> None:
    outbox = MemoryOutbox("e0", "e1", "e2")
    batch, requests = deliver(outbox, lambda request: (503, {}))
    assert batch.status == "failed"
    assert outbox.outcome == {0: ("waits", "push-gateway answered 503")}
    assert len(outbox.waiting) == 2, "not claimed: nothing was tried for them"
    assert len(requests) == 4


def test_what_waited_for_more_than_a_day_is_given_up() -> None:
    outbox = MemoryOutbox("e0", expired=True)
    deliver(outbox, lambda request: (503, {}))
    assert outbox.outcome[0][0] == "given up"


# --- forecasts

START = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)


def history(*free: int) -> list[tuple[datetime, int]]:
    return [(START + timedelta(minutes=10 * number), value) for number, value in enumerate(free)]


@pytest.mark.parametrize(
    ("free", "expected"),
    [([40], 40), ([40, 40, 40], 40), ([40, 50, 60], 75), ([60, 50, 40], 25), ([20, 10, 0], 0), ([80, 90, 100], 100)],
)
def test_a_prediction_carries_half_the_trend_and_stays_possible(free: list[int], expected: int) -> None:
    points = history(*free)
    assert forecast.predict(points, points[-1][0] + timedelta(minutes=30), capacity=100) == expected


def test_two_observations_at_once_are_no_trend() -> None:
    assert forecast.predict([(START, 10), (START, 20)], START + timedelta(minutes=30), 100) == 20


def test_slots_are_full_five_minutes_ahead() -> None:
    assert forecast.slot_after(START) == START + timedelta(minutes=5)
    assert forecast.slot_after(START + timedelta(minutes=4, seconds=59)) == START + timedelta(minutes=5)


# --- what comes in


def test_observed_at_needs_a_zone_and_not_the_future() -> None:
    now = datetime.now(UTC)
    assert ingest.observed_at({"observed_at": now.isoformat()}) == now
    with pytest.raises(ValueError, match="zone"):
        ingest.observed_at({"observed_at": "2030-01-01T12:00:00"})
    with pytest.raises(ValueError, match="future"):
        ingest.observed_at({"observed_at": (now + timedelta(minutes=6)).isoformat()})


class Statements:
    """Takes statements like a connection."""

    def __init__(self) -> None:
        self.executed: list[list[Any]] = []

    async def execute(self, sql: str, values: list[Any]) -> None:
        self.executed.append(values)


LOT = {"id": "a", "name": "A", "capacity": 10, "free": 4, "observed_at": START.isoformat()}
WEATHER = {
    "id": "hills",
    "name": "Hills",
    "temperature_c": 20,
    "rain_mm": 0,
    "air_quality": 40,
    "observed_at": START.isoformat(),
}
PAST = {"observed_at": "2020-01-01T12:00:00+00:00"}


@pytest.mark.parametrize(
    ("store", "item"),
    [
        (ingest.store_lot, LOT | PAST | {"free": 11}),
        (ingest.store_lot, LOT | PAST | {"free": -1}),
        (ingest.store_lot, LOT | PAST | {"free": "many"}),
        (ingest.store_weather, WEATHER | PAST | {"temperature_c": float("nan")}),
        (ingest.store_weather, WEATHER | PAST | {"rain_mm": float("inf")}),
    ],
)
def test_impossible_values_are_refused_before_anything_is_stored(store: Any, item: dict[str, Any]) -> None:
    statements = Statements()
    with pytest.raises(ValueError, match=r"free|temperature|many"):
        asyncio.run(store(statements, item))
    assert statements.executed == []


def test_possible_values_are_stored() -> None:
    statements = Statements()
    asyncio.run(ingest.store_lot(statements, LOT | PAST))  # type: ignore[arg-type]
    asyncio.run(ingest.store_weather(statements, WEATHER | PAST))  # type: ignore[arg-type]
    assert statements.executed[1] == ["a", datetime(2020, 1, 1, 12, tzinfo=UTC), 4]
    assert len(statements.executed) == 4


def test_the_simulated_source_is_a_function_of_the_minute() -> None:
    assert source_at(START, "/parking") == source_at(START + timedelta(seconds=59), "/parking")
    assert source_at(START, "/weather") != source_at(START + timedelta(hours=1), "/weather")
    with pytest.raises(KeyError):
        source_at(START, "/other")


@pytest.mark.parametrize(
    ("temperature_c", "rain_mm", "air_quality", "expected"),
    [(20, 0, 50, "good"), (20, 1, 50, "fair"), (5, 0, 50, "fair"), (20, 0, 120, "fair"), (20, 6, 50, "stay in"),
     (20, 0, 151, "stay in"), (40, 0, 50, "stay in")],
)  # fmt: skip
def test_advice(temperature_c: float, rain_mm: float, air_quality: int, expected: str) -> None:
    assert advice(temperature_c, rain_mm, air_quality) == expected
