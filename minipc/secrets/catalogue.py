"""List the secrets of each component. Some names are derived from group_data: roles, users, registries, channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from minipc import config
from minipc.config import Settings
from minipc.config.channels import Channel
from minipc.config.service import Service
from minipc.core.environment import LAB
from minipc.secrets.values import Rule

Generator = Literal["alphanumeric", "wireguard", "ssh-key"]
_RULES: dict[Generator | None, Rule] = {
    "alphanumeric": "password",
    "wireguard": "wireguard-key",
    "ssh-key": "ssh-key",
    None: "line",
}


@dataclass(frozen=True)
class Entry:
    """One secret that a component uses.

    Attributes:
        name: see `minipc.secrets.secret.check_name`.
        component: the first component that needs it; others may use it too.
        description: what it is, for people.
        generate: how a new value is made; None: only the operator can supply it.
        optional: whether the component works without it.
        is_url: whether the value is a URL.
        value_rule: rule for the value, where it does not follow from `generate` and `is_url`.
        on: where it is, besides the secret store; empty: on the machines of the component.
        tested: the check of `tests/verify` that tries what it allows, MODULE::FUNCTION; empty: none.
    """

    name: str
    component: str
    description: str
    generate: Generator | None
    optional: bool = False
    is_url: bool = False
    value_rule: Rule | None = None
    on: str = ""
    tested: str = ""

    @property
    def rule(self) -> Rule:
        """Return the rule for its value, see `minipc.secrets.values`."""
        return self.value_rule or ("url" if self.is_url else _RULES[self.generate])


OFFSITE = "off-site host"


def postgres_password(role: str) -> str:
    """Return the name of the secret with the password of a PostgreSQL role."""
    return f"postgres.password.{role}"


def redis_password(user: str) -> str:
    """Return the name of the secret with the password of a Redis ACL user."""
    return f"redis.password.{user}"


def registry_password(name: str) -> str:
    """Return the name of the secret with the password, or token, for a container registry."""
    return f"k3s.registry.{name}"


def service_secret(service: str, variable: str) -> str:
    """Return the name of the secret with the value of a variable that a service file declares in `secrets`."""
    return f"{service}.{variable}"


def ingress_password(service: str) -> str:
    """Return the name of the secret with the password that the ingress asks for."""
    return f"{service}.INGRESS_PASSWORD"


DISK_PASSPHRASE = "host.disk_passphrase"  # noqa: S105 - its name
DISK_UNLOCK_KEY = "host.disk_unlock_key"
VPN_KEY = "vpn.private_key"
K3S_TOKEN = "k3s.token"  # noqa: S105 - its name
K3S_AGENT_TOKEN = "k3s.agent_token"  # noqa: S105 - its name
K3S_NODE_PASSWORD = "k3s.node_password"  # noqa: S105 - its name
ARGOCD_PASSWORD = "argocd.admin_password"  # noqa: S105 - its name
ARGOCD_DEPLOY_KEY = "argocd.deploy_key"
RELEASE_SIGNING_KEY = "release.signing_key"
DNS_TOKEN = "dns.cloudflare_token"  # noqa: S105 - a name
DNS_CREDENTIALS = "dns.credentials"

WATCHDOG_URL = "alertmanager.watchdog_url"
ALERTMANAGER_PASSWORD = "alertmanager.password"  # noqa: S105 - its name

SFTP_KEY = "backups.sftp_key"
REST_PASSWORD = "offsite.rest_password"  # noqa: S105 - its name
S3_ACCESS_KEY = "offsite.s3_access_key"
S3_SECRET_KEY = "offsite.s3_secret_key"  # noqa: S105 - its name
SFTP_HOST_KEY = "offsite.sftp_host_key"
TLS_KEY = "offsite.tls_key"
GRAFANA_PASSWORD = "grafana.admin_password"  # noqa: S105 - its name
WATCHER_PASSWORD = "watcher.password"  # noqa: S105 - its name
WATCHER_CLIENT_KEY = "watcher.client_key"
WATCHER_ALERTMANAGER_PASSWORD = "watcher.alertmanager_password"  # noqa: S105 - its name
WATCHER_ALIVE_URL = "watcher.alive_url"
GENERATION = (SFTP_KEY, REST_PASSWORD, WATCHER_CLIENT_KEY, WATCHER_PASSWORD)
"""Credentials of the mini PC at the off-site host. A new machine gets new ones, which locks the old machine out."""
RESTIC_PASSWORD = "backups.restic_password"  # noqa: S105 - its name


def repository_cipher(repo: int) -> str:
    """Return the name of the secret with the passphrase of a pgBackRest repository."""
    return f"backups.cipher.repo{repo}"


BACKUP_PASSPHRASES = (RESTIC_PASSWORD, repository_cipher(1), repository_cipher(2))
BOUND = dict.fromkeys(
    BACKUP_PASSPHRASES, "`minipc stolen --repositories` makes new repositories for new passphrases"
) | {
    DISK_PASSPHRASE: "the disk is encrypted with it: docs/howto/disk-encryption.md says how to change it",
    DISK_UNLOCK_KEY: "the machine has it in its initramfs: docs/howto/disk-encryption.md says how to change it",
    K3S_TOKEN: "the datastore is encrypted with it: use `k3s token rotate`, then `minipc secrets set k3s.token`",
    K3S_NODE_PASSWORD: "the cluster knows the node by it: a rebuild takes a new one",
}
"""What cannot be renewed while data or a cluster depends on the old value -> what to do instead."""


def dns_credentials(provider: str) -> str:
    """Return the name of the secret with the credentials for a DNS provider."""
    return DNS_TOKEN if provider == "cloudflare" else DNS_CREDENTIALS


def needed(component: str, names: Iterable[str] = ()) -> list[Entry]:
    """Return the secrets of a component.

    Args:
        component: a name from `minipc.config.components`.
        names: what its secrets are named after: PostgreSQL roles, Redis users, registries.
    """
    match component:
        case "postgres":
            return [
                Entry(
                    postgres_password(role),
                    component,
                    f"password of the PostgreSQL role {role}, for its databases only",
                    "alphanumeric",
                    tested="test_postgres::test_a_role_gets_into_no_other_database",
                )
                for role in names
            ]
        case "redis":
            return [
                Entry(
                    redis_password(user),
                    component,
                    f"password of the Redis user {user}, for its keys and commands only",
                    "alphanumeric",
                    tested="test_redis::test_each_user_logs_in_with_its_password",
                )
                for user in names
            ]
        case "host":
            return [
                Entry(
                    DISK_PASSPHRASE,
                    component,
                    "passphrase of the encrypted disk: read everything on it",
                    "alphanumeric",
                    on="nowhere else",
                ),
                Entry(
                    DISK_UNLOCK_KEY,
                    component,
                    "SSH host key while the disk is locked: be the machine that gets its passphrase",
                    "ssh-key",
                    on="mini PC (not encrypted)",
                ),
            ]
        case "vpn":
            what = "the machine's WireGuard private key: be the VPN's server for its clients"
            return [Entry(VPN_KEY, component, what, "wireguard", tested="test_vpn::test_a_peer_gets_in_and_out")]
        case "offsite":
            return [
                Entry(SFTP_HOST_KEY, component, "host key of the off-site SFTP server", "ssh-key"),
                Entry(
                    TLS_KEY,
                    component,
                    "TLS key of the off-site restic server",
                    "ssh-key",
                    tested="test_offsite::test_the_certificate_is_the_pinned_one",
                ),
                Entry(
                    REST_PASSWORD,
                    component,
                    "the mini PC's password for the restic server: read and add, never delete or replace",
                    "alphanumeric",
                    on=f"mini PC, {OFFSITE} (hash)",
                    tested="test_offsite::test_restic_may_add_but_not_delete_nor_replace",
                ),
            ]
        case "grafana":
            check = "test_grafana::test_nobody_sees_anything_without_logging_in"
            return [Entry(GRAFANA_PASSWORD, component, "password of Grafana's admin", "alphanumeric", tested=check)]
        case "watcher":
            return [
                Entry(
                    WATCHER_CLIENT_KEY,
                    component,
                    "TLS key with which the mini PC sends metrics to the off-site host",
                    "ssh-key",
                    on=f"mini PC, {OFFSITE} (certificate)",
                    tested="test_watcher::test_only_the_mini_pc_sends_metrics",
                ),
                Entry(
                    WATCHER_PASSWORD,
                    component,
                    "the mini PC's password for sending metrics: send, and read what it sent",
                    "alphanumeric",
                    on=f"mini PC, {OFFSITE} (hash)",
                    tested="test_watcher::test_only_the_mini_pc_sends_metrics",
                ),
                Entry(
                    WATCHER_ALERTMANAGER_PASSWORD,
                    component,
                    "password of the off-site host's Alertmanager: read alerts, silence them",
                    "alphanumeric",
                    on=OFFSITE,
                    tested="test_alertmanager::test_without_its_password_nobody_silences_anything",
                ),
                Entry(
                    WATCHER_ALIVE_URL,
                    component,
                    "URL that is pinged while the off-site host can alert",
                    None,
                    True,
                    True,
                ),
            ]
        case "backups":
            return [
                Entry(
                    SFTP_KEY,
                    component,
                    "the mini PC's key for the off-site SFTP server: read, write, delete in one folder",
                    "ssh-key",
                    tested="test_offsite::test_the_account_can_write_and_remove_only_in_its_repository",
                ),
                *(
                    Entry(
                        name,
                        component,
                        f"{which} key of the bucket with the backups: read, write, delete in it",
                        None,
                        value_rule="aws-key",
                        tested="test_repositories::test_the_bucket_can_be_used",
                    )
                    for name, which in ((S3_ACCESS_KEY, "access"), (S3_SECRET_KEY, "secret"))
                ),
                Entry(
                    RESTIC_PASSWORD,
                    component,
                    "passphrase of the restic repository: read the backups of files",
                    "alphanumeric",
                    tested="test_backups::test_a_file_comes_back_from_restic",
                ),
                *(
                    Entry(
                        repository_cipher(repo),
                        component,
                        f"passphrase of pgBackRest's repo{repo}: read the backups of the database",
                        "alphanumeric",
                        tested="test_repositories::test_a_repository_can_be_read",
                    )
                    for repo in (1, 2)
                ),
            ]
        case "k3s":
            return [
                Entry(K3S_TOKEN, component, "joins a server to the cluster", "alphanumeric"),
                Entry(
                    K3S_AGENT_TOKEN,
                    component,
                    "joins an agent to the cluster, and nothing else",
                    "alphanumeric",
                    on="mini PC, agents",
                    tested="test_k3s_agent::test_its_token_makes_no_server_of_it",
                ),
                Entry(K3S_NODE_PASSWORD, component, "password of the node's name in the cluster", "alphanumeric"),
                *(
                    Entry(registry_password(name), component, f"password or token for the registry {name}", None)
                    for name in names
                ),
            ]
        case "argocd":
            return [
                Entry(
                    ARGOCD_PASSWORD,
                    component,
                    "password of ArgoCD's account `admin`",
                    "alphanumeric",
                    on="mini PC (hash)",
                    tested="test_argocd::test_only_the_administrators_password_opens_it",
                ),
                Entry(
                    ARGOCD_DEPLOY_KEY,
                    component,
                    "reads the deploy repository, and nothing else",
                    "ssh-key",
                    tested="test_argocd::test_its_key_can_only_read",
                ),
                # It never leaves the controller: a machine that has it could approve what it runs.
                Entry(
                    RELEASE_SIGNING_KEY, component, "signs minipc's own commits in it", "ssh-key", on="controller only"
                ),
            ]
        case "dns":
            return [
                Entry(DNS_TOKEN, component, "Cloudflare API token: Zone:Read and DNS:Edit, one zone", None, True),
                Entry(DNS_CREDENTIALS, component, "token for another DNS provider, or JSON", None, True),
            ]
        case "alertmanager":
            return [
                Entry(
                    ALERTMANAGER_PASSWORD,
                    component,
                    "password of Alertmanager's user `operator`: read alerts, silence them",
                    "alphanumeric",
                    tested="test_alertmanager::test_without_its_password_nobody_silences_anything",
                ),
                Entry(WATCHDOG_URL, component, "URL that is pinged while all is well", None, True, True),
            ]
        case _:
            return []


def channel_secret(channel: str, part: str) -> str:
    """Return the name of a secret of a channel of the alerts."""
    return f"alertmanager.{channel}_{part}"


def of_channels(channels: Iterable[Channel]) -> list[Entry]:
    """Return the secrets of the channels of the alerts; only the operator knows their values."""
    return [
        Entry(
            channel_secret(channel.name, part),
            "alertmanager",
            f"{part} of the channel {channel.name}",
            None,
            value_rule=rule,
        )
        for channel in channels
        for part, rule in channel.secrets.items()
    ]


def of_services(services: Iterable[Service]) -> list[Entry]:
    """Return the secrets that the service files declare; only the operator knows their values."""
    entries = []
    for service in services:
        if service.redis and service.redis.kind == "queue":
            name = redis_password(service.name)
            check = "test_redis::test_a_queue_is_for_its_service_only"
            what = f"password of the Redis queue of {service.name}"
            entries.append(Entry(name, "redis", what, "alphanumeric", tested=check))
        for variable in service.secrets:
            what = f"variable {variable} of the service {service.name}"
            entries.append(Entry(service_secret(service.name, variable), "services", what, None, value_rule="text"))
        if service.ingress and service.ingress.authentication and service.ingress.authentication.basic:
            user = service.ingress.authentication.basic.user
            what = f"password of {user} at the ingress of {service.name}"
            check = "test_edge::test_strangers_do_not_reach_a_service_with_authentication"
            name = ingress_password(service.name)
            entries.append(
                Entry(name, "services", what, None, value_rule="password", on="mini PC (hash)", tested=check)
            )
    return entries


def generation(settings: Settings) -> tuple[str, ...]:
    """Return the credentials that a new machine gets: all of the mini PC at the off-site host.

    A deploy repository elsewhere knows ArgoCD's key, too; there only a person can replace it.
    """
    return (*GENERATION, ARGOCD_DEPLOY_KEY) if settings.offsite.deploy_repository else GENERATION


def for_environment(environment: str) -> list[Entry]:
    """Return the secrets of all components for an environment. Raises ConfigError.

    In the lab, values that only an operator could know are invented, so that every service can be rehearsed.
    """
    entries = whole(config.load(environment))
    if environment != LAB.name:
        return entries
    invented = [each.name for each in entries if each.component == "services"] + [S3_ACCESS_KEY, S3_SECRET_KEY]
    return [replace(each, generate="alphanumeric") if each.name in invented else each for each in entries]


def whole(settings: Settings) -> list[Entry]:
    """Return the secrets of all components for a configuration, in converge order."""
    provider = settings.dns.provider
    dns = [
        replace(entry, optional=provider == "none" or entry.name != dns_credentials(provider))
        for entry in needed("dns")
    ]
    alone = settings.alertmanager.watchdog and settings.backups.offsite is None
    alerts = [
        replace(entry, optional=not alone) if entry.name == WATCHDOG_URL else entry for entry in needed("alertmanager")
    ]
    return [
        *(needed("host") if settings.host.disk_encryption != "none" else []),
        *needed("vpn"),
        *needed("postgres", [role.name for role in settings.postgres.roles]),
        *needed("offsite"),
        *(
            replace(entry, optional=settings.offsite.s3 is None and entry.name in (S3_ACCESS_KEY, S3_SECRET_KEY))
            for entry in needed("backups")
        ),
        *needed("redis", [user.name for user in settings.redis.users]),
        *needed("k3s", [registry.name for registry in settings.k3s.registries]),
        *needed("argocd"),
        *of_services(settings.services.declared),
        *dns,
        *alerts,
        *of_channels(settings.alertmanager.channels),
        *needed("grafana"),
        *needed("watcher"),
    ]
