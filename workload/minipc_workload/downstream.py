"""Calls to other services over HTTP: retried, guarded by a breaker, carrying the request id."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from minipc_workload.errors import PermanentError, TransientError
from minipc_workload.logs import REQUEST_ID_HEADER, request_id
from minipc_workload.resilience import CircuitBreaker, retry

TIMEOUT_S = 5.0


class Downstream:
    """One service that we call.

    Args:
        service: its name in logs and metrics.
        url: its base address.
        breaker: shared by all calls to it.
        transport: answers in-process instead of the network; see simulated.py.
        sleep: how retries wait (tests don't).
    """

    def __init__(
        self,
        service: str,
        url: str,
        breaker: CircuitBreaker,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.service = service
        self._breaker = breaker
        self._client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, transport=transport)
        self._sleep = sleep

    async def get(self, path: str) -> Any:
        """The JSON document at the path; see `_call` for errors."""
        response = await self._call("GET", path)
        try:
            return response.json()
        except ValueError as error:
            raise PermanentError(f"{self.service} did not answer with JSON") from error

    async def post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        """Sends a JSON document; see `_call` for errors."""
        await self._call("POST", path, body, headers)

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """One request, tried up to four times.

        Raises:
            TransientError: no answer, 429 or 5xx, also after the retries.
            PermanentError: any other refusal.
            CircuitOpenError: not tried.
        """
        sent = dict(headers or {})
        if current := request_id.get():
            sent[REQUEST_ID_HEADER] = current
        request = self._client.build_request(method, path, json=body, headers=sent)
        return await retry(lambda: self._breaker.call(lambda: self._send(request)), self.service, sleep=self._sleep)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await self._client.send(request)
        except httpx.RequestError as error:
            # Its text is left out: it may hold the address, and the address a key.
            raise TransientError(f"{self.service}: {type(error).__name__}") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise TransientError(f"{self.service} answered {response.status_code}")
        if not response.is_success:
            raise PermanentError(f"{self.service} answered {response.status_code}")
        return response

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()
