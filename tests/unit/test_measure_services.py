"""What is measured of the services: from K3s, and from systemd where podman runs them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from minipc_machine import measure_services as program
from minipc_machine.measure_services import CronJob, MeasureSettings, Wanted
from minipc_machine.metrics import text_of
from minipc_machine.program import FailedError

NOW = 1_800_000_000


@pytest.fixture
def settings(tmp_path):
    return MeasureSettings(
        runtime="k3s",
        processes=[Wanted("shop", "web", 2), Wanted("shop", "mail", 1), Wanted("other", "web", 1)],
        cron=[CronJob("shop", "nightly", 93600)],
        answer_within_s={"shop": 2.0},
        state=str(tmp_path / "state.json"),
    )


def pod(namespace, component, *, ready=True, restarts=0, waiting="", reason="", ending=False):
    state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
    metadata = {"namespace": namespace, "labels": {"app.kubernetes.io/component": component}}
    return {
        "metadata": metadata | ({"deletionTimestamp": "2027-01-15T08:00:00Z"} if ending else {}),
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"restartCount": restarts, "state": state}],
            **({"reason": reason} if reason else {}),
        },
    }


@pytest.fixture
def answers(monkeypatch):
    """Return a dict: a part of the command line -> what the program prints, or an error."""
    found = {}

    def run(argv, timeout_s=0, **_):
        text = next(answer for part, answer in found.items() if part in " ".join(argv))
        if isinstance(text, Exception):
            raise text
        return text

    monkeypatch.setattr(program, "run", run)
    return found


PODS = [
    pod("shop", "web", restarts=1),
    pod("shop", "web", ready=False, waiting="CrashLoopBackOff", restarts=4),
    pod("shop", "web", ending=True),
    pod("shop", "migrate"),
    pod("shop", "mail", ready=False, reason="Evicted"),
    pod("stranger", "web"),
]


def cluster(answers, last=None):
    job = {"metadata": {"namespace": "shop", "name": "nightly"}, "status": {"lastSuccessfulTime": last} if last else {}}
    answers["/api/v1/pods"] = json.dumps({"items": PODS})
    answers["/apis/batch/v1/cronjobs"] = json.dumps({"items": [job]})
    answers["/readyz"] = "ok"
    conditions = [[{"type": "Ready", "status": status}] for status in ("True", "False", "Unknown")]
    found = [{"metadata": {"name": f"n{i}"}, "status": {"conditions": each}} for i, each in enumerate(conditions)]
    answers["/api/v1/nodes"] = json.dumps({"items": found})


def test_pods_are_counted_by_service_and_process(settings, answers):
    cluster(answers)
    found = program.processes(settings)
    assert (found["shop", "web"].ready, found["shop", "web"].restarts) == (1, 5)
    assert list(program.lines(settings, "processes")) == [
        "shop/web (CrashLoopBackOff) 0.5",
        "shop/mail (Evicted) 0",
        "other/web 0",
    ]
    text = text_of(program.measured(settings, NOW))
    assert 'minipc_process_ready{service="shop",process="web"} 1\n' in text
    assert 'minipc_process_wanted{service="shop",process="web"} 2\n' in text
    assert 'minipc_process_ready{service="other",process="web"} 0\n' in text
    assert 'minipc_service_answer_within_seconds{service="shop"} 2\n' in text
    assert "stranger" not in text
    assert "migrate" not in text


def test_a_silent_node_is_not_ready(settings, answers):
    cluster(answers)
    assert list(program.lines(settings, "nodes")) == ["n0 1", "n1 0", "n2 0"]
    assert 'minipc_node_ready{name="n2"} 0\n' in text_of(program.measured(settings, NOW))
    assert not program.nodes(replace(settings, runtime="podman"))
    answers["/api/v1/nodes"] = FailedError("refused")
    with pytest.raises(FailedError):
        list(program.lines(settings, "nodes"))


def test_a_node_that_lacks_something_is_named_with_what(settings, answers):
    conditions = [
        {"type": kind, "status": status} for kind, status in (("DiskPressure", "True"), ("MemoryPressure", "False"))
    ]
    answers["/api/v1/nodes"] = json.dumps(
        {"items": [{"metadata": {"name": "n"}, "status": {"conditions": conditions}}]}
    )
    assert list(program.lines(settings, "pressure")) == ["n/DiskPressure 1", "n/MemoryPressure 0"]


@pytest.mark.parametrize(
    ("journal", "state", "why"),
    [
        ("level=fatal msg=... database disk image is malformed", "activating", "its datastore is corrupt"),
        ("file is not a database (26)", "activating", "its datastore is corrupt"),
        ("stopped", "inactive", "the unit is inactive"),
        ("slow", "active", "the API does not answer"),
    ],
)
def test_why_the_cluster_does_not_answer_is_in_its_name(settings, answers, journal, state, why):
    answers |= {"/readyz": FailedError("refused"), "journalctl": journal, "systemctl show k3s": f"{state}\n"}
    assert list(program.lines(settings, "cluster")) == [f"k3s ({why}) 0"]
    answers["/readyz"] = "ok"
    assert list(program.lines(settings, "cluster")) == ["k3s 1"]
    assert list(program.lines(replace(settings, runtime="podman"), "cluster")) == []


def test_a_cron_job_has_its_time_from_when_it_is_known(settings, answers):
    cluster(answers)
    assert program.successes(settings, NOW)["shop", "nightly"] == program.Success(NOW, 0)
    later = program.successes(settings, NOW + 500)["shop", "nightly"]
    assert (later.known_since, later.last) == (NOW, 0)
    cluster(answers, "2027-01-15T08:00:10Z")
    assert program.successes(settings, NOW + 900)["shop", "nightly"].last == NOW + 10
    cluster(answers)
    assert program.successes(settings, NOW + 990)["shop", "nightly"].last == NOW + 10, "also when K3s has forgotten it"
    assert "shop/nightly" in (text := program.Path(settings.state).read_text())
    assert str(NOW + 10) in text


def test_units_of_podman_are_read_from_systemd(settings, answers):
    settings = replace(settings, runtime="podman", processes=settings.processes[:2])
    answers["minipc-shop-nightly.service"] = (
        "Result=success\nExecMainStartTimestamp=@1800000000\nId=minipc-shop-nightly.service\nActiveState=inactive\n"
        f"InactiveEnterTimestamp=@{NOW + 30}\nNRestarts=0\n"
    )
    answers["minipc-shop-web.service minipc-shop-mail.service"] = (
        "Id=minipc-shop-web.service\nActiveState=active\nNRestarts=3\n\n"
        "Id=minipc-shop-mail.service\nActiveState=failed\nNRestarts=7\n"
    )
    found = program.processes(settings)
    assert (found["shop", "web"].ready, found["shop", "web"].restarts) == (1, 3)
    assert list(program.lines(settings, "processes")) == ["shop/web 0.5", "shop/mail (failed) 0"]
    assert program.successes(settings, NOW)["shop", "nightly"].last == NOW + 30
    answers["minipc-shop-nightly.service"] = "Result=exit-code\nExecMainStartTimestamp=@1\nInactiveEnterTimestamp=@2\n"
    assert program.successes(settings, NOW)["shop", "nightly"].last == NOW + 30


def test_without_an_answer_there_are_no_old_values(settings, answers, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "TEXTFILES", tmp_path)
    monkeypatch.setattr(program, "write_metrics", lambda name, gauges: (tmp_path / f"{name}.prom").write_text("x"))
    file = tmp_path / "settings.json"
    file.write_text(program.schema.dump(settings))
    cluster(answers)
    assert program.main([str(file)]) == 0
    assert (tmp_path / "minipc_services.prom").exists()
    answers["/api/v1/pods"] = FailedError("the connection was refused")
    assert program.main([str(file)]) == 0
    assert not (tmp_path / "minipc_services.prom").exists()
    assert "cannot be measured: the connection was refused" in capsys.readouterr().out


def test_without_services_nothing_is_asked(answers, tmp_path):
    nothing = MeasureSettings("k3s", [], [], {}, str(tmp_path / "state.json"))
    text = text_of(program.measured(nothing, NOW))
    assert not [line for line in text.splitlines() if not line.startswith("#")]
