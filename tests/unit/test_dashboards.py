"""Grafana's dashboards: all questions, in their order, and nothing that Grafana wouldn't understand."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from minipc.checks import load
from minipc.checks.verdict import what_next
from minipc.dashboards import Dashboard, logs_dashboard, questions_dashboard, rendered
from minipc.logs import saved_queries


@pytest.fixture(scope="module")
def checks():
    return load()


@pytest.fixture(scope="module")
def questions(checks):
    return questions_dashboard(checks)


def of_kind(dashboard, *kinds):
    return [panel for panel in dashboard.panels if panel.type in kinds]


def test_the_rows_are_the_questions_in_their_order(questions, checks):
    assert [panel.title for panel in of_kind(questions, "row")] == [check.question for check in checks.checks]
    ys = [panel.gridPos.y for panel in of_kind(questions, "row")]
    assert ys == sorted(ys)


def test_each_question_that_can_be_measured_is_measured_now_and_over_time(questions, checks):
    wanted = [check.expression for check in checks.checks if check.expression]
    for kind in ("stat", "timeseries"):
        assert [panel.targets[0].expr for panel in of_kind(questions, kind)] == wanted


def test_each_row_says_what_a_no_means_and_what_is_next(questions, checks):
    texts = [panel.options["content"] for panel in of_kind(questions, "text")]
    assert len(texts) == len(checks.checks)
    for check, text in zip(checks.checks, texts, strict=True):
        assert check.meaning in text
        assert what_next(check) in text
        assert check.priority in text


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 1.0, 2.0, 5.0, 5.1, 100.0, 600.0, 1e6])
def test_red_is_where_the_answer_is_no(questions, checks, value):
    stats = of_kind(questions, "stat")
    for check, panel in zip((check for check in checks.checks if check.expression), stats, strict=True):
        steps = panel.fieldConfig.defaults.thresholds.steps
        colour = [step.color for step in steps if step.value is None or value >= step.value][-1]
        assert (colour == "red") == check.is_bad(value), (check.id, check.bad_when, value)


def test_nothing_is_said_by_colour_alone(questions, checks):
    booleans = [check.unit == "boolean" for check in checks.checks if check.expression]
    for boolean, panel in zip(booleans, of_kind(questions, "stat"), strict=True):
        if boolean:
            texts = panel.fieldConfig.defaults.mappings[0]["options"]
            assert {text["text"] for text in texts.values()} == {"yes", "no"}


def test_the_first_threshold_is_null_in_the_file(questions):
    for panel in json.loads(rendered(questions))["panels"]:
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None


def test_every_saved_query_is_on_the_logs_dashboard():
    dashboard = logs_dashboard(saved_queries().values())
    panels = of_kind(dashboard, "logs", "timeseries")
    assert [panel.title for panel in panels] == list(saved_queries())
    for panel in panels:
        assert panel.datasource.uid == "loki"
        assert "{request_id}" not in panel.targets[0].expr.replace("${request_id}", "")
    assert "${request_id}" in panels[-1].targets[0].expr
    assert dashboard.templating["list"][0]["name"] == "request_id"


def test_what_is_rendered_is_what_the_schema_says(questions):
    for dashboard in (questions, logs_dashboard(saved_queries().values())):
        assert Dashboard.model_validate(json.loads(rendered(dashboard))) == dashboard


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gridPos": {"x": 20, "y": 0, "w": 8, "h": 4}}, "leaves the grid"),
        ({"type": "graph"}, "type"),
        ({"targets": []}, "are for panels that ask"),
        ({"datasource": {"type": "prometheus", "uid": "elsewhere"}}, "uid"),
        ({"thing": 1}, "Extra inputs"),
    ],
)
def test_a_wrong_panel_is_refused(questions, change, told):
    fields = json.loads(rendered(questions))
    index = next(number for number, panel in enumerate(fields["panels"]) if panel["type"] == "stat")
    fields["panels"][index] |= change
    with pytest.raises(ValidationError, match=told):
        Dashboard.model_validate(fields)


def test_panels_that_overlap_are_refused(questions):
    fields = json.loads(rendered(questions))
    fields["panels"][1]["gridPos"]["y"] = 0
    with pytest.raises(ValidationError, match="lies on another"):
        Dashboard.model_validate(fields)
