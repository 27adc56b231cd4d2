"""Redis: answers of the screens. Losing it costs speed and the fallback for a database outage, nothing else."""

from __future__ import annotations

import json
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from minipc_workload import metrics
from minipc_workload.resilience import CircuitBreaker, TransientError, UnavailableError, deadline
from minipc_workload.settings import Settings, reveal

PREFIX = "parking:"
# Far longer than an answer is current: for the rest of the day it is the fallback.
KEEP_S = 24 * 3600
TIMEOUT_S = 0.25


def connect_arguments(settings: Settings) -> dict[str, Any]:
    """Return address and account, for both kinds of client."""
    return {
        "host": settings.redis_host,
        "port": settings.redis_port,
        "username": settings.redis_username,
        "password": reveal(settings.redis_password),
    }


class Cache:
    """JSON values under `parking:`. A Redis that is down or slow reads as empty."""

    def __init__(self, settings: Settings) -> None:
        self._breaker = CircuitBreaker("redis", rest_s=5.0)
        self._client = redis.asyncio.Redis(
            **connect_arguments(settings),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # The default is three retries with back-off: longer than a read from the database takes.
            retry=Retry(NoBackoff(), 0),
        )
        self.close = self._client.aclose

    async def get(self, key: str) -> dict[str, Any] | None:
        """Return the value, None if there is none or Redis does not answer."""
        text = await self._ask(self._client.get, PREFIX + key)
        return json.loads(text) if text else None

    async def put(self, key: str, value: dict[str, Any]) -> None:
        """Store the value if Redis answers."""
        await self._ask(self._client.set, PREFIX + key, json.dumps(value), KEEP_S)

    async def _ask(self, command: Any, *arguments: Any) -> Any:
        async def attempt() -> Any:
            try:
                return await deadline(command(*arguments), 2 * TIMEOUT_S)
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                raise TransientError(f"{type(error).__name__}: {error}") from error

        try:
            return await self._breaker.call(attempt)
        except UnavailableError:
            metrics.CACHE_ERRORS.inc()
            return None
