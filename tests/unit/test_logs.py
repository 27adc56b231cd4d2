"""`minipc logs`: what is asked, whom, and how the answer reads."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta

import pytest
import yaml

from minipc.cli.logs import seconds
from minipc.core.errors import ConfigError, CouldNotVerifyError
from minipc.logs import asking
from minipc.logs.asking import Question, ask
from minipc.logs.entries import Entry, readable
from minipc.logs.queries import saved_queries, saved_query
from tests.alert_cases import SHOP
from tests.unit.service_files import BOOKINGS, service

AT = 1_763_728_000_000_000_000


class Machine:
    """Stands for a machine: what its shell commands print."""

    class settings:  # noqa: N801
        class loki:  # noqa: N801
            port = 3100

        class syslog_ng:  # noqa: N801
            loki_url = None

        class services:  # noqa: N801
            runtime = "podman"
            declared = (service(BOOKINGS),)


class Cluster(Machine):
    """One where the service runs in K3s."""

    class settings(Machine.settings):  # noqa: N801
        class services:  # noqa: N801
            runtime = "k3s"
            declared = (service(BOOKINGS),)


@pytest.fixture
def shell(monkeypatch):
    """Answers commands by the first word; remembers them with their stdin."""
    asked = []

    def answers(curl="\n000", journal=""):
        def on(target, command, stdin="", timeout_s=60):
            asked.append((command, stdin))
            return curl if command.startswith("curl") else journal

        monkeypatch.setattr(asking, "on", on)
        return asked

    return answers


def streams(*lines):
    result = [
        {"stream": {"service": "api", "level": "info"}, "values": [[str(AT + n), line] for n, line in enumerate(lines)]}
    ]
    return json.dumps({"data": {"resultType": "streams", "result": result}}) + "\n200"


def journal_line(**fields):
    return json.dumps(
        {"__REALTIME_TIMESTAMP": str(AT // 1000), "_SYSTEMD_UNIT": "ssh.service", "PRIORITY": "6"} | fields
    )


def test_loki_answers_where_it_is(shell):
    asked = shell(curl=streams("one", "two"))
    found = ask(Machine, Question(request_id="abc-1", service="api", level="error", text='a "quote"'))
    assert (found.source, [entry.text for entry in found.entries]) == ("Loki", ["one", "two"])
    assert asked[0][1] == '{service="api", level="error"} |= "a \\"quote\\"" | request_id="abc-1"'
    assert len(asked) == 1


def test_the_journal_answers_where_loki_is_not(shell):
    access = json.dumps({"ts": AT / 1e9 + 1, "level": "info", "status": 200})
    shell(curl="curl: (7) Failed to connect\n000", journal=f"{journal_line(MESSAGE='hello')}\n{access}\nnot json")
    found = ask(Machine, Question(request_id="abc"))
    assert found.source == "the journal"
    assert "Failed to connect" in found.why_not_loki
    assert [(entry.service, entry.level) for entry in found.entries] == [("ssh", "info"), ("edge", "info")]


def test_the_journal_is_asked_too_when_loki_has_nothing_of_a_request(shell):
    empty = json.dumps({"data": {"resultType": "streams", "result": []}}) + "\n200"
    asked = shell(curl=empty, journal=journal_line(MESSAGE="hello"))
    assert ask(Machine, Question(request_id="abc")).source == "the journal"
    assert asked[1][1] == "abc\n", "the id travels through stdin"
    assert ask(Machine, Question(service="api")).source == "Loki", "nothing is an answer, too"


def test_a_saved_query_needs_loki(shell):
    shell()
    with pytest.raises(CouldNotVerifyError, match="only Loki can answer"):
        ask(Machine, Question(logql='{service="api"}'))


def test_lokis_complaint_is_told(shell):
    shell(curl="parse error at line 1\n400")
    with pytest.raises(ConfigError, match="parse error"):
        ask(Machine, Question(logql="{"))


def test_a_query_that_counts_gives_numbers(shell):
    result = [{"metric": {"service": "api"}, "values": [[1, "3"], [2, "5"]]}]
    shell(curl=json.dumps({"data": {"resultType": "matrix", "result": result}}) + "\n200")
    assert ask(Machine, Question(logql="sum(...)")).numbers == [("service=api", "5")]


@pytest.mark.parametrize("bad", ["", "a b", "a;reboot", "$(id)", "x" * 129, "é"])
def test_a_request_id_is_never_more_than_one(bad):
    with pytest.raises(ConfigError, match="is not a request id"):
        Question(request_id=bad)


@pytest.mark.parametrize("bad", ["", "a b", "a'b", '"', "-u\n"])
def test_a_service_is_never_more_than_a_name(bad):
    with pytest.raises(ConfigError, match="is not a service name"):
        Question(service=bad)


def test_processes_under_podman_are_asked_by_their_identifiers(shell):
    asked = shell(journal="")
    ask(Machine, Question(service="bookings/worker", since_s=60))
    ask(Machine, Question(service="bookings", since_s=60))
    ask(Machine, Question(service="ssh", since_s=60))
    one, whole, unit = (asked[number][0] for number in (1, 3, 5))
    assert "-t minipc-bookings-worker" in one
    assert "minipc-bookings-web" not in one
    for part in ("web", "worker", "nightly", "migrate"):
        assert f"-t minipc-bookings-{part}" in whole
    assert "-u ssh" in unit


def test_a_process_of_a_service_is_a_label_of_its_own():
    assert Question(service="bookings/web").as_logql() == '{service="bookings", process="web"}'


def test_in_k3s_the_files_of_the_pods_are_read(monkeypatch, tmp_path):
    """Also of a container that ended, and when the cluster doesn't run: no kubectl is asked."""
    now = datetime.now().astimezone()
    old = now - timedelta(hours=2)
    logs = {
        "bookings_web-7d9-x_1/web/0.log": [
            f"{old.isoformat()} stdout F too old",
            f"{now.isoformat()} stderr F died",
        ],
        "bookings_web-7d9-x_1/web/1.log": [
            now.isoformat() + ' stdout F {"level": "ERROR", "service": "api", "message": "request failed"}',
            "not a line of a container",
        ],
        "bookings_worker-5c1-y_2/worker/0.log": [f'{now.isoformat()} stdout F {{"level": "WARN", "service": "x"}}'],
        "argocd_api-1_3/server/0.log": [f"{now.isoformat()} stdout F of somebody else"],
    }
    for name, lines in logs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))

    def on(target, command, stdin="", timeout_s=60):
        if command.startswith("curl"):
            return "curl: (7) Failed to connect\n000"
        script = command.replace("journalctl", "false")
        return subprocess.run(["sh", "-c", script], input=stdin, capture_output=True, text=True, check=True).stdout

    monkeypatch.setattr(asking, "on", on)
    monkeypatch.setattr(asking, "PODS", str(tmp_path))

    def told(**question):
        return [(entry.service, entry.level) for entry in ask(Cluster, Question(**question)).entries]

    assert sorted(told(service="bookings/web")) == [("bookings/web", "error"), ("bookings/web", "info")]
    assert told(service="bookings", level="error") == [("bookings/web", "error")]
    assert told(service="bookings/worker", text="WARN") == [("bookings/worker", "warn")]
    assert len(told(service="bookings")) == 3
    assert len(told()) == 4
    assert told(service="ssh") == []
    (entry,) = ask(Cluster, Question(service="bookings/worker")).entries
    assert entry.at_ns == pytest.approx(now.timestamp() * 1e9, abs=1e3)


@pytest.mark.parametrize(
    ("fields", "level", "service", "text"),
    [
        ({"MESSAGE": "x", "PRIORITY": "3"}, "error", "ssh", "x"),
        ({"MESSAGE": [255, 97]}, "info", "ssh", "\\xffa"),
        ({"MESSAGE": None}, "info", "ssh", ""),
        ({"MESSAGE": "x", "_TRANSPORT": "kernel"}, "info", "kernel", "x"),
        (
            {"MESSAGE": '{"level": "WARN", "service": "api"}', "SYSLOG_IDENTIFIER": "minipc-bookings-web"},
            "warn",
            "bookings/web",
            '{"level": "WARN", "service": "api"}',
        ),
        ({"MESSAGE": '{"service": "api"}'}, "info", "ssh", '{"service": "api"}'),
    ],
)
def test_a_journal_entry_gets_the_labels_it_would_have_in_loki(shell, fields, level, service, text):
    shell(journal=journal_line(**fields))
    (entry,) = ask(Machine, Question()).entries
    assert (entry.level, entry.service, entry.text) == (level, service, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ('{"message": "m", "level": "INFO", "request_id": "r", "n": 1}', "m  request_id=r n=1"),
        (
            '{"request": {"method": "GET", "uri": "/x"}, "status": 200, "duration": 0.25, "msg": "m"}',
            "200 GET /x 0.250 s",
        ),
        ("\x1b[31mred\nnext", "\\x1b[31mred ⏎ next"),
        ("[1]", "[1]"),
        ("{", "{"),
    ],
)
def test_a_line_is_readable_and_harmless(text, expected):
    assert readable(text) == expected
    assert str(Entry(AT, "api", "info", text)).startswith("2025-11-21T12:26:40.000Z info  api")


def test_times_are_understood():
    assert [seconds(text) for text in ("90s", "15m", "2h", "7d")] == [90, 900, 7200, 604800]
    with pytest.raises(ConfigError, match="not a time"):
        seconds("yesterday")


def test_the_saved_queries_are_those_that_are_promised():
    known = saved_queries()
    assert set(known) == {
        "auth-failures",
        "errors-by-service",
        "slow-requests",
        "request",
    }
    with pytest.raises(ConfigError, match="did you mean `slow-requests`"):
        saved_query("slow-request")
    with pytest.raises(ConfigError, match="needs a request id"):
        known["request"].filled(None)
    assert known["request"].filled("abc") == '{service=~".+"} | request_id="abc"'


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "q.yaml").write_text("queries: [{name: Bad}]")
    with pytest.raises(ConfigError, match=r"q\.yaml cannot be read"):
        saved_queries(path=tmp_path / "q.yaml")


def test_a_service_brings_its_own_queries(tmp_path):
    query = {
        "name": "mail",
        "question": "Which?",
        "logql": "{a=~'b'}",
        "sample": {"service": "s", "level": "i", "line": "x"},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"queries": [query]}))
    alerts = SHOP.alerts.model_copy(update={"log_queries": "own.yaml"})
    service = SHOP.model_copy(update={"folder": str(tmp_path), "alerts": alerts})
    assert list(saved_queries([service])) == [*saved_queries(), "mail"]
    assert saved_query("mail", [service]).logql == query["logql"]
    with pytest.raises(ConfigError, match="there is another query 'mail'"):
        saved_queries([service, service])
