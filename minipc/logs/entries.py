"""One line of a log, from any source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, order=True)
class Entry:
    """A log line.

    Attributes:
        at_ns: time of the line, nanoseconds since the epoch.
        service, level: the same values as Loki's labels; empty if unknown.
    """

    at_ns: int
    service: str
    level: str
    text: str

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.at_ns / 1e9, UTC).isoformat(timespec="milliseconds")
        return f"{moment.removesuffix('+00:00')}Z {self.level or '-':5} {self.service or '-':12} {readable(self.text)}"


def readable(text: str) -> str:
    """Return the message of a JSON line with its other fields, or any other text; on one line, printable."""
    try:
        fields: dict[str, Any] = json.loads(text)
        message = fields.pop("message", None) or fields.pop("msg")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return _printable(text)
    request = fields.get("request")
    if isinstance(request, dict):  # Caddy's access log
        duration = fields.get("duration")
        parts = [str(part) for part in (fields.get("status"), request.get("method"), request.get("uri"))]
        return _printable(" ".join([*parts, f"{duration:.3f} s"] if isinstance(duration, float) else parts))
    known = ("timestamp", "level", "service", "ts", "logger")
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if key not in known and value is not None)
    return _printable(f"{message}  {rest}".rstrip())


def _printable(text: str) -> str:
    """Replace characters that could control the terminal."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text.replace("\n", " ⏎ "))
