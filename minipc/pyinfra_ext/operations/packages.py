"""Debian packages, with one call of apt for a whole run.

A call takes two seconds besides its packages: reading lists, debconf, triggers (docs/reference/benchmarks.md). All
deploys are declared before the first operation runs, so `install_announced` knows the packages of all of them. The
`install` of each component then finds its packages there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import context
from pyinfra.api import StringCommand, operation
from pyinfra.api.operation import OperationMeta
from pyinfra.facts.deb import DebPackages
from pyinfra.operations import apt

from minipc.pyinfra_ext.facts.memory import announce, announced, recall
from minipc.pyinfra_ext.operations.files import Placed

HOLD_STARTS = {"MINIPC_HOLD_STARTS": "1"}
"""`_env` for apt: a package's own service is not started before it is configured (policy-rc.d)."""


def install(name: str, packages: Sequence[str], after: Placed | None = None) -> OperationMeta:
    """Ensure that the packages are installed. No service of theirs starts before it is configured.

    Args:
        packages: names of real packages.
        after: files that must be there first; `install_announced` then leaves these packages out.
    """
    if after is None:
        announce(context.host, DebPackages, packages)
    return packages_installed(name=name, packages=list(packages), _env=HOLD_STARTS)


def install_announced(name: str) -> OperationMeta:
    """Ensure that the packages of every `install` of this run are installed, those declared later included."""
    return announced_packages_installed(name=name, _env=HOLD_STARTS)


@operation()
def packages_installed(packages: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Install the packages that are missing, as `apt.packages` does."""
    if not set(packages) <= set(recall(DebPackages)):
        yield from apt.packages._inner(packages=list(packages))


@operation()
def announced_packages_installed() -> Generator[StringCommand, None, None]:
    """Install what is known when the operation runs: by then all deploys are declared."""
    yield from packages_installed._inner(packages=announced(context.host, DebPackages))
