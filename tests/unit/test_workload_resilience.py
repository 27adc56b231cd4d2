"""Retries, breaker and deadlines, on a clock that only moves when told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import pytest
from minipc_workload.errors import CircuitOpenError, PermanentError, TransientError
from minipc_workload.resilience import CircuitBreaker, State, deadline, retry


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def failing(*outcomes: Exception | str) -> Callable[[], Awaitable[str]]:
    """An operation with these outcomes, one for each call."""
    left = list(outcomes)

    async def operation() -> str:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return operation


def retried(*outcomes: Exception | str) -> tuple[str | type[Exception], list[float]]:
    """The result, and how long it slept."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def main() -> str:
        return await retry(failing(*outcomes), "source", sleep=sleep)

    try:
        return asyncio.run(main()), slept
    except (TransientError, PermanentError, CircuitOpenError) as error:
        return type(error), slept


DOWN = TransientError("down")


@pytest.mark.parametrize(
    ("outcomes", "result", "slept"),
    [
        (["fine"], "fine", []),
        ([DOWN, "fine"], "fine", [1]),
        ([DOWN, DOWN, DOWN, "fine"], "fine", [1, 4, 16]),
        ([DOWN, DOWN, DOWN, DOWN, "too late"], TransientError, [1, 4, 16]),
        ([PermanentError("no"), "never asked"], PermanentError, []),
        ([DOWN, CircuitOpenError("source"), "never asked"], CircuitOpenError, [1]),
    ],
)
def test_retry(outcomes: list[Exception | str], result: object, slept: list[float]) -> None:
    assert retried(*outcomes) == (result, slept)


class Calls:
    """A breaker, and what came of the calls through it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.states: list[State] = []
        self.breaker = CircuitBreaker("gateway", 30.0, self.clock, lambda service, state: self.states.append(state))

    def call(self, outcome: Exception | str) -> str:
        async def main() -> str:
            try:
                return await self.breaker.call(failing(outcome))
            except (TransientError, PermanentError, CircuitOpenError) as error:
                return type(error).__name__

        return asyncio.run(main())


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_breaker_opens_at_the_fifth_failure_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()
    assert [calls.call(DOWN) for _ in range(4)] == ["TransientError"] * 4
    assert calls.call("fine") == "fine", "four are not enough, and a success starts the count again"
    assert [calls.call(DOWN) for _ in range(5)] == ["TransientError"] * 5
    assert calls.call("never asked") == "CircuitOpenError"
    assert calls.states == [State.CLOSED, State.OPEN]
    assert messages(caplog) == [(logging.WARNING, "circuit open: gateway")]


def test_breaker_tries_once_after_its_rest_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    calls = Calls()
    for _ in range(5):
        calls.call(DOWN)
    calls.clock.now += 29.9
    assert calls.call("never asked") == "CircuitOpenError"
    calls.clock.now += 0.2
    assert calls.call("back") == "back"
    assert calls.call("still") == "still"
    assert calls.states == [State.CLOSED, State.OPEN, State.HALF_OPEN, State.CLOSED]
    assert messages(caplog) == [(logging.WARNING, "circuit open: gateway"), (logging.INFO, "circuit closed: gateway")]


def test_a_failed_trial_rests_again_without_a_second_line(caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()
    for _ in range(5):
        calls.call(DOWN)
    calls.clock.now += 31
    assert calls.call(DOWN) == "TransientError"
    calls.clock.now += 29
    assert calls.call("never asked") == "CircuitOpenError", "the rest begins at the failed trial"
    calls.clock.now += 2
    assert calls.call("back") == "back"
    assert [text for _, text in messages(caplog)].count("circuit open: gateway") == 1


def test_a_refusal_is_an_answer() -> None:
    calls = Calls()
    for _ in range(4):
        calls.call(DOWN)
    assert calls.call(PermanentError("no")) == "PermanentError"
    assert calls.call(DOWN) == "TransientError"
    assert calls.breaker.state is State.CLOSED


def test_only_one_call_is_the_trial_and_a_cancelled_trial_is_over() -> None:
    calls = Calls()
    for _ in range(5):
        calls.call(DOWN)
    calls.clock.now += 31

    async def main() -> None:
        trial = asyncio.create_task(calls.breaker.call(lambda: asyncio.sleep(60)))
        await asyncio.sleep(0)
        assert calls.breaker.state is State.HALF_OPEN
        with pytest.raises(CircuitOpenError):
            await calls.breaker.call(failing("never asked"))
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        assert await calls.breaker.call(failing("back")) == "back"

    asyncio.run(main())
    assert calls.breaker.state is State.CLOSED


def test_deadline_holds_also_for_what_ignores_its_cancellation() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)  # as psycopg does with a server that hangs
        return "late"

    async def main() -> float:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await deadline(stubborn(), 0.05)
        return time.monotonic() - began

    assert asyncio.run(main()) < 0.3


def test_deadline_passes_on_results_and_errors() -> None:
    assert asyncio.run(deadline(failing("fine")(), 1)) == "fine"
    with pytest.raises(TransientError):
        asyncio.run(deadline(failing(DOWN)(), 1))


def test_deadline_cancels_the_operation_when_its_caller_is_cancelled() -> None:
    ended: list[str] = []

    async def operation() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def main() -> None:
        caller = asyncio.create_task(deadline(operation(), 30))
        await asyncio.sleep(0.01)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await asyncio.sleep(0)

    asyncio.run(main())
    assert ended == ["cancelled"]
