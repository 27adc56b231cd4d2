"""What may be configured. `group_data/all.py` holds the values, with unit, default and reason.

A component's settings are the keys that start with its name: `redis_maxmemory_mb` is `Settings.redis.maxmemory_mb`.
No defaults here: every tunable is written once, in `group_data/`.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from minipc.config.channels import AnyChannel
from minipc.config.secrets_settings import SecretsSettings, TrustedUrl
from minipc.config.service import Service
from minipc.config.types import (
    Address,
    Calendar,
    Cidr,
    Days,
    DnsProvider,
    Domain,
    Host,
    Interface,
    Megabytes,
    Percent,
    Port,
    Registry,
    Seconds,
    SqlName,
    SshPublicKey,
    UnitName,
    Url,
    UserName,
    WireguardKey,
    endpoint,
)
from minipc.core.environment import Environment, EnvironmentName, named
from minipc.core.errors import ConfigError
from minipc.core.strict import Strict


class HostSettings(Strict):
    """Debian itself."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    timezone: str
    apt_mirror: Url | None
    apt_security_mirror: Url | None
    operator_user: UserName
    operator_keys: list[SshPublicKey]
    journal_days: Annotated[int, Field(ge=30, le=3650)]
    journal_max_mb: Megabytes
    service_address: Address
    sysctls: dict[str, str]
    confirm_within_s: Annotated[int, Field(ge=20, le=600)]
    reboot_at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] | None
    disk_encryption: Literal["none", "passphrase", "tpm2"]


class FirewallSettings(Strict):
    """Which side is which, and what is open on it."""

    public_interfaces: list[Interface]
    operator_interfaces: list[Interface]
    operator_networks: Annotated[list[Cidr], Field(min_length=1)]
    operator_access: Literal["networks", "vpn"]
    public_tcp: list[Port]
    public_udp: list[Port]
    operator_tcp: list[Port]
    pod_interfaces: list[Interface]
    pod_tcp: list[Port]
    client_new_per_s: Annotated[int, Field(ge=1, le=100_000)]
    client_connections: Annotated[int, Field(ge=1, le=65_535)]


class VpnPeer(Strict):
    """A device that may connect.

    Attributes:
        allowed_ips: source addresses that are believed when they come through its tunnel, and are routed into it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
    public_key: WireguardKey
    allowed_ips: Annotated[list[Cidr], Field(min_length=1)]


class VpnSettings(Strict):
    """The operator's tunnel. The machine has the first address of each network."""

    port: Port
    endpoint: Host | None
    network: Cidr
    network_ipv6: Cidr
    keepalive_s: Annotated[int, Field(ge=0, le=3600)]
    services: dict[UnitName, Port]
    peers: list[VpnPeer]

    @property
    def address(self) -> str:
        """The machine's IPv4 address in the tunnel."""
        return str(ip_network(self.network)[1])

    @property
    def address_ipv6(self) -> str:
        """The machine's IPv6 address in the tunnel."""
        return str(ip_network(self.network_ipv6)[1])

    @property
    def networks(self) -> list[str]:
        """Where peers come from: the tunnel's networks."""
        return [self.network, self.network_ipv6]

    @model_validator(mode="after")
    def _networks_have_room(self) -> Self:
        for key, version, longest in (("network", 4, 30), ("network_ipv6", 6, 126)):
            network = ip_network(getattr(self, key))
            if network.version != version:
                raise ValueError(f"vpn_{key} = {str(network)!r} is not an IPv{version} network")
            if network.prefixlen > longest:
                raise ValueError(f"vpn_{key} = {str(network)!r} is too small for peers; allowed: /{longest} or larger")
        return self

    @model_validator(mode="after")
    def _services_have_a_port_each(self) -> Self:
        ports = list(self.services.values())
        for name, port in self.services.items():
            if ports.count(port) > 1:
                raise ValueError(f"vpn_services: {name!r} shares port {port} with another service")
        return self

    @model_validator(mode="after")
    def _peers_are_distinct(self) -> Self:
        owners: dict[str, str] = {}
        claims = {self.address: "the machine itself", self.address_ipv6: "the machine itself"}
        taken = [(ip_interface(address).network, owner) for address, owner in claims.items()]
        for peer in self.peers:
            for kind, value in (("name", peer.name), ("public key", peer.public_key)):
                if value in owners:
                    raise ValueError(f"vpn_peers: {owners[value]!r} and {peer.name!r} have the same {kind} {value}")
                owners[value] = peer.name
            for allowed in map(ip_network, peer.allowed_ips):
                for other, owner in taken:
                    if allowed.version == other.version and allowed.overlaps(other):
                        raise ValueError(
                            f"vpn_peers: allowed_ips {allowed} of {peer.name!r} overlaps {other} of {owner}: WireGuard "
                            "would route the address to only one of them"
                        )
                taken.append((allowed, repr(peer.name)))
        return self


RESERVED_DATABASES = ("postgres", "template0", "template1", "minipc")
RESERVED_ROLES = ("postgres", "minipc")
"""PostgreSQL's superuser, and the role of the heartbeat and the canaries (`minipc/database_roles.py`)."""
DANGEROUS_MEMBERSHIPS = (
    "pg_execute_server_program",
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_read_all_data",
    "pg_write_all_data",
    "pg_create_subscription",
)
"""Each of them leads to files and programs of the machine, or to every service's rows (PostgreSQL manual, "Predefined
Roles")."""


class PostgresRole(Strict):
    """A login role; its password is the secret `postgres.password.NAME`."""

    name: SqlName
    memberships: list[SqlName]


class PostgresDatabase(Strict):
    """A service's database and its three roles.

    Attributes:
        owner: makes migrations; every object in the database is its property.
        runtime: the service itself, which reads and writes rows.
        reader: what our own programs read the service's tables with; it has no password.
        extensions: made by the superuser, before the owner's first migration.
    """

    name: SqlName
    owner: SqlName
    runtime: SqlName
    reader: SqlName
    extensions: list[str] = Field(default_factory=list)


class PostgresSettings(Strict):
    """PostgreSQL."""

    port: Port
    databases: list[PostgresDatabase]
    roles: list[PostgresRole]
    client_networks: list[Cidr]
    shared_buffers_percent: Percent
    max_connections: Annotated[int, Field(ge=20, le=1000)]
    slow_statement_ms: Annotated[int, Field(ge=0)]
    from_backup: Literal["refuse", "restore", "restore-incomplete"]

    @model_validator(mode="after")
    def _roles_are_separate(self) -> Self:
        names = [role.name for role in self.roles]
        taken: list[str] = [*RESERVED_ROLES]
        for database in self.databases:
            if database.name in RESERVED_DATABASES:
                raise ValueError(f"database {database.name!r} belongs to PostgreSQL; choose another name")
            for part, role in (("owner", database.owner), ("runtime", database.runtime)):
                if role not in names:
                    raise ValueError(f"{part} {role!r} of database {database.name!r} is not among the roles {names}")
            if database.reader in names:
                raise ValueError(
                    f"reader {database.reader!r} of database {database.name!r} is among the roles: it must have no "
                    "password; remove it there"
                )
            for role in (database.owner, database.runtime, database.reader):
                if role in taken:
                    raise ValueError(
                        f"role {role!r} of database {database.name!r} is used twice: each database needs separate "
                        "owner, runtime and reader roles"
                    )
                taken.append(role)
        return self

    @model_validator(mode="after")
    def _roles_have_no_way_to_the_machine(self) -> Self:
        services = {role for database in self.databases for role in (database.owner, database.runtime)}
        for role in self.roles:
            if role.name in RESERVED_ROLES or role.name.startswith("pg_"):
                raise ValueError(f"role {role.name!r} is reserved by PostgreSQL or minipc; choose another name")
            for membership in role.memberships:
                if membership in DANGEROUS_MEMBERSHIPS or role.name in services:
                    raise ValueError(
                        f"role {role.name!r} must not be a member of {membership!r}: a service may use only its "
                        "own objects; only the superuser may read files or run programs"
                    )
        return self


class RedisUser(Strict):
    """An ACL user; its password is the secret `redis.password.NAME`."""

    name: UserName
    keys: list[str]
    commands: list[str]


class RedisSettings(Strict):
    """The cache."""

    port: Port
    maxmemory_mb: Annotated[int, Field(ge=8)]
    users: list[RedisUser]


class K3sRegistry(Strict):
    """A container registry that asks for a password: the secret `k3s.registry.NAME`.

    Attributes:
        host: as in an image's name, with its port if that has one.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9_-]{0,30}$")]
    host: Registry
    username: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]+$")]


class K3sSettings(Strict):
    """The cluster."""

    node_ip: Address | None
    server: str | None
    api_names: list[Host]
    registries: list[K3sRegistry]
    audit_days: Days

    @model_validator(mode="after")
    def _nodes_are_reached_over_ipv4(self) -> Self:
        if self.node_ip and ip_address(self.node_ip).version != 4:
            raise ValueError(f"k3s_node_ip = {self.node_ip!r} is not an IPv4 address: pods have no IPv6")
        return self


class ArgocdSettings(Strict):
    """GitOps: the deploy repository, and who reads it."""

    repository: Annotated[str, Field(pattern=r"^ssh://[a-z][a-z0-9-]*@[A-Za-z0-9.:\[\]-]+/[A-Za-z0-9._/~-]+$")] | None
    known_hosts: list[Annotated[str, Field(pattern=r"^\S+ (ssh-ed25519|ecdsa-sha2-nistp256|ssh-rsa) [A-Za-z0-9+/=]+$")]]
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+$")]
    path: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9/_-]*$")]
    port: Port

    @model_validator(mode="after")
    def _its_host_is_pinned(self) -> Self:
        if self.repository and not self.known_hosts:
            raise ValueError("argocd_repository needs the host key of its host in argocd_known_hosts")
        return self


def _current_runtime(name: object) -> object:
    return "podman" if name == "stand-in" else name


class ServicesSettings(Strict):
    """Which services the machine runs, and what runs them.

    Attributes:
        folders: of the service files, relative to the repository or absolute.
        runtime: what runs the containers; podman, with the same images and manifests, where K3s is not available.
        declared: the services that the files describe, by name.
    """

    folders: list[str]
    runtime: Annotated[Literal["k3s", "podman"], BeforeValidator(_current_runtime)]
    declared: tuple[Service, ...]

    @property
    def public(self) -> list[Service]:
        """Return the services that users reach through the public ingress."""
        return [each for each in self.declared if each.ingress and each.ingress.audience == "public"]

    @property
    def for_operator(self) -> list[Service]:
        """Return the services that only the operator reaches, through the VPN."""
        return [each for each in self.declared if each.ingress and each.ingress.audience == "operator"]

    @property
    def domain(self) -> str | None:
        """Return the first public service's own domain; None if there is no public service."""
        return next((each.domain for each in self.public), None)

    def named(self, name: str) -> Service:
        """Return the service of that name. Raise ConfigError if there is none."""
        for service in self.declared:
            if service.name == name:
                return service
        names = ", ".join(service.name for service in self.declared) or "none"
        raise ConfigError(f"there is no service {name!r}; there are: {names}", "`minipc service list`")


class S3Settings(Strict):
    """A bucket for the backups, at any provider that speaks S3. Its key is a secret, not a setting.

    Attributes:
        endpoint: host name or IPv4 address; with `:PORT` if that is not 443.
        ca: PEM of the certificate that the server's must chain to; None: the system's.
    """

    endpoint: Annotated[str, AfterValidator(endpoint)]
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")]
    region: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,38}[a-z0-9]$")]
    ca: Annotated[str, Field(pattern=r"^-----BEGIN CERTIFICATE-----\n")] | None = None


class SftpSettings(Strict):
    """A storage box for the backups: an account on an SFTP server, without a shell. Its key is a secret, not a setting.

    Attributes:
        path: absolute path of a folder for nothing else, as the account sees it.
        host_keys: every host key of the server; the programs prefer different types.
    """

    host: Host
    port: Port
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
    path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$")]
    host_keys: Annotated[list[SshPublicKey], Field(min_length=1)]


class OffsiteSettings(Strict):
    """The off-site side: a machine, a bucket or a storage box."""

    kind: Literal["machine", "s3", "sftp"]
    s3: S3Settings | None
    sftp: SftpSettings | None
    address: Host | None
    sftp_port: Port
    rest_port: Port
    copies_calendar: Calendar
    copies_days: Annotated[int, Field(ge=7, le=3650)]
    free_mb: Annotated[int, Field(ge=0)]
    deploy_repository: bool

    @model_validator(mode="after")
    def _what_keeps_the_backups_is_described(self) -> Self:
        kinds = {
            "s3": (self.s3, "endpoint, bucket and region"),
            "sftp": (self.sftp, "host, port, user, path and host_keys"),
        }
        for kind, (described, keys) in kinds.items():
            if self.kind == kind and described is None:
                raise ValueError(f"offsite_kind {kind!r} needs offsite_{kind} with {keys}")
            if self.kind != kind and described:
                raise ValueError(f"offsite_{kind} needs offsite_kind {kind!r}, but it is {self.kind!r}; allowed: None")
        return self


class BackupsSettings(Strict):
    """Backups and the drill that proves them."""

    offsite: str | None
    archive_timeout_s: Annotated[int, Field(ge=10, le=3600)]
    wal_stream: bool
    rto_budget_s: Seconds
    rpo_budget_s: Seconds
    repo1_days: Annotated[int, Field(ge=7, le=3650)]
    repo2_days: Annotated[int, Field(ge=7, le=3650)]
    files_days: Annotated[int, Field(ge=7, le=3650)]
    processes: Annotated[int, Field(ge=1, le=64)]
    full_calendar: Calendar
    diff_calendar: Calendar
    files_calendar: Calendar
    drill_calendar: Calendar
    random_delay_s: Annotated[int, Field(ge=0, le=86400)]
    drill_port: Port
    drill_margin_mb: Megabytes


class EdgeSettings(Strict):
    """The ingress. What belongs to one service is in its service file (`minipc/config/service.py`)."""

    acme: Literal["internal", "staging", "production", "other"]
    acme_url: TrustedUrl | None
    acme_root: Annotated[str, Field(pattern=r"^-----BEGIN CERTIFICATE-----\n")] | None
    acme_email: str | None
    http3: bool
    hsts_days: Annotated[int, Field(ge=0, le=3650)]
    header_timeout_s: Annotated[int, Field(ge=1, le=60)]
    body_timeout_s: Annotated[int, Field(ge=1, le=3600)]
    log_days: Days

    @model_validator(mode="after")
    def _another_acme_server_is_named(self) -> Self:
        if self.acme == "other" and self.acme_url is None:
            raise ValueError("edge_acme 'other' needs edge_acme_url, the directory of the ACME server")
        if self.acme != "other" and (self.acme_url or self.acme_root):
            raise ValueError(
                f"edge_acme_url and edge_acme_root need edge_acme 'other', but it is {self.acme!r}; allowed: None"
            )
        return self


class DnsRecord(Strict):
    """A public name; its content is the machine's public address."""

    name: Domain
    type: Literal["A", "AAAA"]


class DnsSettings(Strict):
    """The public name's records at the DNS provider."""

    provider: DnsProvider
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str]
    zone: Domain | None
    records: list[DnsRecord]
    ttl_s: Annotated[int, Field(ge=60, le=86400)]
    cutover_ttl_s: Annotated[int, Field(ge=60, le=86400)]
    ipv4: Address | None
    ipv6: Address | None
    follow: bool
    follow_every_s: Annotated[int, Field(ge=60, le=3600)]
    address_url: TrustedUrl
    api_url: TrustedUrl | None

    @model_validator(mode="after")
    def _records_are_in_the_zone(self) -> Self:
        if self.provider == "none":
            return self
        if self.zone is None or not self.records:
            raise ValueError(
                f"dns_provider {self.provider!r} needs dns_zone, and a public service or at least one of dns_records"
            )
        for record in self.records:
            if record.name != self.zone and not record.name.endswith(f".{self.zone}"):
                raise ValueError(
                    f"{record.name!r} is not in the zone {self.zone!r}; allowed: names in it (the domains of the "
                    "services, or dns_records if you list the records yourself)"
                )
            if self.records.count(record) > 1:
                raise ValueError(f"{record.name!r} {record.type} is in dns_records twice")
        return self

    @model_validator(mode="after")
    def _values_fit_each_other(self) -> Self:
        if self.cutover_ttl_s > self.ttl_s:
            raise ValueError("dns_cutover_ttl_s is greater than dns_ttl_s; allowed: at most dns_ttl_s")
        if self.follow and self.provider == "none":
            raise ValueError("dns_follow needs a dns_provider")
        for key, version in (("ipv4", 4), ("ipv6", 6)):
            address = getattr(self, key)
            if address and ip_address(address).version != version:
                raise ValueError(f"dns_{key} = {address!r} is not an IPv{version} address")
        return self


class PrometheusSettings(Strict):
    """What is measured, and for how long it is kept."""

    retention_days: Days
    retention_mb: Annotated[int, Field(ge=256)]
    scrape_interval_s: Annotated[int, Field(ge=5, le=60)]
    memory_mb: Annotated[int, Field(ge=96)]
    set_memory_mb: Annotated[int, Field(ge=256)]
    pace: Annotated[int, Field(ge=1, le=10)]


class AlertmanagerSettings(Strict):
    """Who hears of it."""

    channels: list[AnyChannel]
    unattended: bool
    watchdog: bool
    digest_day: Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"] | None
    runbook_url: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [channel.name for channel in self.channels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"alertmanager_channels: the name {twice[0]!r} is used twice")
        return self


class LokiSettings(Strict):
    """Logs, searchable."""

    port: Port
    grpc_port: Port
    days: Annotated[int, Field(ge=30, le=3650)]
    max_disk_mb: Annotated[int, Field(ge=512)]
    memory_mb: Annotated[int, Field(ge=128)]


class SyslogNgSettings(Strict):
    """Logs on their way."""

    loki_url: TrustedUrl | None
    buffer_mb: Annotated[int, Field(ge=16, le=65536)]


class WatcherSettings(Strict):
    """The external monitor, on the off-site machine."""

    urls: list[TrustedUrl] | None
    address: Address | None
    port: Port
    retention_mb: Annotated[int, Field(ge=256)]
    disk_free_percent: Annotated[int, Field(ge=1, le=50)]
    copy_age_s: Annotated[int, Field(ge=3600)] | None


class GrafanaSettings(Strict):
    """Dashboards."""

    address: Address
    port: Port
    memory_mb: Annotated[int, Field(ge=128)]


class BundleSettings(Strict):
    """The break-glass bundle."""

    max_age_days: Days


class Settings(Strict):
    """Everything that may be set, by component."""

    environment: EnvironmentName
    secrets: SecretsSettings
    bundle: BundleSettings
    host: HostSettings
    vpn: VpnSettings
    firewall: FirewallSettings
    postgres: PostgresSettings
    offsite: OffsiteSettings
    watcher: WatcherSettings
    backups: BackupsSettings
    redis: RedisSettings
    k3s: K3sSettings
    argocd: ArgocdSettings
    services: ServicesSettings
    edge: EdgeSettings
    dns: DnsSettings
    prometheus: PrometheusSettings
    alertmanager: AlertmanagerSettings
    loki: LokiSettings
    syslog_ng: SyslogNgSettings
    grafana: GrafanaSettings

    @property
    def where(self) -> Environment:
        """Return the environment that the settings are for."""
        return named(self.environment)

    @property
    def has_offsite(self) -> bool:
        """Return whether backups leave the machine: to an off-site host, a bucket or a storage box."""
        return self.backups.offsite is not None or self.offsite.kind != "machine"

    @model_validator(mode="after")
    def _there_is_one_off_site_side(self) -> Self:
        if self.offsite.kind != "machine" and self.backups.offsite:
            place = {"s3": "a bucket", "sftp": "a storage box"}[self.offsite.kind]
            raise ValueError(
                f"backups_offsite is {self.backups.offsite!r}, but offsite_kind {self.offsite.kind!r} keeps the "
                f"backups in {place}; allowed: None"
            )
        return self

    @model_validator(mode="after")
    def _http3_finds_its_port_open(self) -> Self:
        if self.edge.http3 and 443 not in self.firewall.public_udp:
            raise ValueError("edge_http3 needs 443 in firewall_public_udp")
        return self

    @model_validator(mode="after")
    def _podman_is_for_the_lab(self) -> Self:
        if self.services.runtime == "podman" and not self.where.disposable:
            raise ValueError("services_runtime 'podman' is for the lab; in production: 'k3s'")
        return self

    @model_validator(mode="after")
    def _somebody_is_notified(self) -> Self:
        if not (self.alertmanager.channels or self.alertmanager.unattended or self.where.disposable):
            raise ValueError(
                "alertmanager_channels is empty: nobody would learn of a failure; add a channel, or set "
                "alertmanager_unattended = True to accept that"
            )
        return self

    @model_validator(mode="after")
    def _the_tunnel_swallows_nothing(self) -> Self:
        kept = {
            **dict.fromkeys(self.firewall.operator_networks, "firewall_operator_networks"),
            **dict.fromkeys(self.postgres.client_networks, "postgres_client_networks"),
            self.host.service_address: "host_service_address",
        }
        claims = [(self.vpn.network, "vpn_network"), (self.vpn.network_ipv6, "vpn_network_ipv6")]
        claims += [
            (ip, f"vpn_peers: allowed_ips of {peer.name!r}") for peer in self.vpn.peers for ip in peer.allowed_ips
        ]
        for claim, whose in claims:
            for other, key in kept.items():
                mine, theirs = ip_network(claim), ip_network(other)
                if mine.version == theirs.version and mine.overlaps(theirs):
                    raise ValueError(
                        f"{whose}, {claim}, overlaps {key} {other}: the tunnel would hide it; allowed: unused "
                        f"addresses, such as those of {self.vpn.network}"
                    )
        return self

    @model_validator(mode="after")
    def _somebody_can_still_come_in(self) -> Self:
        if self.firewall.operator_access == "vpn" and not self.vpn.peers:
            raise ValueError(
                "firewall_operator_access 'vpn' without vpn_peers would lock everybody out; add a client: "
                "`minipc vpn add NAME`"
            )
        return self
