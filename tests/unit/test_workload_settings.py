"""Settings from the environment: what is missing is named, what is secret is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from minipc_workload.errors import SettingsError
from minipc_workload.settings import load

REQUIRED = {
    "DATABASE_HOST": "10.88.0.1",
    "DATABASE_NAME": "workload",
    "DATABASE_USER": "workload",
    "DATABASE_PASSWORD": "hidden-1",
    "REDIS_HOST": "10.88.0.1",
}


def test_defaults() -> None:
    settings = load(REQUIRED)
    assert (settings.database_port, settings.redis_port, settings.api_host, settings.api_port) == (
        5432,
        6379,
        "127.0.0.1",
        30080,
    )
    assert settings.heartbeat_max_age_s == 600
    assert settings.health_budget_ms < 200
    assert settings.sentry_dsn is None
    assert {name: worker.metrics_port for name, worker in settings.workers.items()} == {
        "ingest": 9201,
        "forecast": 9202,
        "push": 9203,
    }


def test_everything_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load({})
    for name in REQUIRED:
        assert name in str(caught.value)
    assert "/etc/workload/env" in str(caught.value)


@pytest.mark.parametrize("name", REQUIRED)
def test_an_empty_variable_is_missing(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load(REQUIRED | {name: ""})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_PORT", "five"),
        ("API_PORT", "-1"),
        ("CACHE_TTL_S", "0"),
        ("PUSH_STALE_S", "1.5"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_a_malformed_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load(REQUIRED | {name: value})


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from a file \n")
    environment = {key: value for key, value in REQUIRED.items() if key != "DATABASE_PASSWORD"}
    assert load(environment | {"DATABASE_PASSWORD_FILE": str(file)}).database_password == "from a file "
    with pytest.raises(SettingsError, match=r"DATABASE_PASSWORD_FILE names .*/nowhere"):
        load(environment | {"DATABASE_PASSWORD_FILE": str(tmp_path / "nowhere")})


def test_secrets_are_known_and_not_in_the_repr() -> None:
    settings = load(
        REQUIRED
        | {
            "REDIS_PASSWORD": "hidden-2",
            "SENTRY_DSN": "https://hidden-3@sentry.example/5",
            "UPSTREAM_URL": "https://source.example/?key=hidden-4",
        }
    )
    assert "hidden" not in repr(settings)
    assert {"hidden-1", "hidden-2", "hidden-3"} < set(settings.secrets)
    assert any("hidden-4" in secret for secret in settings.secrets)
