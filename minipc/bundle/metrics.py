"""The check as metrics, for node_exporter's textfile collector.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from datetime import datetime

from minipc.bundle.checking import Checked


def metrics(environment: str, checked: Checked | None, moment: datetime) -> str:
    """The text of a `.prom` file.

    Args:
        checked: what the check found; None when it could not be made.
        moment: when it was made or tried.
    """
    samples = [
        ("checked_timestamp_seconds", "When the break-glass bundle was last checked.", moment.timestamp()),
        ("check_success", "1 when the check could be made.", checked is not None),
    ]
    if checked is not None:
        samples += [
            ("created_timestamp_seconds", "When the newest break-glass bundle was made.", checked.created.timestamp()),
            ("matches", "1 when it still matches secrets, keys, inventory and pins.", checked.fits),
            ("changed_items", "How many of them changed since it was made.", len(checked.changed)),
        ]
    return "".join(
        f"# HELP minipc_bundle_{name} {help_text}\n# TYPE minipc_bundle_{name} gauge\n"
        f'minipc_bundle_{name}{{environment="{environment}"}} {int(value)}\n'
        for name, help_text, value in samples
    )
