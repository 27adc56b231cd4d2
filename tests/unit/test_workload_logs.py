"""Log lines: one JSON object each, the agreed fields, never a secret."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from minipc_workload.logs import JsonFormatter, accept_request_id, request_id, working_for


def line(level: int = logging.INFO, message: str = "hello", *values: object, **more: object) -> dict[str, object]:
    """A record as it comes out."""
    secrets = ['pa"ss/wörd', "https://key@sentry.example/1"]
    record = logging.makeLogRecord({"levelno": level, "levelname": logging.getLevelName(level), "msg": message})
    record.args = values
    record.exc_info = more.pop("exc_info", None)  # type: ignore[assignment]
    vars(record).update(more)
    text = JsonFormatter("api", secrets).format(record)
    assert "\n" not in text
    parsed: dict[str, object] = json.loads(text)
    return parsed


def test_fields() -> None:
    with working_for("r-1"):
        parsed = line(logging.INFO, "done: %s", "x", job_name="push", message_count=3)
    assert list(parsed) == ["timestamp", "level", "service", "request_id", "message", "job_name", "message_count"]
    assert str(parsed.pop("timestamp")).endswith("+00:00")
    assert parsed == {
        "level": "INFO",
        "service": "api",
        "request_id": "r-1",
        "message": "done: x",
        "job_name": "push",
        "message_count": 3,
    }
    assert request_id.get() is None


@pytest.mark.parametrize(
    ("level", "name"),
    [(logging.DEBUG, "DEBUG"), (logging.WARNING, "WARN"), (logging.ERROR, "ERROR"), (logging.CRITICAL, "CRITICAL")],
)
def test_level_names(level: int, name: str) -> None:
    assert line(level)["level"] == name


def test_extra_fields_cannot_replace_the_agreed_ones() -> None:
    assert line(service="forged", timestamp="forged")["service"] == "api"


def test_an_exception_stays_in_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        parsed = line(logging.ERROR, "failed", exc_info=sys.exc_info())
    assert "ValueError: two\nlines" in str(parsed["exception"])


@pytest.mark.parametrize(
    "text",
    [
        'login with pa"ss/wörd failed',
        "postgresql://u:pa%22ss%2Fw%C3%B6rd@db/x",
        "dsn https://key@sentry.example/1",
    ],
)
def test_secrets_are_redacted_wherever_they_stand(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        parsed = line(logging.ERROR, "%s", text, detail={"nested": text}, exc_info=sys.exc_info())
    everything = json.dumps(parsed)
    assert everything.count("***") >= 3
    for form in ('pa"ss', 'pa\\\\\\"ss', "pa%22ss", "key@sentry", "wörd", "w\\u00f6rd"):
        assert form not in everything


@pytest.mark.parametrize("offered", ["abc", "A-b_c.9", "x" * 128])
def test_a_well_formed_request_id_is_kept(offered: str) -> None:
    assert accept_request_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 129, "a b", 'a"', "a\n", "a\r\nSet-Cookie: x", "ä"])
def test_any_other_request_id_is_replaced(offered: str | None) -> None:
    first, second = accept_request_id(offered), accept_request_id(offered)
    assert len(first) == 32
    assert first != second
