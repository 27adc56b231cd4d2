"""What may be configured. `group_data/all.py` holds the values, with unit, default and reason.

A component's settings are the keys that start with its name: `redis_maxmemory_mb` is `Settings.redis.maxmemory_mb`.
No defaults here: every tunable is written once, in `group_data/`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from minipc.config.types import (
    Address,
    Cidr,
    Days,
    Domain,
    Interface,
    Megabytes,
    Percent,
    Port,
    Seconds,
    SqlName,
    SshPublicKey,
    Url,
    UserName,
)
from minipc.secrets.settings import SecretsSettings


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


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
    reboot_at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] | None


class FirewallSettings(Strict):
    """Which side is which, and what is open on it."""

    public_interfaces: list[Interface]
    operator_interfaces: list[Interface]
    operator_networks: Annotated[list[Cidr], Field(min_length=1)]
    public_tcp: list[Port]
    operator_tcp: list[Port]


class PostgresRole(Strict):
    """A login role; its password is the secret `postgres.password.NAME`."""

    name: SqlName
    memberships: list[SqlName]


class PostgresDatabase(Strict):
    """A database and the role that owns it."""

    name: SqlName
    owner: SqlName


class PostgresSettings(Strict):
    """PostgreSQL."""

    port: Port
    databases: list[PostgresDatabase]
    roles: list[PostgresRole]
    client_networks: list[Cidr]
    shared_buffers_percent: Percent
    max_connections: Annotated[int, Field(ge=20, le=1000)]
    slow_statement_ms: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _owners_are_roles(self) -> Self:
        names = [role.name for role in self.roles]
        for database in self.databases:
            if database.owner not in names:
                raise ValueError(f"owner {database.owner!r} of database {database.name!r} is not among the roles {names}")
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


class WorkloadSettings(Strict):
    """The service."""

    runtime: Literal["k3s", "stand-in"]
    port: Port
    worker_stale_s: Seconds
    metrics_ports: dict[str, Port]
    sentry: bool


class EdgeSettings(Strict):
    """The public door."""

    domain: Domain
    acme: Literal["internal", "staging", "production"]
    acme_email: str | None
    upstream: Annotated[str, Field(pattern=r"^[0-9.]+:\d+$")]
    log_days: Days


class Settings(Strict):
    """Everything that may be set, by component."""

    environment: Literal["lab", "production"]
    secrets: SecretsSettings
    host: HostSettings
    firewall: FirewallSettings
    postgres: PostgresSettings
    redis: RedisSettings
    workload: WorkloadSettings
    edge: EdgeSettings
