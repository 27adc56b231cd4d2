"""Calls to other services over HTTP: retried, guarded by a breaker, with the request id."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog

from minipc_workload.logs import REQUEST_ID_HEADER, request_id
from minipc_workload.resilience import CircuitBreaker, PermanentError, TransientError, retry

log = structlog.stdlib.get_logger(__name__)
TIMEOUT_S = 5.0

LOTS = {"castle": 420, "harbour": 310, "market": 180, "museum": 95, "station": 640, "stadium": 1200}
DISTRICTS = ("harbour", "hills", "lakeside", "centre")


class Downstream:
    """A service that we call. Without an address it is simulated in this process: the service needs no internet.

    Args:
        service: its name in logs and metrics.
        url: its base address; may contain a key.
    """

    def __init__(self, service: str, url: str | None) -> None:
        self.service = service
        self._breaker = CircuitBreaker(service)
        transport = None if url else httpx.MockTransport(simulated)
        self._client = httpx.AsyncClient(base_url=url or "http://simulated", timeout=TIMEOUT_S, transport=transport)
        self.close = self._client.aclose

    async def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """Send a request, up to four times, and return the JSON document of the answer (None if it is empty).

        Raises:
            TransientError: no answer, 429 or 5xx, also after the retries.
            PermanentError: any other refusal, or an answer that is not JSON.
            CircuitOpenError: not tried.
        """
        sent = {REQUEST_ID_HEADER: request_id() or "", **(headers or {})}
        request = self._client.build_request(method, path, json=body, headers={k: v for k, v in sent.items() if v})
        response = await retry(lambda: self._breaker.call(lambda: self._send(request)), self.service)
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise PermanentError(f"{self.service} did not answer with JSON") from error

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await self._client.send(request)
        except httpx.RequestError as error:
            # Without its text: that may contain the address, and the address a key.
            raise TransientError(f"{self.service}: {type(error).__name__}") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise TransientError(f"{self.service} answered {response.status_code}")
        if not response.is_success:
            raise PermanentError(f"{self.service} answered {response.status_code}")
        return response


def simulated(request: httpx.Request) -> httpx.Response:
    """Answer like the push gateway and the public source. The values depend on nothing but the minute."""
    if request.method == "POST":
        log.info("notification delivered to the log", title=json.loads(request.content)["notification"]["title"])
        return httpx.Response(202)
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    items = []
    for number, name in enumerate(LOTS if request.url.path == "/parking" else DISTRICTS):
        wave = math.sin(2 * math.pi * minute.timestamp() / 86_400 + number)
        values: dict[str, float] = (
            {"capacity": LOTS[name], "free": round(LOTS[name] * (0.5 + 0.45 * wave))}
            if request.url.path == "/parking"
            else {"temperature_c": 14 + 8 * wave, "rain_mm": max(0, 2 * wave), "air_quality": round(60 + 40 * wave)}
        )
        items.append({"id": name, "name": name.title(), "observed_at": minute.isoformat(), **values})
    return httpx.Response(200, json=items)
