"""Settings of the reference service: what is missing is named, what is secret is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from minipc_workload.settings import SettingsError, load, reveal

REQUIRED = {
    "DATABASE_HOST": "10.88.0.1",
    "DATABASE_NAME": "parking",
    "DATABASE_USER": "parking",
    "DATABASE_PASSWORD": "hidden-1",
    "REDIS_HOST": "10.88.0.1",
}


def test_defaults() -> None:
    settings = load(REQUIRED)
    assert (settings.database_port, settings.redis_port, settings.api_port) == (5432, 6379, 30080)
    assert (settings.heartbeat_max_age_s, settings.health_budget_ms, settings.sentry_dsn) == (600, 100, None)
    assert load(REQUIRED | {"API_PORT": ""}).api_port == 30080


@pytest.mark.parametrize("empty", [{}, dict.fromkeys(REQUIRED, "")])
def test_everything_that_is_missing_is_named_at_once(empty: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="/etc/workload/env") as caught:
        load(empty)
    for name in REQUIRED:
        assert f"{name} is not set" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("DATABASE_PORT", "five"), ("API_PORT", "-1"), ("PUSH_STALE_S", "1.5"), ("LOG_LEVEL", "LOUD")]
)
def test_a_malformed_variable_is_named_without_its_value(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name) as caught:
        load(REQUIRED | {name: value})
    assert value not in str(caught.value)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from a file \n")
    environment = {key: value for key, value in REQUIRED.items() if key != "DATABASE_PASSWORD"}
    assert reveal(load(environment | {"DATABASE_PASSWORD_FILE": str(file)}).database_password) == "from a file "
    with pytest.raises(SettingsError, match=r"DATABASE_PASSWORD_FILE names .*/nowhere"):
        load(environment | {"DATABASE_PASSWORD_FILE": str(tmp_path / "nowhere")})


def test_secrets_are_not_in_the_repr() -> None:
    secret = dict.fromkeys(["REDIS_PASSWORD", "SENTRY_DSN", "UPSTREAM_URL", "PUSH_GATEWAY_URL"], "hidden-2")
    assert "hidden" not in repr(load(REQUIRED | secret))
