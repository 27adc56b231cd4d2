"""The one list of components. Its order is the order of `deploys/site.py` and of a rebuild.

A component's name is the same word everywhere: `deploys/NAME.py`, `templates/NAME/` where it has files,
`tests/verify/test_NAME.py`, `docs/reference/NAME.md`, the `NAME_*` keys of `group_data/all.py` where it has settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT

Role = Literal["mini", "offsite", "agent"]
EVERYWHERE: tuple[Role, ...] = ("mini", "offsite", "agent")
# Lists of the inventory that give their machines a role. A machine in none of them is a mini PC.
LISTS: dict[str, Role] = {"offsite": "offsite", "k3s_agents": "agent"}
# Promise for a component as a whole. Promises for single tables and volumes are in the service files.
DataClass = Literal["must recover", "cache", "none"]


@dataclass(frozen=True)
class Component:
    """A component: a deploy and what it needs.

    Attributes:
        name: the word for it everywhere.
        summary: its purpose, half a sentence.
        needs: components that must be converged before it.
        data_class: the strongest promise about the data that it holds.
        roles: the machines it belongs on: the mini PC, the off-site host, further nodes of the cluster.
        backup_paths: its part of the backup of configuration and state; absolute paths on the mini PC.
        marker_path: file created by the deploy; its presence means installed. Empty if there is none.
        phases: phases of a rebuild that converge it (`playbooks/phases.py`). Without any: only the last converge does.
        versions_of: Debian packages whose versions the release file records.
    """

    name: str
    summary: str
    _: KW_ONLY
    needs: tuple[str, ...] = ()
    data_class: DataClass = "none"
    roles: tuple[Role, ...] = ("mini",)
    backup_paths: tuple[str, ...] = ()
    marker_path: str = ""
    phases: tuple[str, ...] = ()
    versions_of: tuple[str, ...] = ()

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
        marker_path="/usr/local/lib/minipc/revert",
        phases=("host and network",),
        versions_of=("chrony", "openssh-server", "systemd"),
    ),
    Component(
        "vpn",
        "WireGuard: the operator's way in",
        needs=("host",),
        marker_path="/etc/minipc/vpn/wg0.conf",
        phases=("host and network",),
        versions_of=("wireguard-go", "wireguard-tools"),
    ),
    Component(
        "firewall",
        "nftables: which connections are accepted, from which side",
        needs=("host",),
        roles=EVERYWHERE,
        marker_path="/etc/minipc/firewall.nft",
        phases=("host and network",),
        versions_of=("nftables",),
    ),
    Component(
        "offsite",
        "off-site host: stores the backups",
        needs=("host", "firewall"),
        roles=("offsite",),
        phases=("fence",),
        versions_of=("restic-rest-server",),
    ),
    Component(
        "repositories",
        "backup repositories: where backups are and how to read them (pgBackRest, restic)",
        needs=("host",),
        marker_path="/usr/local/lib/minipc/restore",
        phases=("data",),
        versions_of=("pgbackrest", "restic"),
    ),
    Component(
        "volumes",
        "volumes of the services: their files",
        needs=("repositories",),
        data_class="must recover",
        marker_path="/srv/minipc/volumes",
        phases=("data",),
    ),
    Component(
        "postgres",
        "PostgreSQL 17: everything that must not be lost",
        needs=("repositories",),
        data_class="must recover",
        marker_path="/var/lib/postgresql/17/main/PG_VERSION",
        phases=("data",),
        versions_of=("postgresql-17",),
    ),
    Component(
        "backups",
        "schedule of backups, and of the restore drill that proves them",
        needs=("repositories", "volumes", "postgres"),
        backup_paths=("/var/lib/minipc/drills",),
    ),
    Component(
        "redis",
        "Redis: the cache, and queues of services",
        needs=("host",),
        data_class="cache",
        marker_path="/etc/redis/users.acl",
        phases=("runtime", "service"),
        versions_of=("redis-server",),
    ),
    Component(
        "images",
        "container images as files: a rebuild needs no registry",
        needs=("host",),
        roles=("mini", "agent"),
        backup_paths=("/var/lib/minipc/images",),
        phases=("images",),
    ),
    Component(
        "k3s",
        "K3s: runs the service and ArgoCD, holds no data",
        needs=("firewall", "postgres", "redis"),
        backup_paths=("/etc/rancher",),
        phases=("runtime",),
    ),
    Component(
        "k3s_agent",
        "K3s agent: a further node, for more pods",
        needs=("host", "firewall"),
        roles=("agent",),
    ),
    Component(
        "services",
        "your services: namespaces and secrets in K3s; or the same images under podman",
        needs=("postgres", "redis"),
        phases=("service",),
        versions_of=("podman",),
    ),
    Component(
        "argocd",
        "ArgoCD: applies the deploy repository to the cluster",
        needs=("host",),
        phases=("service",),
    ),
    Component(
        "edge",
        "Caddy: the public ingress",
        needs=("host", "firewall"),
        backup_paths=("/var/lib/caddy/.local/share/caddy",),
        phases=("public ingress",),
        versions_of=("caddy",),
    ),
    Component(
        "dns",
        "DNS updater: the public name follows the machine's public address",
        needs=("host",),
        phases=("DNS cutover",),
    ),
    Component(
        "alertmanager",
        "Alertmanager: sends alerts",
        needs=("host",),
        roles=("mini", "offsite"),
        versions_of=("prometheus-alertmanager",),
    ),
    Component(
        "prometheus",
        "Prometheus and exporters: measurements and alert rules",
        needs=("postgres", "redis"),
        versions_of=(
            "prometheus",
            "prometheus-blackbox-exporter",
            "prometheus-node-exporter",
            "prometheus-postgres-exporter",
            "prometheus-redis-exporter",
        ),
    ),
    Component(
        "watcher",
        "external monitor: watches services and machine from outside, and sends alerts by itself",
        needs=("host", "firewall"),
        roles=("offsite",),
        phases=("fence",),
    ),
    Component("loki", "Loki: logs, searchable", needs=("host",)),
    Component(
        "syslog_ng",
        "syslog-ng: sends all logs to Loki",
        needs=("host",),
        versions_of=("syslog-ng-core",),
    ),
    Component("grafana", "Grafana: dashboards", needs=("host",)),
    Component("release", "record of commit, versions and time on the machine", needs=("host",), roles=EVERYWHERE),
)

BY_NAME = {component.name: component for component in COMPONENTS}


def role_of(lists: Iterable[str]) -> Role:
    """Return the role of a machine that is in these lists of its inventory (pyinfra's groups)."""
    return next((LISTS[name] for name in lists if name in LISTS), "mini")


def select(names: Iterable[str], role: Role = "mini") -> list[Component]:
    """Return the named components in converge order; all of the machine's if no name is given.

    Raises:
        ConfigError: a name is not a component, or not one of that machine; it suggests the nearest name.
    """
    wanted = list(names)
    for name in wanted:
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, n=1)
            suggestion = f"did you mean `{near[0]}`?" if near else "`minipc components` lists them"
            raise ConfigError(f"unknown component `{name}`; known: {', '.join(BY_NAME)}", suggestion)
        if role not in BY_NAME[name].roles:
            there = ", ".join(component.name for component in COMPONENTS if role in component.roles)
            raise ConfigError(
                f"`{name}` does not belong on a machine with the role {role}; these do: {there}", "use another --host"
            )
    here = [component for component in COMPONENTS if role in component.roles]
    return [component for component in here if not wanted or component.name in wanted]


def missing_needs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return dependencies that are neither selected nor already part of this run.

    Returns:
        Marker path on the machine -> the component that creates it, and the one that needs it.
    """
    wanted = set(names)
    needed = ((need, name) for name in BY_NAME if name in wanted for need in BY_NAME[name].needs if need not in wanted)
    return {BY_NAME[need].marker_path: (need, name) for need, name in needed if BY_NAME[need].marker_path}


def in_phase(phase: str) -> tuple[str, ...]:
    """Return the names of the components that a phase of a rebuild converges."""
    return tuple(component.name for component in COMPONENTS if phase in component.phases)


def recorded_packages() -> list[str]:
    """Return the Debian packages whose versions the release file records."""
    return sorted(package for component in COMPONENTS for package in component.versions_of)


def backup_paths() -> Sequence[tuple[str, str]]:
    """Return component and path of everything that is in the backup of configuration and state."""
    return [(component.name, path) for component in COMPONENTS for path in component.backup_paths]


def deploy_files(names: Iterable[str] = (), role: Role = "mini") -> list[str]:
    """Return absolute paths of the deploy files to run: `site.py` if no component is named, else theirs and `release`.

    Raises:
        ConfigError: as in `select`.
    """
    wanted = list(names)
    chosen = [component.deploy for component in select([*wanted, "release"], role)] if wanted else ["deploys/site.py"]
    return [str(ROOT / path) for path in chosen]
