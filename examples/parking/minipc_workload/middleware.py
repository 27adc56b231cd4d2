"""Around each request: its id, a limit for its body, its log line, its metrics, and an answer when a handler fails."""

from __future__ import annotations

import logging
import time

import structlog
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minipc_workload import metrics
from minipc_workload.logs import REQUEST_ID_HEADER, accept_request_id, request_id

log = structlog.stdlib.get_logger(__name__)

BODY_MAX_BYTES = 64 * 1024
# Machines ask these every few seconds: a line is only useful when something is wrong.
QUIET = {"/api/livez", "/api/readyz", "/api/health", "/metrics"}


class RequestMiddleware:
    """Plain ASGI, so that the request id is set in the task that runs the handler."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        structlog.contextvars.bind_contextvars(
            request_id=accept_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        )
        status = received = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id() or ""
            await send(message)

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > BODY_MAX_BYTES:
                # Discard the rest first: a server that closes during an upload looks broken to the ingress (503).
                while message.get("more_body"):
                    message = await receive()
                raise HTTPException(413, f"larger than {BODY_MAX_BYTES} bytes")
            return message

        began = time.perf_counter()
        # A route's expression also matches a newline after the path: /metrics%0A would pass an ingress that
        # blocks /metrics.
        app = self.app if scope["path"].isprintable() else JSONResponse({"detail": "Not Found"}, 404)
        try:
            await app(scope, receive_limited, send_with_id)
        except Exception:
            log.exception("request failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # half an answer is out; only closing the connection can tell the client
            await JSONResponse({"status": "error", "request_id": request_id()}, 500)(scope, receive, send_with_id)
        finally:
            _record(scope, status or 500, time.perf_counter() - began)


def _record(scope: Scope, status: int, seconds: float) -> None:
    # The route's pattern, not the path: a label for each path would be one for each user.
    route = getattr(scope.get("route"), "path", "unmatched")
    labels = ("api", scope["method"] if route != "unmatched" else "any", route, str(status))
    metrics.HTTP_REQUESTS.labels(*labels).inc()
    metrics.HTTP_DURATION.labels(*labels).observe(seconds)
    level = logging.DEBUG if scope["path"] in QUIET and status < 500 else logging.INFO
    milliseconds = round(seconds * 1000, 1)
    log.log(level, "request", method=scope["method"], path=scope["path"], status=status, duration_ms=milliseconds)
