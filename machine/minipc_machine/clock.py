"""Say whether the clock can be trusted. Nothing is deleted by its age with a clock that may be wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from minipc_machine.processes import run
from minipc_machine.program import FailedError

# systemd creates it. A container has the clock of its host.
CONTAINER = Path("/run/systemd/container")
# So long after the boot, chrony has reached its servers or will not soon. Persistent timers start right at the boot.
SETTLED_S = 180
POLL_S = 2
# Two intervals of full backups. Something is backed up each day, so nothing for this long is an outage or a jump.
GAP_S = 14 * 86400
TOLERANCE_S = 3600


def doubt(times: Iterable[float], now: float) -> str:
    """Return why nothing may be deleted by its age; empty if the clock can be trusted.

    A jump is visible in what was stored before and after it. It counts for another `GAP_S`, so that the first backup
    after a jump does not hide it.

    Args:
        times: when each backup or copy was taken, epoch seconds.
        now: epoch seconds.
    """
    if not _synchronised_soon():
        return "the clock is not synchronised with a time server"
    moments = sorted([*times, now])
    if moments[-1] > now + TOLERANCE_S:
        return f"something was stored at {_date(moments[-1])}, which is in the future"
    for before, after in pairwise(moments):
        if after - before > GAP_S and after > now - GAP_S:
            days = (after - before) / 86400
            return (
                f"nothing was stored between {_date(before)} and {_date(after)}, {days:.0f} days: has the clock jumped?"
            )
    return ""


def _synchronised_soon() -> bool:
    while not synchronised():
        # It counts from the boot.
        if time.monotonic() > SETTLED_S:
            return False
        time.sleep(POLL_S)
    return True


def synchronised() -> bool:
    """Return whether the kernel's clock is synchronised; False if that is unknown."""
    if CONTAINER.exists():
        return True
    try:
        # Not adjtimex(2): a unit with ProtectClock= may not call it.
        return run(["timedatectl", "show", "--property=NTPSynchronized", "--value"], 15).strip() == "yes"
    except FailedError:
        return False


def _date(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
