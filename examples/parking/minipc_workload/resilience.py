"""Retries after 1, 4 and 16 s; a breaker that opens at five failures in a row; deadlines that hold."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import tenacity

from minipc_workload import metrics

log = structlog.stdlib.get_logger(__name__)
T = TypeVar("T")
Operation = Callable[[], Awaitable[T]]

FAILURES_TO_OPEN = 5


class UnavailableError(Exception):
    """A service that we depend on cannot be used now."""


class TransientError(UnavailableError):
    """It did not answer, or said that it cannot now. Trying again may help; counts towards the breaker."""


class CircuitOpenError(UnavailableError):
    """Not tried: the breaker is open after too many failures in a row."""


class PermanentError(Exception):
    """It answered and refused. Trying the same again does not help."""


async def retry(operation: Operation[T], service: str) -> T:
    """Run the operation up to four times, 1, 4 and 16 s apart, while its failure is transient."""

    def announce(state: tenacity.RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        log.warning(f"retry in {state.upcoming_sleep:g} s: {service}", reason=str(error))

    attempts = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_attempt(4),
        wait=tenacity.wait_exponential(multiplier=1, exp_base=4),
        before_sleep=announce,
        reraise=True,
    )
    return await attempts(operation)


class State(enum.IntEnum):
    """Values of the metric circuit_breaker_state."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class CircuitBreaker:
    """Stop calling a service that failed five times in a row; after `rest_s` seconds, one call tries it again."""

    def __init__(self, service: str, rest_s: float = 30.0) -> None:
        self.service = service
        self._rest_s = rest_s
        self._failures = 0
        self._retry_at = 0.0
        self._set(State.CLOSED)

    async def call(self, operation: Operation[T]) -> T:
        """Run the operation. TransientError counts as a failure, every answer resets the count.

        Raises CircuitOpenError if the operation was not tried.
        """
        if self.state is State.HALF_OPEN or (self.state is State.OPEN and time.monotonic() < self._retry_at):
            raise CircuitOpenError(self.service)
        trial = self.state is State.OPEN
        if trial:
            self._set(State.HALF_OPEN)
        answered = failed = False
        try:
            result = await operation()
            answered = True
            return result
        except TransientError:
            failed = True
            raise
        except PermanentError:
            answered = True
            raise
        finally:
            self._record(trial, answered, failed)

    def _record(self, trial: bool, answered: bool, failed: bool) -> None:
        self._failures = 0 if answered else self._failures + failed
        if trial:
            # Still the same outage when it fails again: no second log line. A cancelled trial is tried again at once.
            self._retry_at = time.monotonic() + self._rest_s if failed else 0.0
            self._set(State.CLOSED if answered else State.OPEN)
            if answered:
                log.info(f"circuit closed: {self.service}")
        elif self.state is State.CLOSED and self._failures >= FAILURES_TO_OPEN:
            self._retry_at = time.monotonic() + self._rest_s
            self._set(State.OPEN)
            log.warning(f"circuit open: {self.service}")

    def _set(self, state: State) -> None:
        self.state = state
        metrics.BREAKER_STATE.labels(self.service).set(state)


async def deadline(operation: Awaitable[T], seconds: float) -> T:
    """Return the result of the operation. Like asyncio.wait_for, but without waiting for the cancellation to end.

    psycopg 3.2 asks the server to cancel and then waits for it: if the server hangs, so would wait_for.

    Raises TimeoutError if there is no result in time.
    """
    task = asyncio.ensure_future(operation)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError(f"no result within {seconds:g} s")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            # Its outcome does not matter any more; without this asyncio would log that nobody looked at it.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
