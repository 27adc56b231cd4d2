"""Each alert against measurements at which it must fire, and at which it must not; promtool is on the machine."""

from __future__ import annotations

import shlex

import pytest

from minipc.checks import load
from minipc.checks.components import rendered_rules
from minipc.checks.rules import dump, of_component, of_questions
from minipc.checks.schema import seconds
from tests.alert_cases import CASES, SILENCE_AT, WEEK, promtool_file, silence_file
from tests.lab.conftest import on
from tests.lab.test_alerts import watched

__all__ = ["watched"]
FOLDER = "/run/minipc-test-rules"


def evaluate(machine, name: str, cases: str, timeout_s: float = 120) -> None:
    """promtool's verdict on one file of cases for the rules of one component."""
    rules = dump(of_questions(load(), "x") if name == "checks" else of_component(name, rendered_rules()[name], "x"))
    script = f"mkdir -p {FOLDER} && cd {FOLDER} && printf %s {shlex.quote(rules.decode())} > {name}.yml"
    script += f" && printf %s {shlex.quote(cases)} > {name}.test.yml && promtool test rules {name}.test.yml 2>&1"
    said = on(machine, f"{script} || true", timeout_s=timeout_s)
    assert "SUCCESS" in said, said[:6000]


@pytest.mark.parametrize("name", CASES)
def test_alerts_fire_when_they_should_and_only_then(watched, name):
    evaluate(watched, name, promtool_file(f"{name}.yml", CASES[name]))


def test_a_question_that_can_not_be_answered_is_told(watched):
    soon = [
        check.id
        for check in load().checks
        if check.expression and check.no_data_after and seconds(check.no_data_after) < seconds(SILENCE_AT)
    ]
    evaluate(watched, "checks", silence_file("checks.yml", soon, SILENCE_AT, "15s"))
    late = [check.id for check in load().checks if check.expression and check.no_data_after]
    assert set(late) - set(soon)
    evaluate(watched, "checks", silence_file("checks.yml", late, "9d", "1h"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_is_compared_with_its_last_week(watched):
    evaluate(watched, "workload", promtool_file("workload.yml", [WEEK], "5m"), timeout_s=800)
