"""Looks for a secret value everywhere an exception can carry it."""

from __future__ import annotations

import traceback


def assert_silent(error: BaseException, *values: str) -> None:
    """Fails when a value shows in the error, in anything chained to it, or in the traceback that would be printed."""
    printed = "".join(traceback.format_exception(error))
    for link in _chain(error):
        for value in values:
            for place in (printed, str(link), repr(link), repr(link.args), repr(vars(link)), repr(_slots(link))):
                assert value not in place, f"{type(link).__name__} carries a secret value"


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        link = queue.pop()
        if link is not None and link not in found:
            found.append(link)
            # Also the suppressed ones: `raise … from None` hides the context, it does not drop it.
            queue += [link.__cause__, link.__context__]
    return found


def _slots(error: BaseException) -> list[object]:
    """Attributes that live in C, such as the text that a UnicodeDecodeError was about."""
    return [getattr(error, name, None) for name in ("object", "doc", "text", "filename")]
