"""Parts that need neither a database nor a network: the breaker, deadlines, freshness, what comes in."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from minipc_workload import ingest, resilience, views
from minipc_workload.batches import Batch, each
from minipc_workload.logs import accept_request_id
from minipc_workload.resilience import CircuitBreaker, CircuitOpenError, PermanentError, State, TransientError
from minipc_workload.settings import Settings, load
from pydantic import ValidationError

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
DOWN = TransientError("down")
REQUIRED = ("DATABASE_HOST", "DATABASE_NAME", "DATABASE_USER", "DATABASE_PASSWORD", "REDIS_HOST")
SETTINGS: Settings = load(dict.fromkeys(REQUIRED, "x"))


def operation(outcome: Exception | str) -> Callable[[], Awaitable[str]]:
    async def run() -> str:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return run


def outcome(breaker: CircuitBreaker, result: Exception | str) -> str:
    """Call through the breaker and return the result, or the name of the error."""
    try:
        return asyncio.run(breaker.call(operation(result)))
    except (TransientError, PermanentError, CircuitOpenError) as error:
        return type(error).__name__


def test_the_breaker_opens_at_the_fifth_failure_in_a_row_and_one_trial_closes_it(caplog, monkeypatch):
    caplog.set_level("INFO")
    now = 1000.0
    monkeypatch.setattr(resilience.time, "monotonic", lambda: now)
    breaker = CircuitBreaker("gateway")
    assert [outcome(breaker, DOWN) for _ in range(4)] == ["TransientError"] * 4
    assert outcome(breaker, PermanentError("no")) == "PermanentError", "a refusal is an answer: the count starts again"
    assert [outcome(breaker, DOWN) for _ in range(5)] == ["TransientError"] * 5
    assert outcome(breaker, "not tried") == "CircuitOpenError"
    now += 31
    assert outcome(breaker, DOWN) == "TransientError"
    now += 29
    assert outcome(breaker, "not tried") == "CircuitOpenError", "the rest begins at the failed trial"
    now += 2
    assert outcome(breaker, "back") == "back"
    assert breaker.state is State.CLOSED
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines == [("WARNING", "circuit open: gateway"), ("INFO", "circuit closed: gateway")]


def test_only_one_call_is_the_trial_and_a_cancelled_trial_is_over():
    breaker = CircuitBreaker("gateway", rest_s=0)

    async def main() -> None:
        for _ in range(5):
            with pytest.raises(TransientError):
                await breaker.call(operation(DOWN))
        trial = asyncio.create_task(breaker.call(lambda: asyncio.sleep(60)))
        await asyncio.sleep(0)
        with pytest.raises(CircuitOpenError):
            await breaker.call(operation("not tried"))
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        assert await breaker.call(operation("back")) == "back"

    asyncio.run(main())


def test_a_deadline_also_holds_for_what_ignores_its_cancellation():
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(5)  # as psycopg does with a server that hangs

    async def main() -> float:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await resilience.deadline(stubborn(), 0.05)
        elapsed = time.monotonic() - began
        [task.cancel() for task in asyncio.all_tasks() - {asyncio.current_task()}]
        return elapsed

    assert asyncio.run(main()) < 4


@pytest.mark.parametrize(
    ("classes", "complete", "fallback", "status"),
    [
        (["fresh", "aging"], True, False, "ok"),
        (["fresh", "stale"], True, False, "degraded"),
        (["fresh", "fresh"], False, False, "degraded"),
        (["stale", "stale"], True, False, "stale"),
        (["fresh", "aging"], True, True, "degraded"),
        (["aging", "aging"], True, True, "stale"),
    ],
)
def test_the_status_of_a_screen(classes: list[views.FreshnessClass], complete: bool, fallback: bool, status: str):
    assert views.status_of(classes, complete, fallback) == status


def test_an_answer_states_its_age_now():
    times = [NOW - timedelta(seconds=30), NOW + timedelta(seconds=40)]
    entry: dict[str, Any] = {"generated_at": NOW.isoformat(), "complete": True}
    entry["items"] = [{"observed_at": each.isoformat()} for each in times]
    assert views.answer(entry, NOW, SETTINGS)["freshness"] == {"age_s": 0, "class": "fresh"}, "never a negative age"
    body = views.answer(entry, NOW + timedelta(seconds=600), SETTINGS, fallback=True)
    assert (body["status"], body["observed_at"]) == ("stale", times[1].isoformat())
    assert [item["freshness"]["class"] for item in body["items"]] == ["stale", "aging"]


def test_a_batch_goes_on_after_a_bad_item_and_ends_when_the_service_is_gone():
    async def handle(item: Any) -> None:
        if isinstance(item, Exception):
            raise item

    batch = asyncio.run(each([1, KeyError("free"), 2], handle))
    assert (batch, batch.status) == (Batch(done=2, failed=1), "degraded")
    with pytest.raises(CircuitOpenError):
        asyncio.run(each([CircuitOpenError("postgres"), 1], handle))
    assert (Batch().status, Batch(failed=1).status) == ("ok", "failed")


LOT = {"id": "a", "name": "A", "capacity": 10, "free": 4, "observed_at": "2020-01-01T12:00:00+00:00"}
WEATHER = LOT | {"temperature_c": 20, "rain_mm": 0, "air_quality": 40}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (ingest.Lot, {"free": 11}),
        (ingest.Lot, {"free": -1}),
        (ingest.Lot, {"observed_at": "2020-01-01T12:00:00"}),
        (ingest.Lot, {"observed_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}),
        (ingest.Weather, {"temperature_c": float("nan")}),
        (ingest.Weather, {"rain_mm": float("inf")}),
    ],
)
def test_impossible_values_are_refused(kind: type[ingest.Item], change: dict[str, Any]):
    assert kind.model_validate(WEATHER).id == "a"
    with pytest.raises(ValidationError):
        kind.model_validate(WEATHER | change)


@pytest.mark.parametrize("offered", [None, "", "x" * 129, "a b", 'a"', "a\n", "a\r\nSet-Cookie: x", "ä"])
def test_a_malformed_request_id_is_replaced(offered: str | None):
    assert re.fullmatch("[0-9a-f]{32}", accept_request_id(offered))
    assert accept_request_id("A-b_c.9") == "A-b_c.9"


def test_no_statement_returns_whatever_columns_there_are():
    """A new column changes what a prepared `*` returns: PostgreSQL refuses it, and users would see a 500."""
    for path in Path(ingest.__file__).parent.rglob("*.py"):
        assert not re.search(r"(SELECT|RETURNING)\s+(\w+\.)?\*", path.read_text()), path
