"""JSON log lines on stdout, and the request id that goes with them."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from urllib.parse import quote

REQUEST_ID_HEADER = "X-Request-ID"
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LEVELS = {"WARNING": "WARN"}
# What every record has; whatever else is on a record was given by `extra=`.
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def accept_request_id(offered: str | None) -> str:
    """The caller's id when it is well-formed (anything else could forge log lines), else a new one."""
    return offered if offered and _VALID_REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


@contextmanager
def working_for(identifier: str | None) -> Iterator[None]:
    """Whatever is logged or called inside carries this request id."""
    token = request_id.set(identifier)
    try:
        yield
    finally:
        request_id.reset(token)


class JsonFormatter(logging.Formatter):
    """timestamp, level, service, request_id, message; then whatever `extra=` gave; then the exception."""

    def __init__(self, service: str, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self.service = service
        self.redact = Redactor(secrets)

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": _LEVELS.get(record.levelname, record.levelname),
            "service": self.service,
            "request_id": request_id.get(),
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD and key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self.redact(json.dumps(line, default=str))


class Redactor:
    """Replaces secret values in JSON text, whether plain or quoted for a URL. The last line of defence."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if secret for form in (secret, quote(secret, safe=""))}
        # Longest first: a secret may contain another one.
        self._forms = sorted((json.dumps(form)[1:-1] for form in forms), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for form in self._forms:
            text = text.replace(form, "***")
        return text


def configure(service: str, level: str = "INFO", secrets: Iterable[str] = ()) -> None:
    """Sends all logging of the process, libraries included, to stdout as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(service, secrets))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for chatty in ("httpx", "httpcore", "uvicorn.access", "uvicorn.error", "psycopg.pool", "alembic", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
