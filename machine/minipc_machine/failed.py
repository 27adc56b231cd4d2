"""Report that a unit failed, in the journal and as a metric: failed UNIT. `OnFailure=` of our units starts it."""

from __future__ import annotations

import re
import time

from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.processes import run
from minipc_machine.program import EXIT_PASS, FailedError


def main(arguments: list[str]) -> int:
    """Report the failure of the unit. Raises FailedError if systemd does not answer."""
    if len(arguments) != 1:
        raise FailedError("usage: failed UNIT")
    (unit,) = arguments
    result = run(["systemctl", "show", "-p", "Result", "--value", "--", unit], timeout_s=30).strip()
    text = f"{unit} failed ({result}): journalctl -u {unit} -n 50"
    run(["logger", "-p", "daemon.err", "-t", "minipc-failed", "--", text], timeout_s=30)
    name = re.sub(r"[^A-Za-z0-9_]", "_", unit.removesuffix(".service"))
    gauge = Gauge(
        "minipc_unit_last_failure_timestamp_seconds",
        "When this unit last failed.",
        [({"unit": unit}, int(time.time()))],
    )
    write_metrics(f"minipc_failed_{name}", [gauge])
    return EXIT_PASS
