"""Debian packages, all of a run in one call of apt.

A call takes two seconds besides its packages: reading lists, debconf, triggers (docs/reference/benchmarks.md). The
packages of all components are known before the first is installed, so the first call installs them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pyinfra import context
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import apt

from minipc.operations.files import Placed

HOLD_STARTS = {"MINIPC_HOLD_STARTS": "1"}
"""`_env` for `apt.packages`: a package's own service is not started before it is configured (policy-rc.d)."""

_together: dict[str, list[str]] = defaultdict(list)


def install(name: str, packages: Sequence[str], after: Placed | None = None) -> OperationMeta:
    """Has the packages installed. No service of theirs starts before it is configured.

    Args:
        packages: names of real packages.
        after: files that must be there first; these packages then wait for their turn.
    """
    if after:
        return apt.packages(name=name, packages=list(packages), _env=HOLD_STARTS)
    together = _together[context.host.name]
    together += [package for package in packages if package not in together]
    # The list itself, not a copy: it is read when the operation runs, and by then it is complete.
    return apt.packages(name=name, packages=together, _env=HOLD_STARTS)
