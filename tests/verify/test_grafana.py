"""Checks of Grafana: dashboards, data sources and access."""

from __future__ import annotations

import json
import shlex

import pytest

from minipc.checks import load as load_checks
from minipc.secrets import load
from minipc.secrets.catalogue import GRAFANA_PASSWORD
from tests.verify.conftest import eventually, not_exercised

UNIT = "grafana.service"


@pytest.fixture(scope="session", autouse=True)
def _is_here(sh):
    if sh(f"systemctl cat {UNIT} >/dev/null 2>&1 && echo yes || echo no") != "yes":
        not_exercised("the artifact grafana is not available")


@pytest.fixture(scope="session")
def grafana(script, sh, settings, environment):
    """Return a function that sends a request to Grafana, as admin or without a login: status and answer."""
    base = f"http://{settings.grafana.address}:{settings.grafana.port}"
    password = load(environment.name, [GRAFANA_PASSWORD])[GRAFANA_PASSWORD].reveal()
    healthy = f"curl -s -o /dev/null -w '%{{http_code}}' {base}/api/health || true"
    assert eventually(lambda: sh(healthy) == "200", within_s=120, every_s=1), "not healthy within 120 s"

    def request(path, as_admin=True):
        user = f'user = "admin:{password}"\n' if as_admin else ""
        command = f"curl -s -w '\\n%{{http_code}}' --max-time 20 --config - {shlex.quote(base + path)}"
        answer, _, code = script(f"{command} <<'END'\n{user}END").rpartition("\n")
        return int(code), answer

    return request


def test_nobody_sees_anything_without_logging_in(grafana):
    """Grafana shows nothing without a login."""
    for path in ("/api/search", "/api/datasources", "/api/dashboards/uid/minipc-questions"):
        assert grafana(path, as_admin=False)[0] == 401, path


def test_the_data_sources_are_those_of_the_machine_and_answer(grafana):
    """Grafana's data sources are the configured ones, and they answer."""
    code, answer = grafana("/api/datasources")
    assert code == 200
    assert {source["uid"]: source["readOnly"] for source in json.loads(answer)} == {"prometheus": True, "loki": True}
    for uid in ("prometheus", "loki"):
        code, answer = grafana(f"/api/datasources/uid/{uid}/health")
        assert (code, json.loads(answer)["status"]) == (200, "OK"), answer


def test_the_dashboards_are_there_in_the_order_of_asking(grafana, settings):
    """Grafana has the dashboards, with the questions in the right order."""
    code, answer = grafana("/api/dashboards/uid/minipc-questions")
    assert code == 200
    panels = json.loads(answer)["dashboard"]["panels"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == [check.question for check in load_checks(settings.services.declared).checks]
    for name in ("logs", "service"):
        assert grafana(f"/api/dashboards/uid/minipc-{name}")[0] == 200


def test_the_public_does_not_reach_it(public, settings, listeners):
    """Grafana is not reachable from the public side."""
    addresses = {address for address, port, _ in listeners if port == settings.grafana.port}
    assert addresses == {settings.grafana.address}
    done = public.run("curl", "-s", "--max-time", "2", f"http://{public.ipv4}:{settings.grafana.port}/api/health")
    assert done.returncode != 0


def test_its_password_is_its_own(sh):
    """Only Grafana's own account can read its password."""
    assert sh("stat -c '%U %a' /etc/grafana/admin_password") == "grafana 600"


def test_the_unit_is_bounded_and_confined(units, exposure, settings):
    """Grafana has a memory limit and runs with few privileges."""
    properties = units(UNIT)
    assert (properties["UnitFileState"], properties["Restart"]) == ("enabled", "always")
    assert int(properties["MemoryMax"]) == settings.grafana.memory_mb * 1024**2 * 3 // 2
    assert exposure(UNIT) < 2.5
