"""Make log calls that have a `Secret` among their arguments show its label, never its value."""

from __future__ import annotations

import logging
from typing import Any

from minipc.secrets.secret import Secret


def show_labels() -> None:
    """Install a log record factory that replaces each `Secret` by its label. May be called again.

    Without it, `%s` of a `Secret` would raise inside the handler and the message would be lost.
    """
    inner = logging.getLogRecordFactory()
    if getattr(inner, "shows_labels", False):
        return

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = inner(*args, **kwargs)
        record.msg = _label(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(_label(argument) for argument in record.args)
        elif record.args:
            record.args = {key: _label(argument) for key, argument in record.args.items()}
        return record

    factory.shows_labels = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(factory)


def _label(value: Any) -> Any:
    return repr(value) if isinstance(value, Secret) else value
