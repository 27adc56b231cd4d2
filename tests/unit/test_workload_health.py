"""The verdict for monitors: right, and quick also when the database hangs."""

from __future__ import annotations

import asyncio
import time

import pytest
from minipc_workload import health
from minipc_workload.errors import DatabaseUnavailableError

FRESH = {"ingest": 5.0, "forecast": 5.0, "push": 5.0}


@pytest.mark.parametrize(
    ("ages", "status", "db", "worker"),
    [
        (FRESH, 200, "ok", "ok"),
        (FRESH | {"push": 600.0}, 200, "ok", "ok"),
        (FRESH | {"push": 600.1}, 503, "ok", "stale: push"),
        (FRESH | {"push": 9e9, "ingest": 9e9}, 503, "ok", "stale: ingest, push"),
        ({"ingest": 5.0}, 503, "ok", "stale: forecast, push"),
        (None, 503, "down", "unknown"),
    ],
)
def test_verdict(ages: health.Ages | None, status: int, db: str, worker: str) -> None:
    verdict = "ok" if status == 200 else "fail"
    assert health.verdict(ages, 12.34, 600) == (
        status,
        {"status": verdict, "db": db, "worker": worker, "uptime_s": 12.3},
    )


def test_a_worker_that_is_gone_from_the_code_does_not_count() -> None:
    assert health.verdict(FRESH | {"retired": 9e9}, 0, 600)[0] == 200


class Database:
    """Counts queries; hangs while `hangs`."""

    def __init__(self) -> None:
        self.queries = 0
        self.hangs = True

    async def query(self) -> health.Ages:
        self.queries += 1
        while self.hangs:
            await asyncio.sleep(0.01)
        return FRESH


def test_a_hanging_database_is_down_within_the_budget_and_asked_once() -> None:
    database = Database()

    async def main() -> None:
        probe = health.Probe(database.query)
        began = time.monotonic()
        assert await asyncio.gather(*(probe.ask(0.15) for _ in range(50))) == [None] * 50
        assert await probe.ask(0.15) is None
        assert time.monotonic() - began < 25 * 0.15, "not one after the other"
        assert database.queries == 1
        database.hangs = False
        assert await probe.ask(0.15) == FRESH, "it came back: the question under way is answered"
        assert await probe.ask(0.15) == FRESH
        assert database.queries == 2

    asyncio.run(main())


def test_a_question_that_hangs_for_long_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ABANDON_S", 0.05)
    database = Database()

    async def main() -> None:
        probe = health.Probe(database.query)
        assert await probe.ask(0.15) is None
        assert await probe.ask(0.15) is None
        assert database.queries == 2

    asyncio.run(main())


def test_an_unreachable_database_is_down() -> None:
    async def refuse() -> health.Ages:
        raise DatabaseUnavailableError("connection refused")

    assert asyncio.run(health.Probe(refuse).ask(0.1)) is None


def test_one_slow_answer_is_told_from_silence() -> None:
    """However long ago the answer before was: another process may have been asked since."""
    database = Database()

    async def main() -> None:
        probe = health.Probe(database.query)
        assert probe.waiting_s == float("inf")
        assert await probe.ask(0.02) is None
        assert probe.waiting_s == float("inf"), "it never answered"
        database.hangs = False
        assert await probe.ask(5.0) == FRESH
        assert probe.waiting_s == 0
        await asyncio.sleep(0.2)
        database.hangs = True
        assert await probe.ask(0.02) is None
        assert 0.02 <= probe.waiting_s < 0.2
        await asyncio.sleep(0.2)
        assert probe.waiting_s > 0.2, "still the same question"
        database.hangs = False
        assert await probe.ask(5.0) == FRESH
        assert probe.waiting_s == 0

    asyncio.run(main())


def test_a_failure_is_no_slow_answer() -> None:
    answers: list[health.Ages | Exception] = [FRESH, DatabaseUnavailableError("refused")]

    async def query() -> health.Ages:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def main() -> None:
        probe = health.Probe(query)
        assert await probe.ask(5.0) == FRESH
        assert await probe.ask(5.0) is None
        assert probe.waiting_s == float("inf")

    asyncio.run(main())
