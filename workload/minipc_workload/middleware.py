"""Around each request: its id, its log line, its metrics, and an answer when a handler fails."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minipc_workload import metrics
from minipc_workload.logs import REQUEST_ID_HEADER, accept_request_id, request_id

log = logging.getLogger(__name__)

# Asked every few seconds by machines: only worth a line when something is wrong.
QUIET = {"/api/livez", "/api/readyz", "/api/health", "/metrics"}


class RequestMiddleware:
    """Plain ASGI, so that the request id is set in the task that the handler runs in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id.set(accept_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER)))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id.get() or ""
            await send(message)

        began = time.perf_counter()
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("request failed", extra={"method": scope["method"], "path": scope["path"]})
            if status:
                raise  # half an answer is out; only closing the connection can tell the client
            await JSONResponse({"status": "error", "request_id": request_id.get()}, 500)(scope, receive, send_with_id)
        finally:
            _record(scope, status or 500, time.perf_counter() - began)


def _record(scope: Scope, status: int, seconds: float) -> None:
    # The route's pattern, not the path: a label per path would be one per user.
    route = getattr(scope.get("route"), "path", "unmatched")
    labels = ("api", scope["method"] if route != "unmatched" else "any", route, str(status))
    metrics.HTTP_REQUESTS.labels(*labels).inc()
    metrics.HTTP_DURATION.labels(*labels).observe(seconds)
    log.log(
        logging.DEBUG if scope["path"] in QUIET and status < 500 else logging.INFO,
        "request",
        extra={
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
        },
    )
