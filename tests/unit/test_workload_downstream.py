"""Calls to other services, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from minipc_workload.downstream import Downstream
from minipc_workload.errors import CircuitOpenError, PermanentError, TransientError
from minipc_workload.logs import working_for
from minipc_workload.resilience import CircuitBreaker, State
from minipc_workload.simulated import push_gateway, source

from tests.workload_receiver import receiver

T = TypeVar("T")


def use(url: str, work: Callable[[Downstream], Awaitable[T]], breaker: CircuitBreaker | None = None) -> T:
    """Runs the work with a client whose retries don't wait."""

    async def no_wait(_: float) -> None:
        return None

    async def main() -> T:
        client = Downstream("gateway", url, breaker or CircuitBreaker("gateway"), sleep=no_wait)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(main())


def test_the_request_id_is_handed_on() -> None:
    async def work(client: Downstream) -> None:
        with working_for("trace-7"):
            await client.post("/notifications", {"a": 1}, {"Idempotency-Key": "outbox-1"})
        await client.get("/weather")

    with receiver() as server:
        use(server.url, work)
    sent, without = server.requests
    assert (sent.method, sent.path, sent.body) == ("POST", "/notifications", b'{"a":1}')
    assert sent.headers["x-request-id"] == "trace-7"
    assert sent.headers["idempotency-key"] == "outbox-1"
    assert "x-request-id" not in without.headers


def test_a_server_that_recovers_is_asked_again() -> None:
    answers = [(503, {}), (429, {}), (500, {}), (200, {"free": 3})]
    with receiver(lambda request: answers.pop(0)) as server:
        assert use(server.url, lambda client: client.get("/parking")) == {"free": 3}
    assert len(server.requests) == 4


def test_a_server_that_stays_down_is_asked_four_times() -> None:
    with receiver(lambda request: (502, {})) as server, pytest.raises(TransientError, match="answered 502"):
        use(server.url, lambda client: client.get("/parking"))
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [301, 400, 404, 410])
def test_a_refusal_is_not_repeated(status: int) -> None:
    with receiver(lambda request: (status, {})) as server, pytest.raises(PermanentError, match=f"answered {status}"):
        use(server.url, lambda client: client.get("/parking"))
    assert len(server.requests) == 1


def test_what_is_not_json_is_a_permanent_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.workload_receiver.json.dumps", lambda document: "<html>")
    with receiver() as server, pytest.raises(PermanentError, match="JSON"):
        use(server.url, lambda client: client.get("/parking"))


def test_nobody_listens_and_the_error_names_the_service_not_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/?key=hidden"
        with pytest.raises(TransientError) as caught:
            use(url, lambda client: client.get("/parking"))
    assert str(caught.value) == "gateway: ConnectError"


def test_after_five_failures_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    breaker = CircuitBreaker("gateway")

    async def work(client: Downstream) -> list[str]:
        outcomes = []
        for _ in range(3):
            try:
                await client.get("/parking")
            except (TransientError, CircuitOpenError) as error:
                outcomes.append(type(error).__name__)
        return outcomes

    with receiver(lambda request: (500, {})) as server:
        assert use(server.url, work, breaker) == ["TransientError", "CircuitOpenError", "CircuitOpenError"]
    assert len(server.requests) == 5
    assert breaker.state is State.OPEN
    assert [record.getMessage() for record in caplog.records].count("circuit open: gateway") == 1


def test_the_simulated_services_answer_like_real_ones() -> None:
    async def main() -> tuple[Any, Any]:
        public = Downstream("source", "http://simulated", CircuitBreaker("source"), source())
        gateway = Downstream("gateway", "http://simulated", CircuitBreaker("gateway"), push_gateway())
        await gateway.post("/notifications", {"notification": {"title": "x"}}, {})
        return await public.get("/parking"), await public.get("/weather")

    lots, districts = asyncio.run(main())
    assert len(lots) == 6
    assert all(0 <= lot["free"] <= lot["capacity"] for lot in lots)
    assert len(districts) == 4
    assert all(district["rain_mm"] >= 0 and district["air_quality"] >= 0 for district in districts)
