"""From answers to one sentence; and how answers are read."""

from __future__ import annotations

import base64
import json
import re
import subprocess

import pytest

from minipc.checks import load
from minipc.checks.asking import (
    Answer,
    Reading,
    prelude,
    read_machine,
    read_outside,
    read_prometheus,
    script_for_machine,
    script_for_prometheus,
)
from minipc.checks.verdict import judge, shown, what_next, worst
from minipc.config import load as load_config

CHECKS = load()
GOOD = {"==": 1.0, "!=": None, "<": 1.0, "<=": 1.0, ">": 0.0, ">=": 0.0}


def verdict(**bad: list[tuple[str, float]]):
    """The verdict when only these questions (with _ for -) are answered with no."""
    answers = {check.id: Answer(check, (Reading("", _good(check)),), "machine") for check in CHECKS.checks}
    for name, readings in bad.items():
        check = CHECKS.named(name.replace("_", "-"))
        answers[check.id] = Answer(check, tuple(Reading(*each) for each in readings), "machine")
    return judge(CHECKS, answers)


def _good(check) -> float:
    return check.threshold + 1 if check.operator == "==" else GOOD[check.operator]


def test_all_is_well():
    found = verdict()
    assert found.causes == found.effects == found.unknown == ()
    assert found.sentence.startswith("Nothing is broken")


@pytest.mark.parametrize(
    ("what", "bad", "cause", "where"),
    [
        (
            "all down",
            {"user_api": [("", 0)], "runtime": [("", 0)], "screens": [("/api/parking", 0)]},
            "runtime",
            "process",
        ),
        (
            "the door",
            {"user_api": [("", 0)], "outside": [("", 0)], "screens": [("/api/parking", 0)]},
            "user-api",
            "door",
        ),
        ("before the door", {"outside": [("", 0)]}, "outside", "between users and the machine"),
        ("one screen failing", {"screens": [("/api/parking", 0), ("/api/outing", 1)]}, "screens", "/api/parking"),
        (
            "one worker stalled",
            {"heartbeats": [("ingest", 900), ("push", 3)], "last_success": [("ingest", 3)], "freshness": [("/p", 0)]},
            "heartbeats",
            "workers (ingest)",
        ),
        ("stale but serving", {"freshness": [("/api/outing", 0)]}, "freshness", "/api/outing"),
        ("outbox growing", {"outbox": [("", 40)]}, "outbox", "Notifications pile up"),
        (
            "the database",
            {
                "database": [("", 0)],
                "database_in_time": [("", 0)],
                "screens": [("/a", 0)],
                "heartbeats": [("push", 999)],
            },
            "database",
            "database and cache",
        ),
    ],
)
def test_the_tree_tells_them_apart(what, bad, cause, where):
    found = verdict(**bad)
    assert [answer.check.id for answer in found.causes] == [cause], what
    assert len(found.effects) == len(bad) - 1
    assert where in found.sentence
    assert "evidence: " in found.sentence
    assert "next: " in found.sentence
    assert "{each}" not in found.sentence


def test_the_most_urgent_of_two_causes_comes_first():
    found = verdict(outbox=[("", 40)], disk=[("/", 0.01)])
    assert [answer.check.id for answer in found.causes] == ["disk", "outbox"]
    assert "evidence: disk = /: 1%" in found.sentence


def test_what_got_no_answer_is_named_and_never_good():
    check = CHECKS.named("backup")
    found = judge(CHECKS, {"backup": Answer(check, (), "machine", "no answer")})
    assert "backup" in found.sentence
    assert not found.sentence.startswith("Nothing is broken")


def line(name: str, code: int, text: str, error: str = "") -> str:
    """A line as the scripts print it."""
    return f"{name} {code} {base64.b64encode(text.encode()).decode()} {base64.b64encode(error.encode()).decode()}\n"


def test_prometheus_answers_are_read():
    result = [
        {"metric": {"worker": "push"}, "value": [1, "0"]},
        {"metric": {"worker": "ingest"}, "value": [1, "1"]},
    ]
    vector = {"status": "success", "data": {"result": result}}
    empty = {"status": "success", "data": {"result": []}}
    printed = line("workers", 0, json.dumps(vector)) + line("runtime", 7, "") + "nonsense\n"
    printed += line("cache-hits", 0, json.dumps(empty)) + line("database", 0, json.dumps(empty))
    found = read_prometheus(printed, CHECKS.checks)
    assert found["workers"].readings == (Reading("ingest", 1), Reading("push", 0))
    assert [reading.name for reading in found["workers"].bad] == ["push"]
    assert not found["cache-hits"].unknown, "nothing to measure is fine there"
    assert found["database"].unknown
    assert "runtime" not in found


def test_a_machines_answers_are_read():
    printed = line("workers", 0, "ingest 1\npush 0\n") + line("database", 2, "", "psql: refused\n")
    printed += line("disk", 0, "/ 0.5\n/var/lib/with space 0.05\n")
    found = read_machine(printed, CHECKS.checks)
    assert [reading.name for reading in found["workers"].bad] == ["push"]
    assert found["database"].error == "psql: refused"
    assert [reading.name for reading in found["disk"].bad] == ["/var/lib/with space"]


def test_an_answer_from_outside():
    assert read_outside(CHECKS.named("outside"), "0").bad
    assert not read_outside(CHECKS.named("outside"), "1").bad


@pytest.fixture(scope="module")
def settings():
    return load_config("lab")


def test_the_scripts_are_valid_shell_and_ask_everything(settings):
    machine = script_for_machine(CHECKS.checks, settings)
    for text in (machine, script_for_prometheus(CHECKS.checks)):
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for check in CHECKS.checks:
        assert (f'echo "{check.id} ' in machine) == (check.direct is not None and check.asked_from == "machine")


def test_a_question_that_hangs_or_fails_does_not_keep_the_others(settings):
    first, second = (
        CHECKS.named(name).model_copy(update={"direct": direct})
        for name, direct in (("workers", "echo broken >&2; exit 3"), ("database", "echo 1"))
    )
    done = subprocess.run(
        ["sh", "-s"], input=script_for_machine([first, second], settings), capture_output=True, text=True, timeout=20
    )
    found = read_machine(done.stdout, [first, second])
    assert found["workers"].error == "broken"
    assert found["database"].readings == (Reading("", 1.0),)


def test_the_functions_ask_where_they_should(settings):
    text = prelude(settings) + 'curl() { echo "$@" >&2; return 22; }\nanswers edge /api/livez; answers worker push\n'
    done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, timeout=20)
    assert done.stdout == "0\n0\n"
    assert f"https://{settings.edge.domain}/api/livez" in done.stderr
    assert f"127.0.0.1:{settings.workload.metrics_ports['push']}/metrics" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("database", 0, "no"), ("disk", 0.5, "/: 50%"), ("latency", 0.25, "0.25 s"), ("errors", 6, "api: 6/min")],
)
def test_values_read_well(name, value, text):
    label = text.split(":")[0] if ":" in text else ""
    assert shown(CHECKS.named(name), Reading(label, value)) == text


def test_the_worst_value_is_the_one_nearest_to_bad():
    disks = [Reading("/", 0.9), Reading("/var", 0.2)]
    ages = [Reading("repo1", 100), Reading("repo2", 9000)]
    assert worst(CHECKS.named("disk"), disks).name == "/var"
    assert worst(CHECKS.named("backup"), ages).name == "repo2"


def test_the_chapter_in_the_runbook_is_the_one_that_is_rendered():
    from minipc.checks.components import rendered_rules
    from minipc.checks.runbook import FILE, render

    assert FILE.read_text() == render(CHECKS, rendered_rules()), "run: python -m minipc.checks"


def test_what_is_next_for_the_service_can_be_done_wherever_it_runs():
    """In production its processes are pods, in the lab units: `minipc logs` knows both."""
    from minipc.checks.components import rendered_rules
    from minipc.checks.rules import ComponentAlert, parse
    from tests.unit.test_docs import commands, complaint

    texts = [what_next(check) for check in CHECKS.checks]
    for name, text in rendered_rules().items():
        rules = [rule for group in parse(name, text).groups for rule in group.rules]
        texts += [rule.annotations.next for rule in rules if isinstance(rule, ComponentAlert)]
    asked = [found for text in texts for found in re.findall(r"minipc logs [^:;]+", text)]
    assert len(asked) > 10
    for command in asked:
        for words in commands(command):
            assert complaint(words) == "", command
    for text in texts:
        assert not re.search(r"workload-(api|worker)|30080", text), text


def test_what_stands_for_the_thing_that_fails_looks_like_it():
    assert "minipc logs /PATH --service api" in what_next(CHECKS.named("screens"))
    assert "--service WORKER" in what_next(CHECKS.named("heartbeats"))
    assert "--service push" in what_next(CHECKS.named("heartbeats"), [Reading("push", 999)])


def test_every_alert_has_its_section_in_the_runbook():
    from minipc.checks.components import rendered_rules
    from minipc.checks.rules import dump, of_component, of_questions
    from minipc.checks.runbook import FILE

    headings = {line.removeprefix("### ").lower() for line in FILE.read_text().splitlines() if line.startswith("### ")}
    files = [of_questions(CHECKS, "x"), *(of_component(name, text, "x") for name, text in rendered_rules().items())]
    links = {
        rule["annotations"]["runbook"]
        for file in files
        for group in file["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert len(links) > 40
    assert {link.removeprefix("x#") for link in links} <= headings
    assert all(dump(file) for file in files)
