"""Grafana's dashboards: all questions in order, and a layout that Grafana can show."""

from __future__ import annotations

import json

import pytest

from minipc.checks import load
from minipc.checks.verdict import what_next
from minipc.dashboards import logs_dashboard, questions_dashboard, rendered, service_dashboard
from minipc.logs import saved_queries
from tests.alert_cases import SHOP


@pytest.fixture(scope="module")
def checks():
    return load([SHOP])


@pytest.fixture(scope="module")
def questions(checks):
    return json.loads(rendered(questions_dashboard(checks)))


@pytest.fixture(scope="module")
def logs():
    return json.loads(rendered(logs_dashboard(saved_queries().values())))


def of_kind(dashboard, *kinds):
    return [panel for panel in dashboard["panels"] if panel["type"] in kinds]


@pytest.fixture(scope="module")
def service():
    return json.loads(rendered(service_dashboard()))


@pytest.mark.parametrize("name", ["questions", "logs", "service"])
def test_every_panel_is_complete_and_in_a_free_place(request, name):
    panels = request.getfixturevalue(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in own) < 24
        assert not cells & own, f"panel {panel['title']!r} overlaps another"
        cells |= own
        asks = panel["type"] in ("stat", "timeseries", "logs")
        assert asks == ("datasource" in panel) == bool(panel.get("targets"))
        assert all(target["datasource"] == panel["datasource"] for target in panel.get("targets", []))


def test_the_rows_are_the_questions_in_their_order(questions, checks):
    assert [panel["title"] for panel in of_kind(questions, "row")] == [check.question for check in checks.checks]
    ys = [panel["gridPos"]["y"] for panel in of_kind(questions, "row")]
    assert ys == sorted(ys)


def test_each_question_that_can_be_measured_is_measured_now_and_over_time(questions, checks):
    wanted = [check.expression for check in checks.checks if check.expression]
    for kind in ("stat", "timeseries"):
        assert [panel["targets"][0]["expr"] for panel in of_kind(questions, kind)] == wanted


def test_each_row_shows_what_a_no_means_and_what_to_do_next(questions, checks):
    for check, panel in zip(checks.checks, of_kind(questions, "text"), strict=True):
        text = panel["options"]["content"]
        assert check.meaning in text
        assert what_next(check) in text
        assert check.priority in text


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 1.0, 2.0, 5.0, 5.1, 100.0, 600.0, 1e6])
def test_red_is_where_the_answer_is_no(questions, checks, value):
    stats = of_kind(questions, "stat")
    for check, panel in zip((check for check in checks.checks if check.expression), stats, strict=True):
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0]["value"] is None
        colour = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
        assert (colour == "red") == check.is_bad(value), (check.id, check.bad_when, value)


def test_colour_is_not_the_only_information(questions, checks):
    booleans = [check.unit == "boolean" for check in checks.checks if check.expression]
    for boolean, panel in zip(booleans, of_kind(questions, "stat"), strict=True):
        if boolean:
            texts = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
            assert {text["text"] for text in texts.values()} == {"yes", "no"}


def test_every_saved_query_is_on_the_logs_dashboard(logs):
    panels = of_kind(logs, "logs", "timeseries")
    assert [panel["title"] for panel in panels] == list(saved_queries())
    for panel in panels:
        assert panel["datasource"]["uid"] == "loki"
        assert "{request_id}" not in panel["targets"][0]["expr"].replace("${request_id}", "")
    assert "${request_id}" in panels[-1]["targets"][0]["expr"]
    assert logs["templating"]["list"][0]["name"] == "request_id"


def test_the_service_dashboard_shows_the_chosen_service_only(service):
    (variable,) = service["templating"]["list"]
    assert (variable["name"], variable["type"]) == ("service", "query")
    for panel in of_kind(service, "timeseries", "logs"):
        assert 'service="$service"' in panel["targets"][0]["expr"], panel["title"]
