"""What Prometheus asks of services, and what it takes from them: `templates/prometheus/services.yml.j2`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from minipc.checks.probes import modules, probes
from minipc.checks.probes import values as values_of_services
from minipc.checks.rule_files import values
from minipc.config import load
from minipc.config.service import Service
from minipc.core import templating
from minipc.core.paths import ROOT
from minipc.core.ports import MONITORING
from tests.alert_cases import SHOP


def scrapes(services: tuple[Service, ...], runtime: str) -> list[dict[str, Any]]:
    settings = load("lab", services_folders=[])
    declared = settings.services.model_copy(update={"declared": services, "runtime": runtime})
    settings = settings.model_copy(update={"services": declared})
    variables = values(settings) | values_of_services(settings) | {"ports": MONITORING}
    template = templating.environment(ROOT / "templates/prometheus").get_template("services.yml.j2")
    found: list[dict[str, Any]] = yaml.safe_load(template.render(**variables))["scrape_configs"]
    return found


@pytest.fixture
def services(tmp_path):
    """Return a service whose own question shows the label job_name, and one without metrics."""
    question = """
checks:
  - {id: jobs, question: Does it work?, layer: collection, expression: max by (job_name) (jobs), each: job_name,
     bad_when: "> 1", unit: count, alert: JobsLate, priority: P3, within: 5m, meaning: Late., next: "look at {each}"}
"""
    (tmp_path / "shop.checks.yaml").write_text(question)
    alerts = SHOP.alerts.model_copy(update={"checks": "shop.checks.yaml"})
    plain = SHOP.model_copy(update={"name": "plain", "processes": {"web": SHOP.processes["mail"]}})
    return SHOP.model_copy(update={"folder": str(tmp_path), "alerts": alerts}), plain


@pytest.mark.parametrize("runtime", ["k3s", "podman"])
@pytest.mark.parametrize(
    ("metric", "labels", "kept"),
    [
        ("http_requests_total", {"route": "/api/settings/{user}"}, True),
        ("jobs", {"job_name": "ingest"}, True),
        ("outbox_pending", {}, True),
        ("process_open_fds", {}, True),
        # An alert would take these for the machine's own.
        ("minipc_backup_last_success_timestamp_seconds", {"repo": "repo1"}, False),
        ("minipc_process_ready", {}, False),
        ("pg_up", {}, False),
        ("probe_success", {}, False),
        ("up", {}, False),
        ("ALERTS", {"alertname": "Watchdog"}, False),
        ("service:http_errors:ratio_1h", {}, False),
        # It becomes part of a command that an alert suggests.
        ("jobs", {"job_name": "$(reboot)"}, False),
        ("jobs", {"job_name": "x\nmeaning: all is well"}, False),
    ],
)
def test_what_a_service_measures_is_its_own(services, runtime, metric, labels, kept):
    (job,) = (job for job in scrapes(services, runtime) if job["job_name"].startswith("service-"))
    assert job["sample_limit"]
    dropped = False
    for rule in job["metric_relabel_configs"]:
        found = {"__name__": metric} | labels
        text = rule.get("separator", ";").join(found.get(label, "") for label in rule["source_labels"])
        assert rule["action"] == "drop"
        dropped = dropped or re.fullmatch(rule["regex"], text) is not None
    assert dropped is not kept


def test_service_and_process_are_set_here_and_not_by_the_service(services):
    (cluster,) = (job for job in scrapes(services, "k3s") if job["job_name"].startswith("service-"))
    targets = {rule.get("target_label"): rule for rule in cluster["relabel_configs"]}
    assert targets["service"]["replacement"] == "shop"
    assert targets["process"]["source_labels"] == ["__meta_kubernetes_pod_label_app_kubernetes_io_component"]
    assert "honor_labels" not in cluster
    assert cluster["kubernetes_sd_configs"][0]["namespaces"] == {"names": ["shop"]}
    (host,) = (job for job in scrapes(services, "podman") if job["job_name"].startswith("service-"))
    (target,) = host["static_configs"]
    assert target["targets"] == ["127.0.0.1:30090"]
    assert target["labels"] == {"job": "service", "service": "shop", "process": "web", "__metrics_path__": "/metrics"}


@pytest.mark.parametrize("runtime", ["k3s", "podman"])
def test_without_services_nothing_is_asked(runtime):
    assert scrapes((), runtime) == []


def test_both_paths_are_probed_through_the_ingress_and_past_it():
    asked = {
        (probe.labels["path"], probe.labels["via"]): probe for probe in probes([SHOP]) if "page" not in probe.labels
    }
    assert {key: probe.url for key, probe in asked.items()} == {
        ("live", "ingress"): "https://127.0.0.1:443/healthz",
        ("live", "direct"): "http://127.0.0.1:30090/healthz",
        ("ready", "ingress"): "https://127.0.0.1:443/ready",
        ("ready", "direct"): "http://127.0.0.1:30090/ready",
    }
    assert {probe.domain for probe in asked.values()} == {"shop.example.org"}
    assert {probe.module for probe in probes([SHOP])} <= {module.name for module in modules([SHOP])}


def test_a_service_for_the_operator_is_asked_where_the_operator_is():
    ingress = SHOP.ingress.model_copy(update={"audience": "operator"})
    found = probes([SHOP.model_copy(update={"ingress": ingress})])
    assert {probe.url.split("/")[2] for probe in found if probe.labels["via"] == "ingress"} == {"127.0.0.1:10443"}


def test_an_ingress_that_asks_for_a_login_works_if_it_asks():
    data = SHOP.model_dump(exclude={"folder"})
    data["ingress"]["authentication"] = {"basic": {"user": "me"}}
    data["alerts"]["pages"] = {}
    protected = Service.model_validate(data)
    through = {probe.module for probe in probes([protected]) if probe.labels["via"] == "ingress"}
    assert "protected" in through
    (module,) = (module for module in modules([protected]) if module.name == "protected")
    assert 401 in module.statuses
    assert not [status for status in module.statuses if status >= 500]


def test_a_page_can_refuse_what_it_must_not_contain():
    page = {"path": "/basket", "refuse": "out of (date|stock)"}
    data = SHOP.model_dump(exclude={"folder"})
    data["alerts"]["pages"] = {"basket": page}
    service = Service.model_validate(data)
    (probe,) = (probe for probe in probes([service]) if probe.labels.get("page") == "basket")
    (module,) = (module for module in modules([service]) if module.name == probe.module)
    assert module.refuse == "out of (date|stock)"
    assert probe.labels["alert"] == "yes"
