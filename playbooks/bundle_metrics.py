"""Monitoring learns of the break-glass bundle: its age, and whether it still matches, as metrics on the machine.

minipc bundle check --push
"""

from __future__ import annotations

import shlex

from minipc.bundle.checking import Checked
from minipc.bundle.contents import now
from minipc.bundle.metrics import metrics
from minipc.core.environment import Environment
from minipc.core.errors import MinipcError
from minipc.remote.inventory import Target, targets
from minipc.remote.queries import on

FILE = "/var/lib/prometheus/node-exporter/minipc_bundle.prom"
_WRITE = f"install -d {shlex.quote(FILE.rpartition('/')[0])} && umask 022 && cat > {FILE}.new && mv {FILE}.new {FILE}"


def push(environment: Environment, checked: Checked | None, to: Target | None = None) -> list[str]:
    """Write the metrics on each mini PC of the inventory, or on one.

    Args:
        checked: what a check found; None when it could not be made, which the metrics say too.

    Returns:
        What became of it, a line each. A machine that can't be reached is no error: the next push tells it.
    """
    text = metrics(environment.name, checked, now())
    told = []
    for target in [to] if to else _adopted(environment):
        try:
            on(target, _WRITE, stdin=text)
        except MinipcError as error:
            told.append(f"{target.alias} was not told: {error.what}")
        else:
            told.append(f"{target.alias} has it as metrics")
    return told


def _adopted(environment: Environment) -> list[Target]:
    return [each for each in targets(environment) if each.role == "mini" and each.data.get("machine_identity")]
