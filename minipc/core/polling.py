"""Wait for a condition: one loop for all callers (docs/decisions/0036-one-polling-loop.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_until(
    check: Callable[[], Result], within_s: float, every_s: float = 0.1, until: Callable[[Result], object] = bool
) -> Result:
    """Call `check` until its result is the wanted one, and return the last result.

    Args:
        check: called at least once.
        within_s: after this many seconds the last result is returned, whatever it is.
        every_s: seconds between two calls.
        until: returns whether a result is the wanted one; by default any true result is.
    """
    give_up_at = time.monotonic() + within_s
    while not until(result := check()) and time.monotonic() < give_up_at:
        time.sleep(every_s)
    return result
