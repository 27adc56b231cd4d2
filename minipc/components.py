"""The one list of components. Their order is the order of `deploys/site.py` and of a rebuild.

A component's name is the same word everywhere: `deploys/NAME.py`, `templates/NAME/`,
`tests/verify/test_NAME.py`, `docs/reference/NAME.md`, the `NAME_*` keys of `group_data/all.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from minipc.errors import ConfigError
from minipc.paths import ROOT

DataClass = Literal["must recover", "evidence", "rebuildable", "cache", "none"]


@dataclass(frozen=True)
class Component:
    """One room of the house.

    Attributes:
        name: the word it goes by everywhere.
        summary: what it is for, half a sentence.
        needs: components that must be converged before it.
        data_class: the strongest promise made for data that lives in it.
        artifacts: names of upstream files (see `artifacts.lock`) it can't do without.
    """

    name: str
    summary: str
    needs: tuple[str, ...] = ()
    data_class: DataClass = "none"
    artifacts: tuple[str, ...] = ()

    @property
    def deploy(self) -> str:
        """Path of the deploy file, relative to the repository."""
        return f"deploys/{self.name}.py"

    @property
    def verify(self) -> str:
        """Path of the verification, relative to the repository."""
        return f"tests/verify/test_{self.name}.py"


COMPONENTS: tuple[Component, ...] = (
    Component("host", "Debian itself: packages, time, journal, sysctls, sshd, operator account"),
    Component("firewall", "nftables: what may come in, and from which side", needs=("host",)),
    Component("postgres", "PostgreSQL 17: everything that must not be lost", ("host",), data_class="must recover"),
    Component("redis", "Redis: the cache; nothing in it needs to survive", ("host",), data_class="cache"),
    Component("workload", "the service itself: API, workers, migrations", ("postgres", "redis")),
    Component("edge", "Caddy: the public door", ("host", "firewall")),
    Component("dns", "the public name follows the machine's public address", ("host",)),
    Component("release", "what runs here: commit, versions, when", ("host",)),
)

BY_NAME = {component.name: component for component in COMPONENTS}


def select(names: Iterable[str]) -> list[Component]:
    """The named components in converge order; all of them when no name is given.

    Raises:
        ConfigError: a name is not a component; suggests the nearest one.
    """
    wanted = list(names)
    for name in wanted:
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, n=1)
            suggestion = f"did you mean `{near[0]}`?" if near else "`minipc components` lists them"
            raise ConfigError(f"unknown component `{name}`; known: {', '.join(BY_NAME)}", suggestion)
    return [component for component in COMPONENTS if not wanted or component.name in wanted]


def deploy_files(names: Iterable[str] = ()) -> list[str]:
    """Absolute paths of the deploy files to run: `site.py` when no component is named, else those named and `release`.

    Raises:
        ConfigError: as in `select`.
    """
    wanted = list(names)
    chosen = [component.deploy for component in select([*wanted, "release"])] if wanted else ["deploys/site.py"]
    return [str(ROOT / path) for path in chosen]
