"""Settings from environment variables. A secret NAME may also come from the file that NAME_FILE names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

SECRETS = ("DATABASE_PASSWORD", "REDIS_PASSWORD", "SENTRY_DSN", "UPSTREAM_URL", "PUSH_GATEWAY_URL")
Positive = Annotated[int, Field(gt=0)]


class SettingsError(Exception):
    """The environment is incomplete or malformed. Names each variable, never a value."""


class Settings(BaseModel):
    """All settings; variable names are the field names in upper case. Units are in the names."""

    model_config = ConfigDict(frozen=True, alias_generator=str.upper)

    database_host: str
    database_port: Positive = 5432
    database_name: str
    database_user: str
    database_password: SecretStr
    redis_host: str
    redis_port: Positive = 6379
    redis_username: str | None = None
    redis_password: SecretStr | None = None
    api_host: str = "127.0.0.1"
    api_port: Positive = 30080
    metrics_host: str = "127.0.0.1"
    metrics_port_ingest: Positive = 9201
    metrics_port_forecast: Positive = 9202
    metrics_port_push: Positive = 9203
    ingest_interval_s: Positive = 60
    forecast_interval_s: Positive = 60
    push_interval_s: Positive = 5
    ingest_stale_s: Positive = 300
    forecast_stale_s: Positive = 600
    push_stale_s: Positive = 300
    environment: str = "development"
    version: str = "unknown"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    sentry_dsn: SecretStr | None = None
    upstream_url: SecretStr | None = None
    push_gateway_url: SecretStr | None = None
    cache_ttl_s: Positive = 15
    fresh_s: Positive = 180
    stale_s: Positive = 600
    heartbeat_max_age_s: Positive = 600
    health_budget_ms: Positive = 100


def reveal(secret: SecretStr | None) -> str | None:
    """Return the value of a secret, None if it is not set."""
    return secret.get_secret_value() if secret else None


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings. An empty variable counts as not set.

    Raises SettingsError if variables are missing or malformed; it names all of them at once.
    """
    values = {name: value for name, value in environ.items() if value}
    problems = []
    for name in SECRETS:
        if file := values.get(f"{name}_FILE"):
            try:
                values[name] = Path(file).read_text(encoding="utf-8").rstrip("\n")
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{name}_FILE names {file}, which cannot be read ({type(error).__name__})")
                values[name] = "unreadable"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for each in error.errors(include_input=False, include_context=False, include_url=False):
            problem = "is not set" if each["type"] == "missing" else f"is not valid: {each['msg']}"
            problems.append(f"{each['loc'][0]} {problem}")
    if problems:
        raise SettingsError("; ".join(problems) + ". Set them in the environment (under systemd: /etc/workload/env).")
    return settings
