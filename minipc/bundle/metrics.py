"""Render a check as metrics for node_exporter's textfile collector."""

from __future__ import annotations

from datetime import datetime

from minipc.bundle.checking import Checked
from minipc_machine.metrics import Gauge, text_of


def metrics(environment: str, checked: Checked | None, moment: datetime) -> str:
    """Return the text of a `.prom` file.

    Args:
        checked: result of the check; None if it failed to run.
        moment: time of the check.
    """
    samples = [
        ("checked_timestamp_seconds", "When the break-glass bundle was last checked.", moment.timestamp()),
        ("check_success", "1 if the check could run.", checked is not None),
    ]
    if checked is not None:
        samples += [
            (
                "created_timestamp_seconds",
                "When the newest break-glass bundle was created.",
                checked.created.timestamp(),
            ),
            ("matches", "1 if it still matches secrets, keys, inventory and pins.", checked.fits),
            ("changed_items", "How many of them changed since it was created.", len(checked.changed)),
        ]
    labels = {"environment": environment}
    gauges = [Gauge(f"minipc_bundle_{name}", text, [(labels, int(value))]) for name, text, value in samples]
    return text_of(gauges)
