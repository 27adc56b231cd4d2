"""The systemd units and the environment file, rendered: complete, and read back as they were meant."""

from __future__ import annotations

import configparser
import re
from typing import Any

import pytest
from jinja2 import UndefinedError
from minipc_workload.settings import load

from minipc.operations.files import File, render

VALUES: dict[str, Any] = {
    "environment": "lab",
    "version": "1.2.3",
    "database_host": "10.88.0.1",
    "database_port": 5432,
    "database_name": "workload",
    "database_user": "workload",
    "database_password": "p\"a\\s$s `w`'d #%n ${HOME}",
    "redis_host": "10.88.0.1",
    "redis_port": 6379,
    "redis_username": "workload",
    "redis_password": "x\\",
    "port": 30080,
    "metrics_ports": {"ingest": 9301, "forecast": 9302, "push": 9303},
    "worker_stale_s": 601,
    "sentry_dsn": None,
    "install_dir": "/opt/workload",
}
UNITS = ["workload-migrate.service", "workload-api.service", "workload-worker@.service"]


def rendered(template: str, **values: Any) -> str:
    entry = render("workload", File(template, "/there"), VALUES | values)
    assert isinstance(entry, File)
    assert entry.content is not None
    return entry.content.decode()


def environment(text: str) -> dict[str, str]:
    """Reads the file as systemd does: double quotes, in which a backslash keeps the next of \" \\ ` $ as it is."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, value = re.fullmatch(r'([A-Z0-9_]+)="((?:[^"\\]|\\["\\`$])*)"', line).groups()  # type: ignore[union-attr]
            found[name] = re.sub(r'\\(["\\`$])', r"\1", value)
    return found


def test_the_environment_file_gives_the_settings() -> None:
    settings = load(environment(rendered("env.j2", sentry_dsn="https://k@sentry.example/1")))
    assert settings.database_password == VALUES["database_password"]
    assert settings.redis_password == "x\\"
    assert settings.heartbeat_max_age_s == 601
    assert settings.sentry_dsn == "https://k@sentry.example/1"
    assert (settings.environment, settings.version, settings.api_port) == ("lab", "1.2.3", 30080)
    assert {name: worker.metrics_port for name, worker in settings.workers.items()} == VALUES["metrics_ports"]


def test_no_dsn_no_sentry() -> None:
    assert load(environment(rendered("env.j2"))).sentry_dsn is None


@pytest.mark.parametrize("unit", UNITS)
def test_units_run_hardened_as_the_workload_user(unit: str) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(rendered(f"{unit}.j2"))
    service = parser["Service"]
    for key, value in {
        "User": "workload",
        "EnvironmentFile": "/etc/workload/env",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "CapabilityBoundingSet": "",
    }.items():
        assert service[key] == value
    assert "PYTHONPATH=/opt/workload" in service["Environment"]
    assert "minipc_workload" in service["ExecStart"]


@pytest.mark.parametrize("name", ["database_password", "metrics_ports", "install_dir"])
def test_a_missing_value_is_an_error(name: str) -> None:
    template = "workload-api.service.j2" if name == "install_dir" else "env.j2"
    values = {key: value for key, value in VALUES.items() if key != name}
    with pytest.raises(Exception, match=name) as caught:
        render("workload", File(template, "/there"), values)
    assert isinstance(caught.value.__cause__ or caught.value.__context__, UndefinedError)
