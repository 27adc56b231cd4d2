"""Retries after 1, 4 and 16 s; a breaker that opens at five failures in a row; deadlines that hold."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from minipc_workload.errors import CircuitOpenError, PermanentError, TransientError

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_WAITS_S = (1.0, 4.0, 16.0)
FAILURES_TO_OPEN = 5


async def retry(
    operation: Callable[[], Awaitable[T]],
    service: str,
    waits_s: Sequence[float] = RETRY_WAITS_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Tries again after each wait while the failure is transient.

    Raises:
        TransientError: the last attempt failed too.
        PermanentError, CircuitOpenError: at once, a retry could not help.
    """
    for wait_s in waits_s:
        try:
            return await operation()
        except TransientError as error:
            log.warning("retry in %g s: %s", wait_s, service, extra={"reason": str(error)})
            await sleep(wait_s)
    return await operation()


class State(enum.IntEnum):
    """Values of the metric circuit_breaker_state."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class CircuitBreaker:
    """Stops calling a service that failed five times in a row; after a rest one call tries whether it is back."""

    def __init__(
        self,
        service: str,
        rest_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, State], None] = lambda service, state: None,
    ) -> None:
        self.service = service
        self.state = State.CLOSED
        self._rest_s = rest_s
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._opened_at = 0.0
        on_change(service, self.state)

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Runs the operation unless the breaker is open. TransientError counts; an answer of any kind resets.

        Raises:
            CircuitOpenError: not tried.
        """
        self._admit()
        try:
            result = await operation()
        except TransientError:
            self._failed()
            raise
        except PermanentError:
            self._succeeded()
            raise
        except BaseException:
            # Cancelled, or our own bug: says nothing about the service, but the trial is over.
            if self.state is State.HALF_OPEN:
                self._set(State.OPEN)
            raise
        self._succeeded()
        return result

    def _admit(self) -> None:
        if self.state is State.CLOSED:
            return
        if self.state is State.HALF_OPEN or self._clock() - self._opened_at < self._rest_s:
            raise CircuitOpenError(self.service)
        self._set(State.HALF_OPEN)

    def _failed(self) -> None:
        self._failures += 1
        if self.state is State.HALF_OPEN:
            # Still the same outage: rest again, without a second log line.
            self._opened_at = self._clock()
            self._set(State.OPEN)
        elif self.state is State.CLOSED and self._failures >= FAILURES_TO_OPEN:
            self._opened_at = self._clock()
            self._set(State.OPEN)
            log.warning("circuit open: %s", self.service)

    def _succeeded(self) -> None:
        self._failures = 0
        # A call that began before the breaker opened may end later: only the trial may close it.
        if self.state is State.HALF_OPEN:
            self._set(State.CLOSED)
            log.info("circuit closed: %s", self.service)

    def _set(self, state: State) -> None:
        self.state = state
        self._on_change(self.service, state)


async def deadline(operation: Awaitable[T], seconds: float) -> T:
    """Like asyncio.wait_for, but does not wait for the cancelled operation to end.

    psycopg 3.2 answers a cancellation by asking the server to cancel, and then waits for the server: with a server
    that hangs, wait_for would hang as well.

    Raises:
        TimeoutError: no result within that time.
    """
    task = asyncio.ensure_future(operation)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_forget)
    if not task.done():
        raise TimeoutError(f"no result within {seconds:g} s")
    return task.result()


def _forget(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
