"""JSON log lines on stdout, the request id in each of them, and error reports to Sentry."""

from __future__ import annotations

import logging
import re
import sys
import uuid
from typing import Any

import structlog
from structlog.contextvars import get_contextvars
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.types import EventDict, Processor

from minipc_workload.settings import Settings, reveal

REQUEST_ID_HEADER = "X-Request-ID"
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Records go through the standard library, so that Sentry and the libraries' own records need nothing special.
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)


def request_id() -> str | None:
    """Return the id of the request that is being worked on."""
    return get_contextvars().get("request_id")


def accept_request_id(offered: str | None) -> str:
    """Return the caller's id if it is well formed (any other could forge log lines), otherwise a new one."""
    return offered if offered and _VALID_REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


def formatter(service: str) -> logging.Formatter:
    """Return the formatter: timestamp, level, service, request_id, message, then other fields, then the exception."""

    def agreed_fields(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["level"] = {"WARNING": "WARN"}.get(event["_record"].levelname, event["_record"].levelname)
        event.update(service=service, request_id=request_id(), message=event.pop("event"))
        names = ("timestamp", "level", "service", "request_id", "message")
        more = event.keys() - {*names, "_record", "_from_structlog", "color_message", "exception"}
        return {name: event[name] for name in (*names, *sorted(more), *{"exception"} & event.keys())}

    steps: list[Processor] = [
        structlog.processors.TimeStamper(fmt="iso", key="timestamp"),
        structlog.processors.format_exc_info,
        agreed_fields,
        structlog.processors.JSONRenderer(default=str),
    ]
    return ProcessorFormatter(foreign_pre_chain=[ExtraAdder()], processors=steps)


def configure(service: str, level: str = "INFO") -> None:
    """Send all logging of the process, libraries included, to stdout as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter(service))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for chatty in ("httpx", "httpcore", "uvicorn.access", "uvicorn.error", "psycopg.pool", "alembic", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def report_errors(settings: Settings, service: str) -> None:
    """Send each record at ERROR or above to Sentry, tagged service, env and version. Does nothing without a DSN."""
    if settings.sentry_dsn is None:
        return
    import sentry_sdk  # half a second that most installations need not spend

    def before_send(event: Any, _hint: Any) -> Any:
        if identifier := request_id():
            event.setdefault("tags", {})["request_id"] = identifier
        return event

    sentry_sdk.init(
        dsn=reveal(settings.sentry_dsn),
        environment=settings.environment,
        release=settings.version,
        auto_enabling_integrations=False,
        # Local variables and request bodies contain users' data and passwords.
        include_local_variables=False,
        max_request_body_size="never",
        send_default_pii=False,
        before_send=before_send,
        shutdown_timeout=3,
    )
    for tag, value in {"service": service, "env": settings.environment, "version": settings.version}.items():
        sentry_sdk.get_global_scope().set_tag(tag, value)
