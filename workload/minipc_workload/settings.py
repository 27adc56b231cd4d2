"""Settings come from environment variables only. A secret NAME may also come from the file named by NAME_FILE."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minipc_workload import WORKERS
from minipc_workload.errors import SettingsError


@dataclass(frozen=True)
class WorkerSettings:
    """How often one worker runs and when it counts as stale, seconds; the port of its /metrics."""

    interval_s: int
    stale_s: int
    metrics_port: int


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. Secrets are kept out of the repr. Units are in the names."""

    database_host: str
    database_port: int
    database_name: str
    database_user: str
    database_password: str = field(repr=False)
    redis_host: str
    redis_port: int
    redis_username: str | None
    redis_password: str | None = field(repr=False)
    api_host: str
    api_port: int
    metrics_host: str
    environment: str
    version: str
    log_level: str
    sentry_dsn: str | None = field(repr=False)
    upstream_url: str | None = field(repr=False)
    push_gateway_url: str | None = field(repr=False)
    cache_ttl_s: int
    fresh_s: int
    stale_s: int
    heartbeat_max_age_s: int
    health_budget_ms: int
    workers: Mapping[str, WorkerSettings]

    @property
    def secrets(self) -> list[str]:
        """Values that must never be printed. A URL may carry a key in it, and a DSN's user part is one."""
        key = re.match(r"https?://([^:@/]+)[:@]", self.sentry_dsn or "")
        values = [
            self.database_password,
            self.redis_password,
            self.sentry_dsn,
            key and key.group(1),
            self.upstream_url,
            self.push_gateway_url,
        ]
        return [value for value in values if value]


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the settings.

    Raises:
        SettingsError: variables are missing or malformed; all of them are named at once.
    """
    env = _Reader(environ)
    defaults = {"ingest": (60, 300, 9201), "forecast": (60, 600, 9202), "push": (5, 300, 9203)}
    settings = Settings(
        database_host=env.text("DATABASE_HOST"),
        database_port=env.number("DATABASE_PORT", 5432),
        database_name=env.text("DATABASE_NAME"),
        database_user=env.text("DATABASE_USER"),
        database_password=env.secret("DATABASE_PASSWORD"),
        redis_host=env.text("REDIS_HOST"),
        redis_port=env.number("REDIS_PORT", 6379),
        redis_username=env.text("REDIS_USERNAME", "") or None,
        redis_password=env.secret("REDIS_PASSWORD", "") or None,
        api_host=env.text("API_HOST", "127.0.0.1"),
        api_port=env.number("API_PORT", 30080),
        metrics_host=env.text("METRICS_HOST", "127.0.0.1"),
        environment=env.text("ENVIRONMENT", "development"),
        version=env.text("VERSION", "unknown"),
        log_level=env.choice("LOG_LEVEL", ("INFO", "DEBUG", "WARNING", "ERROR")),
        sentry_dsn=env.secret("SENTRY_DSN", "") or None,
        upstream_url=env.secret("UPSTREAM_URL", "") or None,
        push_gateway_url=env.secret("PUSH_GATEWAY_URL", "") or None,
        cache_ttl_s=env.number("CACHE_TTL_S", 15),
        fresh_s=env.number("FRESH_S", 180),
        stale_s=env.number("STALE_S", 600),
        heartbeat_max_age_s=env.number("HEARTBEAT_MAX_AGE_S", 600),
        health_budget_ms=env.number("HEALTH_BUDGET_MS", 100),
        workers={
            name: WorkerSettings(
                interval_s=env.number(f"{name.upper()}_INTERVAL_S", defaults[name][0]),
                stale_s=env.number(f"{name.upper()}_STALE_S", defaults[name][1]),
                metrics_port=env.number(f"METRICS_PORT_{name.upper()}", defaults[name][2]),
            )
            for name in WORKERS
        },
    )
    if env.problems:
        raise SettingsError(
            "; ".join(env.problems) + ". Set them in the environment (under systemd: /etc/workload/env)."
        )
    return settings


class _Reader:
    """Reads variables and collects what is wrong, so that one run names everything."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        value = self.environ.get(name) or default
        if value is None:
            self.problems.append(f"{name} is not set")
            return ""
        return value

    def number(self, name: str, default: int) -> int:
        value = self.environ.get(name) or str(default)
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            self.problems.append(f"{name} must be a whole number above 0")
            return default
        return int(value)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.environ.get(name) or allowed[0]
        if value not in allowed:
            self.problems.append(f"{name} must be one of {', '.join(allowed)}")
        return value

    def secret(self, name: str, default: str | None = None) -> str:
        file = self.environ.get(f"{name}_FILE")
        if file is None:
            if not self.environ.get(name) and default is None:
                self.problems.append(f"{name} (or {name}_FILE) is not set")
            return self.environ.get(name) or default or ""
        try:
            return Path(file).read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{name}_FILE names {file}, which can't be read ({type(error).__name__})")
            return ""
