"""The operator's questions: the file itself, and one error for each rule of its schema."""

from __future__ import annotations

import copy

import pytest
import yaml

from minipc.checks import load
from minipc.checks.load import FILE, platform
from minipc.checks.schema import seconds
from minipc.checks.scope import scoped
from minipc.core.errors import ConfigError
from tests.alert_cases import SHOP

GOOD = {
    "sla": {"P1": "within 1 hour", "P2": "within 4 hours", "P3": "in the next sprint"},
    "checks": [
        {
            "id": name,
            "question": "Is it up?",
            "layer": "data",
            "expression": "min(up)",
            "bad_when": "== 0",
            "unit": "boolean",
            "alert": alert,
            "priority": "P2",
            "within": "3m",
            "meaning": "It is down.",
            "next": "look",
            "explained_by": because,
        }
        for name, alert, because in (("one", "OneDown", []), ("two", "TwoDown", ["one"]))
    ],
}


def written(tmp_path, content):
    path = tmp_path / "checks.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def changed(number=0, **fields):
    content = copy.deepcopy(GOOD)
    content["checks"][number] |= fields
    return content


def test_the_shipped_questions_are_valid():
    assert len(platform().checks) >= 8


def test_the_good_example_is_good(tmp_path):
    assert [check.id for check in platform(written(tmp_path, GOOD)).checks] == ["one", "two"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"question": "It is up"}, "one.question: String should match"),
        ({"layer": "network"}, "one.layer: Input should be 'edge'"),
        ({"bad_when": "0"}, "one.bad_when"),
        ({"bad_when": "=> 0"}, "one.bad_when"),
        ({"lasting": "5 min"}, "allowed: a whole number and one of s, m, h, d"),
        ({"within": "soon"}, "one.within"),
        ({"within": None}, "an alert needs `within`"),
        ({"unit": "bytes"}, "one.unit"),
        ({"alert": "one_down"}, "one.alert"),
        ({"alert": None}, "go together"),
        ({"expression": None}, "go together"),
        ({"expression": None, "alert": None}, "nothing can answer the question"),
        ({"priority": "P4"}, "one.priority"),
        ({"meaning": ""}, "one.meaning"),
        ({"next": ""}, "one.next"),
        ({"asked_from": "space"}, "one.asked_from"),
        ({"explained_by": ["three"]}, "there is no such check"),
        ({"explained_by": ["two"]}, "explained_by is circular"),
        ({"id": "two"}, "id two is used twice"),
        ({"alert": "TwoDown"}, "alert TwoDown is used twice"),
        ({"id": "One"}, "One.id"),
        ({"colour": "red"}, "one.colour: Extra inputs are not permitted"),
        ({"per": "process"}, "`each` is the label service"),
        ({"per": "machine"}, "one.per"),
    ],
)
def test_each_rule_says_where_and_what(tmp_path, fields, told):
    with pytest.raises(ConfigError) as error:
        platform(written(tmp_path, changed(**fields)))
    assert told in str(error.value)
    assert "checks.yaml" in str(error.value)


def test_every_priority_has_its_time(tmp_path):
    content = copy.deepcopy(GOOD)
    del content["sla"]["P2"]
    with pytest.raises(ConfigError, match="sla lacks P2"):
        platform(written(tmp_path, content))


def test_an_unreadable_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        platform(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("checks: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        platform(tmp_path / "broken.yaml")


def test_explanations_go_through_others():
    assert {"answers", "ready", "runtime", "database"} <= platform().explanations("pages")


def test_durations():
    assert [seconds(text) for text in ("90s", "5m", "2h", "35d")] == [90, 300, 7200, 3_024_000]


@pytest.mark.parametrize(
    ("bad_when", "bad", "good"),
    [("== 0", 0, 1), ("!= 1", 0, 1), ("> 5", 6, 5), (">= 5", 5, 4), ("< 0.5", 0.4, 0.5), ("<= 0.5", 0.5, 0.6)],
)
def test_what_is_bad(bad_when, bad, good):
    check = platform().checks[0].model_copy(update={"bad_when": bad_when})
    assert check.is_bad(bad)
    assert not check.is_bad(good)


def test_comments_and_questions_stay_within_the_line():
    assert all(len(line) <= 130 for line in FILE.read_text().splitlines())


OWN = {
    "checks": [
        {
            "id": "queue",
            "question": "Is the queue short?",
            "layer": "collection",
            "expression": "max(queue_length)",
            "bad_when": "> 10",
            "unit": "count",
            "alert": "QueueLong",
            "priority": "P3",
            "within": "5m",
            "meaning": "Mail waits.",
            "next": "minipc logs --service {service}",
            "explained_by": ["runtime"],
        }
    ]
}


def with_checks(tmp_path, content, name="shop"):
    (tmp_path / f"{name}.checks.yaml").write_text(yaml.safe_dump(content))
    alerts = SHOP.alerts.model_copy(update={"checks": f"{name}.checks.yaml"})
    return SHOP.model_copy(update={"name": name, "folder": str(tmp_path), "alerts": alerts})


def test_a_machine_without_services_is_asked_nothing_about_services():
    assert not [check.id for check in load([]).checks if check.of_services]
    assert {"database", "disk", "backup"} <= {check.id for check in load([]).checks}


def test_only_what_a_service_has_is_asked():
    small = SHOP.model_copy(update={"cron": {}, "volumes": {}})
    left_out = {check.id for check in load([SHOP]).checks} - {check.id for check in load([small]).checks}
    assert left_out == {"cron", "volumes"}


def test_a_services_own_questions_are_about_that_service(tmp_path):
    services = [with_checks(tmp_path, OWN), with_checks(tmp_path, OWN, "other")]
    first, second = load(services).checks[-2:]
    assert (first.id, first.owner, first.question) == ("shop.queue", "shop", "shop: Is the queue short?")
    assert first.expression == 'max(queue_length{service="shop"})'
    assert second.expression == 'max(queue_length{service="other"})'
    assert {first.service_of("x"), second.service_of("")} == {"shop", "other"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"expression": "pg_up{service='other'}"}, "asks about shop only"),
        ({"expression": '{__name__=~".+"}'}, "without a metric name"),
        ({"explained_by": ["nothing"]}, "there is no check 'nothing'"),
        ({"per": "ingress", "each": "service"}, "for playbooks/checks.yaml only"),
        ({"asked_from": "outside"}, "for playbooks/checks.yaml only"),
        ({"priority": "P9"}, "queue.priority"),
    ],
)
def test_a_mistake_in_a_services_questions_is_named(tmp_path, fields, told):
    content = copy.deepcopy(OWN)
    content["checks"][0] |= fields
    with pytest.raises(ConfigError) as error:
        load([with_checks(tmp_path, content)])
    assert told in str(error.value)
    assert "shop.checks.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("expression", "scoped_one"),
    [
        ("up", 'up{service="shop"}'),
        ("sum by (a) (rate(b_total[5m])) > 1e3", 'sum by (a) (rate(b_total{service="shop"}[5m])) > 1e3'),
        ('max(x{service="shop",y=~"a{2}|b"}) offset 5m', 'max(x{service="shop",y=~"a{2}|b"}) offset 5m'),
        ("a:b:c[7d:5m] offset 5m", 'a:b:c{service="shop"}[7d:5m] offset 5m'),
        (
            'a and on (b) label_replace(c, "d", "$1", "e", "(.+)")',
            'a{service="shop"} and on (b) label_replace(c{service="shop"}, "d", "$1", "e", "(.+)")',
        ),
        ("time() - max(t) > 3 and vector(1)", 'time() - max(t{service="shop"}) > 3 and vector(1)'),
        ("a / on (x) group_left (y) b", 'a{service="shop"} / on (x) group_left (y) b{service="shop"}'),
        ("x{}", 'x{service="shop"}'),
        ("histogram_quantile(0.5, h)", 'histogram_quantile(0.5, h{service="shop"})'),
    ],
)
def test_every_selector_gets_the_service(expression, scoped_one):
    assert scoped(expression, "shop") == scoped_one


@pytest.mark.parametrize("expression", ['{a="b"}', 'x{__name__="y"}', 'x{service!="shop"}', 'x{service="a"}', "x{a"])
def test_a_selector_of_something_else_is_refused(expression):
    with pytest.raises(ValueError, match=r"selector|service|__name__"):
        scoped(expression, "shop")
