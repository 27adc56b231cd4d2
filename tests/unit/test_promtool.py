"""The rules with promtool, on this computer: valid, silent where there is nothing to report, and only then."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from minipc.checks import load
from minipc.checks.probes import values as values_of_services
from minipc.checks.rule_files import values
from minipc.checks.rules import NO_DATA, dump, of_questions, of_services
from minipc.checks.schema import seconds
from minipc.checks.subjects import subjects
from minipc.config import load as load_config
from minipc.config.service import Service
from minipc.core import templating
from minipc.core.paths import ROOT
from minipc.core.ports import MONITORING
from tests import promtool
from tests.alert_cases import CASES, SHOP, promtool_files, rules_of, silence_file

# As unlike as possible: no metrics, other paths, a worker, a volume, a cron job.
PLAIN = Service.model_validate(
    {
        "name": "plain",
        "image": "example.org/plain",
        "ingress": {"domains": ["plain.example.org"], "node_port": 30091, "audience": "operator"},
        "processes": {"api": {"port": 8000, "replicas": 2}, "worker": {"command": ["work"]}},
        "cron": {"nightly": {"schedule": "0 3 * * *", "alert_after": "26h", "command": ["nightly"]}},
        "health": {"live": "/healthz", "ready": "/healthz"},
        "volumes": {"uploads": {"mount": "/uploads", "size_gb": 20, "data_class": "must recover"}},
    }
)
MACHINES = {"none": (), "plain": (PLAIN,), "shop": (SHOP,), "both": (PLAIN, SHOP)}


def evaluate(folder: Path, rules: bytes, cases: str) -> None:
    promtool.evaluate(folder, {"rules.yml": rules.decode(), "cases.test.yml": cases})


@pytest.mark.parametrize("name", CASES)
def test_alerts_fire_when_they_should_and_only_then(name, tmp_path):
    promtool.evaluate(tmp_path, promtool_files(rules_of(name), CASES[name]))


@pytest.mark.parametrize("runtime", ["k3s", "podman"])
@pytest.mark.parametrize("name", MACHINES)
def test_prometheus_accepts_what_is_rendered(name, runtime, tmp_path):
    settings = load_config("lab", services_folders=[])
    services = settings.services.model_copy(update={"declared": MACHINES[name], "runtime": runtime})
    settings = settings.model_copy(update={"services": services})
    variables = values(settings) | values_of_services(settings) | {"ports": MONITORING}
    templates = templating.environment(ROOT / "templates/prometheus")
    for file in ("services.yml", "blackbox.yml"):
        (tmp_path / file).write_text(templates.get_template(f"{file}.j2").render(**variables))
    (tmp_path / "checks.yml").write_bytes(dump(of_questions(load(MACHINES[name]), "x", MACHINES[name])))
    (tmp_path / "own.yml").write_bytes(dump(of_services(MACHINES[name], "x")))
    main = {"scrape_config_files": ["services.yml"], "rule_files": ["checks.yml", "own.yml"]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(main))
    promtool.run(tmp_path, "check", "config", "--syntax-only", "prometheus.yml")
    promtool.run(tmp_path, "check", "rules", "checks.yml", "own.yml")


def well(service: Service) -> dict[str, str]:
    """Return what is measured of a service without metrics that is well, for 30 minutes."""
    found = {f'minipc_service_answer_within_seconds{{service="{service.name}"}}': "2x120"}
    for path in ("live", "ready"):
        for via in ("ingress", "direct"):
            labels = f'job="probe",service="{service.name}",via="{via}",path="{path}"'
            found |= {f"probe_success{{{labels}}}": "1x120", f"probe_duration_seconds{{{labels}}}": "0.1x120"}
    for name, process in service.processes.items():
        labels = f'service="{service.name}",process="{name}"'
        found |= {
            f"minipc_process_ready{{{labels}}}": f"{process.replicas}x120",
            f"minipc_process_wanted{{{labels}}}": f"{process.replicas}x120",
            f"minipc_process_restarts{{{labels}}}": "0x120",
        }
    for name in service.cron:
        labels = f'service="{service.name}",cron="{name}"'
        found |= {
            f"minipc_cron_last_success_timestamp_seconds{{{labels}}}": "0x120",
            f"minipc_cron_alert_after_seconds{{{labels}}}": "93600x120",
        }
    for name in service.volumes:
        labels = f'service="{service.name}",volume="{name}"'
        found |= {f"minipc_volume_bytes{{{labels}}}": "5x120", f"minipc_volume_limit_bytes{{{labels}}}": "100x120"}
    return found


MACHINE = {
    "pg_up": "1x120",
    'redis_up{job="redis"}': "1x120",
    'minipc_backup_last_success_timestamp_seconds{repo="repo1"}': "0x120",
    'minipc_drill_last_pass_timestamp_seconds{repo="repo1"}': "0x120",
    "pg_stat_archiver_failed_count": "0x120",
    'node_filesystem_avail_bytes{mountpoint="/",fstype="ext4"}': "50x120",
    'node_filesystem_size_bytes{mountpoint="/",fstype="ext4"}': "100x120",
    'node_memory_MemAvailable_bytes{node="a"}': "50x120",
    'node_memory_MemTotal_bytes{node="a"}': "100x120",
    'node_systemd_unit_state{name="a.service",state="failed"}': "0x120",
}


def firing(series: dict[str, str], expected: list[dict[str, object]], at: str = "25m") -> str:
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname, service, part, check) (ALERTS{alertstate="firing"})',
                "eval_time": at,
                "exp_samples": expected,
            }
        ],
    }
    return yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [test]})


@pytest.mark.parametrize(
    ("services", "series"), [((), MACHINE), ((PLAIN,), MACHINE | well(PLAIN))], ids=["none", "plain"]
)
def test_a_machine_that_is_well_reports_nothing(services, series, tmp_path):
    rules = dump(of_questions(load(services), "x", services))
    evaluate(tmp_path, rules, firing(series, []))


def test_a_fault_of_one_service_is_its_own(tmp_path):
    other = PLAIN.model_copy(update={"name": "other"})
    services = (other, PLAIN)
    series = MACHINE | well(PLAIN) | well(other)
    series['minipc_process_ready{service="plain",process="worker"}'] = "0x120"
    labels = '{alertname="ProcessDown",check="processes",part="plain/worker",service="plain"}'
    rules = dump(of_questions(load(services), "x", services))
    evaluate(tmp_path, rules, firing(series, [{"labels": labels, "value": 1}]))


def test_a_part_that_is_not_measured_is_named(tmp_path):
    series = MACHINE | well(PLAIN)
    series = {name: values for name, values in series.items() if 'process="worker"' not in name}
    expected = [
        {"labels": f'{{alertname="NoData",check="{check}",part="plain/worker",service="plain"}}', "value": 1}
        for check in ("processes", "restarts")
    ]
    rules = dump(of_questions(load([PLAIN]), "x", [PLAIN]))
    evaluate(tmp_path, rules, firing(series, expected))


def test_a_question_without_an_answer_is_reported(tmp_path):
    asked = [check for check in load([SHOP]).checks if check.expression and check.no_data_after]
    things = Counter({check.id: len(subjects(check.per, [SHOP])) if check.per else 1 for check in asked})
    late = {check.id for check in asked if seconds(check.no_data_after) > 12 * 60}
    assert late
    groups = of_questions(load([SHOP]), "x", [SHOP])["groups"]
    silent = [rule for group in groups for rule in group["rules"] if rule["alert"] == NO_DATA]
    slow = [rule for rule in silent if rule["labels"]["check"] in late]
    soon = {name: count for name, count in things.items() if name not in late}
    for rules, fire, at, evaluation in (silent, soon, "12m", "15s"), (slow, things.keys() & late, "9d", "1h"):
        text = dump({"groups": [{"name": "no data", "rules": rules}]})
        evaluate(tmp_path, text, silence_file({name: things[name] for name in fire}, at, evaluation))
