"""Which secrets each component needs. Names that depend on data (roles, users) are made from that data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from minipc.config import Settings

Generator = Literal["alphanumeric", "wireguard", "ssh-key"]


@dataclass(frozen=True)
class Entry:
    """One secret that may be asked for.

    Attributes:
        name: see `minipc.secrets.secret.check_name`.
        component: who needs it first; others may use it too.
        description: what it is, for people.
        generate: how a new value is made; None: only the operator can supply it.
        optional: the component works without it.
    """

    name: str
    component: str
    description: str
    generate: Generator | None
    optional: bool = False


def postgres_password(role: str) -> str:
    """Name of the secret with the password of a PostgreSQL role."""
    return f"postgres.password.{role}"


def redis_password(user: str) -> str:
    """Name of the secret with the password of a Redis ACL user."""
    return f"redis.password.{user}"


def registry_password(name: str) -> str:
    """Name of the secret with the password, or token, for a container registry."""
    return f"k3s.registry.{name}"


VPN_KEY = "vpn.private_key"
K3S_TOKEN = "k3s.token"  # noqa: S105 - its name
K3S_AGENT_TOKEN = "k3s.agent_token"  # noqa: S105 - its name
K3S_NODE_PASSWORD = "k3s.node_password"  # noqa: S105 - its name
ARGOCD_PASSWORD = "argocd.admin_password"  # noqa: S105 - its name
ARGOCD_DEPLOY_KEY = "argocd.deploy_key"
SENTRY_DSN = "sentry.dsn"
DNS_TOKEN = "dns.cloudflare_token"  # noqa: S105 - a name

SLACK_URL = "alertmanager.slack_url"
WATCHDOG_URL = "alertmanager.watchdog_url"
ALERTMANAGER_PASSWORD = "alertmanager.password"  # noqa: S105 - its name

SFTP_KEY = "backups.sftp_key"
REST_PASSWORD = "offsite.rest_password"  # noqa: S105 - its name
GENERATION = (SFTP_KEY, REST_PASSWORD)
"""What the mini PC proves itself with to the off-site machine: new for each machine, which locks the old one out."""
SFTP_HOST_KEY = "offsite.sftp_host_key"
TLS_KEY = "offsite.tls_key"
GRAFANA_PASSWORD = "grafana.admin_password"  # noqa: S105 - its name
WATCHER_PING_TOKEN = "watcher.ping_token"  # noqa: S105 - its name
WATCHER_ALIVE_URL = "watcher.alive_url"
WATCHER_CHANNELS = {
    "webhook": "watcher.webhook_url",
    "ntfy": "watcher.ntfy_url",
    "email": "watcher.email_password",
}
"""The secret of each channel that has one."""
RESTIC_PASSWORD = "backups.restic_password"  # noqa: S105 - its name


def repository_cipher(repo: int) -> str:
    """Name of the secret that pgBackRest's repository is encrypted with."""
    return f"backups.cipher.repo{repo}"


def needed(component: str, names: Iterable[str] = ()) -> list[Entry]:
    """The secrets of a component.

    Args:
        component: a name from `minipc.components`; one without secrets has none here.
        names: what its secrets are named after: PostgreSQL roles, Redis users, channels. Nothing for the others.
    """
    match component:
        case "postgres":
            return [
                Entry(postgres_password(role), component, f"password of the PostgreSQL role {role}", "alphanumeric")
                for role in names
            ]
        case "redis":
            return [
                Entry(redis_password(user), component, f"password of the Redis user {user}", "alphanumeric")
                for user in names
            ]
        case "vpn":
            return [
                Entry(VPN_KEY, component, "the machine's end of the tunnel; peers know its public half", "wireguard")
            ]
        case "offsite":
            return [
                Entry(SFTP_HOST_KEY, component, "how the off-site SFTP server proves itself", "ssh-key"),
                Entry(TLS_KEY, component, "how the off-site restic server proves itself", "ssh-key"),
                Entry(REST_PASSWORD, component, "the mini PC's password for the restic server", "alphanumeric"),
            ]
        case "grafana":
            return [Entry(GRAFANA_PASSWORD, component, "password of Grafana's admin", "alphanumeric")]
        case "watcher":
            return [
                Entry(WATCHER_PING_TOKEN, component, "by which the watcher knows the machine's ping", "alphanumeric"),
                Entry(WATCHER_ALIVE_URL, component, "who is pinged while the watcher itself lives", None, True),
                *(
                    Entry(WATCHER_CHANNELS[kind], component, f"where the watcher tells: {kind}", None)
                    for kind in names
                    if kind in WATCHER_CHANNELS
                ),
            ]
        case "backups":
            return [
                Entry(SFTP_KEY, component, "the mini PC's key for the off-site SFTP server", "ssh-key"),
                Entry(RESTIC_PASSWORD, component, "passphrase of the restic repository", "alphanumeric"),
                *(
                    Entry(repository_cipher(repo), component, f"passphrase of pgBackRest's repo{repo}", "alphanumeric")
                    for repo in (1, 2)
                ),
            ]
        case "k3s":
            return [
                Entry(K3S_TOKEN, component, "joins a server to the cluster", "alphanumeric"),
                Entry(K3S_AGENT_TOKEN, component, "joins an agent to the cluster, and opens no more", "alphanumeric"),
                Entry(K3S_NODE_PASSWORD, component, "how the node proves that its name is its own", "alphanumeric"),
                *(
                    Entry(registry_password(name), component, f"password or token for the registry {name}", None)
                    for name in names
                ),
            ]
        case "argocd":
            return [
                Entry(ARGOCD_PASSWORD, component, "password of ArgoCD's account `admin`", "alphanumeric"),
                Entry(ARGOCD_DEPLOY_KEY, component, "reads the deploy repository, and nothing else", "ssh-key"),
            ]
        case "workload":
            return [Entry(SENTRY_DSN, component, "where the service reports its errors", None, optional=True)]
        case "dns":
            return [Entry(DNS_TOKEN, component, "Cloudflare API token: Zone:Read and DNS:Edit, one zone", None, True)]
        case "alertmanager":
            return [
                Entry(ALERTMANAGER_PASSWORD, component, "password of Alertmanager's user `operator`", "alphanumeric"),
                Entry(SLACK_URL, component, "incoming webhook of Slack, where alerts go", None, True),
                Entry(WATCHDOG_URL, component, "who is pinged while all is well, and shouts when it stops", None, True),
            ]
        case _:
            return []


def for_environment(environment: str) -> list[Entry]:
    """The secrets of all components for an environment's group_data. Raises ConfigError."""
    from minipc import config  # its schema embeds the settings of this package

    return whole(config.load(environment))


def whole(settings: Settings) -> list[Entry]:
    """The secrets of all components for a configuration, in converge order."""
    sentry = [replace(entry, optional=not settings.workload.sentry) for entry in needed("workload")]
    dns = [replace(entry, optional=settings.dns.provider != "cloudflare") for entry in needed("dns")]
    alone = settings.alertmanager.watchdog and settings.backups.offsite is None
    told = {SLACK_URL: settings.alertmanager.slack, WATCHDOG_URL: alone}
    alerts = [
        replace(entry, optional=not told[entry.name]) if entry.name in told else entry
        for entry in needed("alertmanager")
    ]
    return [
        *needed("vpn"),
        *needed("postgres", [role.name for role in settings.postgres.roles]),
        *needed("offsite"),
        *needed("backups"),
        *needed("redis", [user.name for user in settings.redis.users]),
        *needed("k3s", [registry.name for registry in settings.k3s.registries]),
        *needed("argocd"),
        *sentry,
        *dns,
        *alerts,
        *needed("grafana"),
        *needed("watcher", settings.watcher.channels),
    ]
