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
from minipc.checks.load import platform
from minipc.checks.verdict import judge, shown, what_next, worst
from minipc.config import load as load_config
from tests.alert_cases import SHOP

OTHER = SHOP.model_copy(update={"name": "other"})
CHECKS = load([SHOP, OTHER])
GOOD = {"==": 1.0, "!=": None, "<": 1.0, "<=": 1.0, ">": 0.0, ">=": 0.0}


def verdict(**bad: list[tuple[str, float]]):
    """The verdict when only these questions (with _ for -) are answered with no."""
    answers = {check.id: Answer(check, (Reading("", _good(check)),), "machine") for check in CHECKS.checks}
    for name, readings in bad.items():
        check = CHECKS.named(name.replace("_", "-"))
        answers[check.id] = Answer(check, tuple(Reading(*each) for each in readings), "machine")
    return judge(CHECKS, answers)


def _good(check) -> float:
    return check.threshold + 1 if check.operator in ("==", "<") else GOOD[check.operator]


def test_all_is_well():
    found = verdict()
    assert found.causes == found.effects == found.unknown == ()
    assert found.sentence.startswith("Nothing is broken")


@pytest.mark.parametrize(
    ("what", "bad", "cause", "where"),
    [
        (
            "a service that does not run",
            {"answers": [("shop", 0)], "runtime": [("shop", 0)], "pages": [("shop/basket", 0)]},
            "runtime",
            "the services' processes (shop)",
        ),
        (
            "the ingress",
            {"answers": [("shop", 0), ("other", 0)], "outside": [("shop", 0)], "pages": [("shop/basket", 0)]},
            "answers",
            "the public ingress (shop, other)",
        ),
        ("outside the machine", {"outside": [("shop", 0)]}, "outside", "between users and the machine"),
        ("one page failing", {"pages": [("shop/basket", 0), ("other/basket", 1)]}, "pages", "shop/basket"),
        (
            "one worker",
            {"processes": [("shop/mail (CrashLoopBackOff)", 0), ("shop/web", 1)], "restarts": [("shop/mail", 9)]},
            "processes",
            "minipc logs --service shop/mail ",
        ),
        (
            "a corrupt datastore",
            {"cluster": [("k3s (its datastore is corrupt)", 0)], "runtime": [("shop", 0)], "answers": [("shop", 0)]},
            "cluster",
            "Its datastore is corrupt: minipc cluster reset",
        ),
        (
            "evicted pods",
            {"pressure": [("a/DiskPressure", 1)], "runtime": [("shop", 0)], "processes": [("shop/web (Evicted)", 0)]},
            "pressure",
            "minipc disk gain",
        ),
        ("memory", {"memory": [("", 0.03)]}, "memory", "minipc status --resources"),
        ("a node", {"nodes": [("n", 0)], "applications": [("shop", 1)]}, "nodes", "k3s kubectl describe node n:"),
        ("ArgoCD's repo server", {"applications": [("shop", 1)]}, "applications", "does ArgoCD's repo server run?"),
        ("Loki in a loop", {"unit_restarts": [("loki.service", 6)]}, "unit-restarts", "journalctl -u loki.service "),
        ("a cron job", {"cron": [("other/nightly", 1.5)]}, "cron", "other/nightly: 150%"),
        (
            "a volume",
            {"volumes": [("shop/uploads", 0.95)]},
            "volumes",
            "du -xh --max-depth=2 /srv/minipc/volumes/shop/up",
        ),
        (
            "the database",
            {"database": [("", 0)], "ready": [("shop", 0), ("other", 0)], "pages": [("shop/basket", 0)]},
            "database",
            "database, cache and volumes",
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
    assert "{service}" not in found.sentence


def test_a_fault_of_one_service_does_not_explain_one_of_another():
    found = verdict(runtime=[("shop", 0)], answers=[("shop", 0), ("other", 0)])
    causes = {answer.check.id: [reading.name for reading in answer.bad] for answer in found.causes}
    effects = {answer.check.id: [reading.name for reading in answer.bad] for answer in found.effects}
    assert causes == {"answers": ["other"], "runtime": ["shop"]}
    assert effects == {"answers": ["shop"]}


def test_a_machine_without_services_has_no_line_about_one(settings):
    nothing = load_config("lab", services_folders=[])
    text = script_for_machine(load([]).checks, nothing)
    assert "SERVICES=''" in text
    done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_most_urgent_of_two_causes_comes_first():
    found = verdict(processes=[("shop/mail", 0)], disk=[("/", 0.01)])
    assert [answer.check.id for answer in found.causes] == ["disk", "processes"]
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
        {"metric": {"part": "shop/web"}, "value": [1, "0"]},
        {"metric": {"part": "shop/mail"}, "value": [1, "1"]},
    ]
    vector = {"status": "success", "data": {"result": result}}
    empty = {"status": "success", "data": {"result": []}}
    printed = line("processes", 0, json.dumps(vector)) + line("runtime", 7, "") + "nonsense\n"
    printed += line("clock", 0, json.dumps(empty)) + line("database", 0, json.dumps(empty))
    found = read_prometheus(printed, CHECKS.checks)
    assert found["processes"].readings == (Reading("shop/mail", 1), Reading("shop/web", 0))
    assert [reading.name for reading in found["processes"].bad] == ["shop/web"]
    assert not found["clock"].unknown, "nothing to measure is fine there"
    assert found["database"].unknown
    assert "runtime" not in found


def test_a_machines_answers_are_read():
    printed = line("processes", 0, "shop/web 1\nshop/mail (Evicted) 0\n") + line("database", 2, "", "psql: refused\n")
    printed += line("disk", 0, "/ 0.5\n/var/lib/with space 0.05\n")
    found = read_machine(printed, CHECKS.checks)
    assert [reading.name for reading in found["processes"].bad] == ["shop/mail (Evicted)"]
    assert found["database"].error == "psql: refused"
    assert [reading.name for reading in found["disk"].bad] == ["/var/lib/with space"]


def test_what_a_service_answers_is_data():
    """It names its workers and makes its numbers; neither is a command for a terminal, nor good by being no number."""
    found = read_machine(line("restarts", 0, "\x1b]0;owned\x07\x1b[2Jingest" + "x" * 500 + " 3\n"), CHECKS.checks)
    (reading,) = found["restarts"].readings
    assert reading.name.isprintable()
    assert len(reading.name) <= 80
    assert read_machine(line("restarts", 0, "ingest NaN\npush 3\n"), CHECKS.checks)["restarts"].unknown
    many = "".join(f"worker{number} 1\n" for number in range(10_000))
    assert len(read_machine(line("restarts", 0, many), CHECKS.checks)["restarts"].readings) == 200
    told = read_machine(line("database", 1, "", "ERROR: \x1b[2Jfine"), CHECKS.checks)["database"]
    assert told.error.isprintable()


def own(**changes):
    """Return a question of the service shop."""
    return CHECKS.named("restarts").model_copy(
        update={"per": None, "each": "queue", "owner": "shop", "next": "minipc logs --service {service}/{each} "}
        | changes
    )


def test_the_next_step_is_safe_to_paste():
    """The name in it may be a service's."""
    assert what_next(own(), [Reading("mail", 0)]) == "minipc logs --service shop/mail "
    assert what_next(own(), [Reading("$(reboot)", 0)]) == "minipc logs --service shop/'$(reboot)' "
    assert "--service 'shop/$(reboot)' " in what_next(CHECKS.named("restarts"), [Reading("shop/$(reboot)", 9)])


def test_the_questions_to_the_database_are_asked_by_its_reader(settings):
    """What answers may be a function of the service."""
    service = settings.services.declared[0]
    asked = own(owner=service.name, direct="query 'SELECT 1'")
    text = script_for_machine([CHECKS.named("database"), asked], settings)
    assert f"-U {service.postgres.roles[2]} -d {service.postgres.database}" in text
    assert "-U minipc -d minipc" in text, "our own questions read no table of a service"
    assert "-U postgres" not in text


def test_an_answer_from_outside():
    assert read_outside(CHECKS.named("outside"), "shop 0\n").bad
    assert not read_outside(CHECKS.named("outside"), "shop 1\n").bad


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
        for name, direct in (("processes", "echo broken >&2; exit 3"), ("database", "echo 1"))
    )
    done = subprocess.run(
        ["sh", "-s"], input=script_for_machine([first, second], settings), capture_output=True, text=True, timeout=20
    )
    found = read_machine(done.stdout, [first, second])
    assert found["processes"].error == "broken"
    assert found["database"].readings == (Reading("", 1.0),)


# Prints what --write-out says, as curl does.
FAKE = r"""
sleep() {{ :; }}
curl() {{
    echo "$@" >&2
    while [ "$1" != --write-out ]; do shift; done
    printf '%s' '{body}'
    printf "$(printf %s "$2" | sed 's/%{{http_code}}/{status}/; s/%{{time_total}}/0.5/')"
}}
"""


def test_the_functions_ask_where_they_should(settings):
    fake = FAKE.format(status="200", body="body")
    (service,) = settings.services.declared
    domain, port = service.domain, service.ingress.node_port

    def ask(command):
        text = f"{prelude(settings)}{fake}SERVICE={service.name}\n{command}\n"
        done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, timeout=20)
        return done.stdout, done.stderr

    said, asked = ask("probes ingress live")
    assert said == f"{service.name} 1\n"
    assert f"https://{domain}:443{service.health.live} --resolve {domain}:443:127.0.0.1" in asked
    said, asked = ask("probes direct ready")
    assert said == f"{service.name} 1\n"
    assert f"http://127.0.0.1:{port}{service.health.ready} --header Host: {domain}" in asked
    assert ask("durations")[0] == f"{service.name} {0.5 / (service.alerts.answer_within_ms / 1000):g}\n"
    pages = sorted(name for name, page in service.alerts.pages.items() if page.alert)
    assert ask("pages")[0].split() == [word for name in pages for word in (f"{service.name}/{name}", "1")]


@pytest.mark.parametrize(
    ("status", "body", "statuses", "refuse", "answer"),
    [
        ("200", "fine", "200", "-", "1"),
        ("500", "fine", "200", "-", "0"),
        ("000", "", "200", "-", "0"),
        ("401", "login", "200", "-", "0"),
        ("401", "login", "any", "-", "1"),
        ("503", "login", "any", "-", "0"),
        ("200", '"status": "stale"', "200", '"status": ?"stale"', "0"),
        ("200", '"status": "fresh"', "200", '"status": ?"stale"', "1"),
        ("302", "", "200", "-", "0"),
    ],
)
def test_what_counts_as_an_answer(settings, status, body, statuses, refuse, answer):
    fake = FAKE.format(status=status, body=body)
    text = f"{prelude(settings)}{fake}asked direct a.example.org 80 / {statuses} '{refuse}'\n"
    done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == answer, done.stderr


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("database", 0, "no"),
        ("disk", 0.5, "/: 50%"),
        ("backup", 90, "repo1: 1 min 30 s"),
        ("restarts", 6, "shop/web: 6"),
    ],
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
    from minipc.checks.rule_files import rendered_rules
    from minipc.checks.runbook import FILE, render

    assert FILE.read_text() == render(platform(), rendered_rules()), "run: python -m minipc.checks"


def test_what_is_next_for_the_service_can_be_done_wherever_it_runs():
    """In production its processes are pods, in the lab units: `minipc logs` knows both."""
    from minipc.checks.rule_files import rendered_rules
    from minipc.checks.rules import ComponentAlert, parse
    from tests.unit.test_docs import commands, complaint

    texts = [what_next(check) for check in CHECKS.checks]
    for name, text in rendered_rules().items():
        rules = [rule for group in parse(text, name).groups for rule in group.rules]
        texts += [rule.annotations.next for rule in rules if isinstance(rule, ComponentAlert)]
    asked = [found for text in texts for found in re.findall(r"minipc logs [^:;]+", text)]
    assert len(asked) > 5
    for command in asked:
        for words in commands(command):
            assert complaint(words) == "", command
    for text in texts:
        assert "kubectl -n" not in text, text


def test_what_stands_for_the_thing_that_fails_looks_like_it():
    assert "minipc logs --service SERVICE --since" in what_next(CHECKS.named("pages"))
    assert "--service SERVICE/NAME " in what_next(CHECKS.named("restarts"))
    assert "--service shop/mail " in what_next(CHECKS.named("restarts"), [Reading("shop/mail", 999)])


def test_every_alert_has_its_section_in_the_runbook():
    from minipc.checks.rule_files import rendered_rules
    from minipc.checks.rules import dump, of_component, of_questions
    from minipc.checks.runbook import FILE

    headings = {line.removeprefix("### ").lower() for line in FILE.read_text().splitlines() if line.startswith("### ")}
    files = [
        of_questions(platform(), "x", [SHOP]),
        *(of_component(name, text, "x") for name, text in rendered_rules().items()),
    ]
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


@pytest.mark.parametrize(
    ("check", "tool", "printed", "code", "expected"),
    [
        ("unit-restarts", "systemctl", "loki.service loaded activating auto-restart Loki", 0, [("loki.service", 6.0)]),
        ("unit-restarts", "systemctl", "loki.service loaded active running Loki", 0, [("", 0.0)]),
        ("applications", "k3s", "shop Unknown\nroot Synced", 0, [("shop", 1.0), ("root", 0.0)]),
        # What does not answer is not a no.
        ("applications", "k3s", "", 1, []),
    ],
)
def test_direct_questions_about_units_and_applications(tmp_path, check, tool, printed, code, expected):
    program = tmp_path / tool
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{printed}'\nexit {code}\n")
    program.chmod(0o755)
    asked = CHECKS.named(check)
    script = script_for_machine([asked], load_config("lab"))
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=path)
    answer = read_machine(done.stdout, [asked])[check]
    assert [(each.name, each.value) for each in answer.readings] == expected
    assert answer.unknown == (code != 0)
