"""The one list of components. Their order is the order of `deploys/site.py` and of a rebuild.

A component's name is the same word everywhere: `deploys/NAME.py`, `templates/NAME/` where it has files,
`tests/verify/test_NAME.py`, `docs/reference/NAME.md`, the `NAME_*` keys of `group_data/all.py` where it has settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from minipc.errors import ConfigError
from minipc.paths import ROOT

Role = Literal["mini", "offsite", "agent"]
EVERYWHERE: tuple[Role, ...] = ("mini", "offsite", "agent")
# The inventory's lists that give their machines a role; without one a machine is a mini PC.
LISTS: dict[str, Role] = {"offsite": "offsite", "k3s_agents": "agent"}
# Of a component as a whole; what is promised for single tables of the service is in `backups_data_classes`.
DataClass = Literal["must recover", "cache", "none"]


@dataclass(frozen=True)
class Component:
    """One room of the house.

    Attributes:
        name: the word it goes by everywhere.
        summary: what it is for, half a sentence.
        needs: components that must be converged before it.
        data_class: the strongest promise made for data that lives in it.
        roles: the machines it belongs on: the mini PC, the off-site machine, further machines of its cluster.
        backup_paths: what of it goes into the backup of configuration and state; absolute paths on the mini PC.
        trace: a path that its converge leaves, by which another component knows that it is there; empty: no telling.
    """

    name: str
    summary: str
    _: KW_ONLY
    needs: tuple[str, ...] = ()
    data_class: DataClass = "none"
    roles: tuple[Role, ...] = ("mini",)
    backup_paths: tuple[str, ...] = ()
    trace: str = ""

    @property
    def deploy(self) -> str:
        """Path of the deploy file, relative to the repository."""
        return f"deploys/{self.name}.py"

    @property
    def verify(self) -> str:
        """Path of the verification, relative to the repository."""
        return f"tests/verify/test_{self.name}.py"


COMPONENTS: tuple[Component, ...] = (
    Component(
        "host",
        "Debian itself: packages, time, journal, sysctls, sshd, operator account",
        roles=EVERYWHERE,
        backup_paths=("/etc/minipc",),
        trace="/usr/local/lib/minipc/revert",
    ),
    Component("vpn", "WireGuard: the operator's way in", needs=("host",), trace="/etc/minipc/vpn/wg0.conf"),
    Component(
        "firewall",
        "nftables: what may come in, and from which side",
        needs=("host",),
        roles=EVERYWHERE,
        trace="/etc/minipc/firewall.nft",
    ),
    Component("offsite", "the backups' home on another machine", needs=("host", "firewall"), roles=("offsite",)),
    Component(
        "watcher",
        "watches the service from outside, and tells by channels of its own",
        needs=("host", "firewall"),
        roles=("offsite",),
    ),
    Component(
        "repositories",
        "where backups are and how to read them: pgBackRest, restic",
        needs=("host",),
        trace="/usr/local/lib/minipc/restore",
    ),
    Component(
        "postgres",
        "PostgreSQL 17: everything that must not be lost",
        needs=("repositories",),
        data_class="must recover",
        trace="/var/lib/postgresql/17/main/PG_VERSION",
    ),
    Component(
        "backups",
        "when backups are taken, and the drill that proves them",
        needs=("repositories", "postgres"),
        backup_paths=("/var/lib/minipc/drills",),
    ),
    Component(
        "redis",
        "Redis: the cache; nothing in it needs to survive",
        needs=("host",),
        data_class="cache",
        trace="/etc/redis/users.acl",
    ),
    Component(
        "images",
        "container images as files: a rebuild needs no registry",
        needs=("host",),
        roles=("mini", "agent"),
    ),
    Component(
        "k3s",
        "K3s: runs the service and ArgoCD, nothing that has data",
        needs=("firewall", "postgres", "redis"),
        backup_paths=("/etc/rancher",),
    ),
    Component(
        "k3s_agent",
        "K3s on a further machine: more room for pods",
        needs=("host", "firewall"),
        roles=("agent",),
    ),
    Component("workload", "the service itself: API, workers, migrations", needs=("postgres", "redis")),
    Component("argocd", "ArgoCD: the cluster becomes what the deploy repository says", needs=("host",)),
    Component(
        "edge",
        "Caddy: the public door",
        needs=("host", "firewall"),
        backup_paths=("/var/lib/caddy/.local/share/caddy",),
    ),
    Component("dns", "the public name follows the machine's public address", needs=("host",)),
    Component("alertmanager", "Alertmanager: who hears of an alert", needs=("host",)),
    Component(
        "prometheus",
        "Prometheus and exporters: what is measured, kept, and turned into alerts",
        needs=("postgres", "redis"),
    ),
    Component("loki", "Loki: logs, searchable", needs=("host",)),
    Component("syslog_ng", "syslog-ng: logs of everything go to Loki", needs=("host",)),
    Component("grafana", "Grafana: dashboards", needs=("host",)),
    Component("release", "what runs here: commit, versions, when", needs=("host",), roles=EVERYWHERE),
)

BY_NAME = {component.name: component for component in COMPONENTS}


def role_of(lists: Iterable[str]) -> Role:
    """The role of a machine that is in these lists of its inventory (pyinfra's groups)."""
    return next((LISTS[name] for name in lists if name in LISTS), "mini")


def select(names: Iterable[str], role: Role = "mini") -> list[Component]:
    """The named components in converge order; all of the machine's when no name is given.

    Raises:
        ConfigError: a name is not a component, or not one of that machine; suggests the nearest one.
    """
    wanted = list(names)
    for name in wanted:
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, n=1)
            suggestion = f"did you mean `{near[0]}`?" if near else "`minipc components` lists them"
            raise ConfigError(f"unknown component `{name}`; known: {', '.join(BY_NAME)}", suggestion)
        if role not in BY_NAME[name].roles:
            there = ", ".join(component.name for component in COMPONENTS if role in component.roles)
            raise ConfigError(f"`{name}` does not belong on this machine ({role}); there: {there}", "name another host")
    here = [component for component in COMPONENTS if role in component.roles]
    return [component for component in here if not wanted or component.name in wanted]


def missing_needs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What the named components need that is neither among them nor, so far as can be told, part of the same run.

    Returns:
        Trace on the machine -> the component that leaves it, and the one that needs it.
    """
    wanted = set(names)
    needed = ((need, name) for name in BY_NAME if name in wanted for need in BY_NAME[name].needs if need not in wanted)
    return {BY_NAME[need].trace: (need, name) for need, name in needed if BY_NAME[need].trace}


def backup_paths() -> Sequence[tuple[str, str]]:
    """Component and path of everything that goes into the backup of configuration and state."""
    return [(component.name, path) for component in COMPONENTS for path in component.backup_paths]


def deploy_files(names: Iterable[str] = (), role: Role = "mini") -> list[str]:
    """Absolute paths of the deploy files to run: `site.py` when no component is named, else those named and `release`.

    Raises:
        ConfigError: as in `select`.
    """
    wanted = list(names)
    chosen = [component.deploy for component in select([*wanted, "release"], role)] if wanted else ["deploys/site.py"]
    return [str(ROOT / path) for path in chosen]
