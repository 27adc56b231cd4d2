"""Redis: answers of the screens. Losing it costs speed and the fallback for a database outage, nothing else."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from minipc_workload import metrics
from minipc_workload.errors import CircuitOpenError, TransientError
from minipc_workload.resilience import CircuitBreaker, deadline
from minipc_workload.settings import Settings

T = TypeVar("T")

PREFIX = "workload:"
# Kept far longer than an answer counts as current: the rest of the day it is the fallback.
KEEP_S = 24 * 3600
TIMEOUT_S = 0.25


def connect_arguments(settings: Settings) -> dict[str, Any]:
    """Who and where, for both kinds of client."""
    return {
        "host": settings.redis_host,
        "port": settings.redis_port,
        "username": settings.redis_username,
        "password": settings.redis_password,
    }


class Cache:
    """JSON values under `workload:`. A Redis that is down or slow reads as empty."""

    def __init__(self, settings: Settings) -> None:
        self._breaker = CircuitBreaker("redis", rest_s=5.0, on_change=metrics.breaker_changed)
        self._client = redis.asyncio.Redis(
            **connect_arguments(settings),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # Its default is three retries with back-off: longer than a read from the database takes.
            retry=Retry(NoBackoff(), 0),
        )

    async def get(self, key: str) -> dict[str, Any] | None:
        """The value, or None when there is none or Redis can't say."""
        text = await self._ask(lambda: self._client.get(PREFIX + key))
        return json.loads(text) if text else None

    async def put(self, key: str, value: dict[str, Any]) -> None:
        """Stores the value if Redis lets us."""
        await self._ask(lambda: self._client.set(PREFIX + key, json.dumps(value), ex=KEEP_S))

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T | None:
        async def attempt() -> T:
            try:
                return await deadline(command(), 2 * TIMEOUT_S)
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                raise TransientError(f"{type(error).__name__}: {error}") from error

        try:
            return await self._breaker.call(attempt)
        except (TransientError, CircuitOpenError):
            metrics.CACHE_ERRORS.inc()
            return None
