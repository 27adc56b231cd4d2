"""The operator's questions: the file itself, and one error for each rule of its schema."""

from __future__ import annotations

import copy

import pytest
import yaml

from minipc.checks import load
from minipc.checks.load import FILE
from minipc.checks.schema import seconds
from minipc.errors import ConfigError

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
    assert len(load().checks) >= 8


def test_the_good_example_is_good(tmp_path):
    assert [check.id for check in load(written(tmp_path, GOOD)).checks] == ["one", "two"]


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
        ({"expression": None, "alert": None}, "nothing can answer it"),
        ({"priority": "P4"}, "one.priority"),
        ({"meaning": ""}, "one.meaning"),
        ({"next": ""}, "one.next"),
        ({"asked_from": "space"}, "one.asked_from"),
        ({"explained_by": ["three"]}, "there is no such check"),
        ({"explained_by": ["two"]}, "goes in a circle"),
        ({"id": "two"}, "id two is used twice"),
        ({"alert": "TwoDown"}, "alert TwoDown is used twice"),
        ({"id": "One"}, "One.id"),
        ({"colour": "red"}, "one.colour: Extra inputs are not permitted"),
    ],
)
def test_each_rule_says_where_and_what(tmp_path, fields, told):
    with pytest.raises(ConfigError) as error:
        load(written(tmp_path, changed(**fields)))
    assert told in str(error.value)
    assert "checks.yaml" in str(error.value)


def test_every_priority_has_its_time(tmp_path):
    content = copy.deepcopy(GOOD)
    del content["sla"]["P2"]
    with pytest.raises(ConfigError, match="sla lacks P2"):
        load(written(tmp_path, content))


def test_an_unreadable_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("checks: [")
    with pytest.raises(ConfigError, match="no valid YAML"):
        load(tmp_path / "broken.yaml")


def test_explanations_go_through_others():
    assert {"database", "workers", "heartbeats"} <= load().explanations("last-success")


def test_durations():
    assert [seconds(text) for text in ("90s", "5m", "2h", "35d")] == [90, 300, 7200, 3_024_000]


@pytest.mark.parametrize(
    ("bad_when", "bad", "good"),
    [("== 0", 0, 1), ("!= 1", 0, 1), ("> 5", 6, 5), (">= 5", 5, 4), ("< 0.5", 0.4, 0.5), ("<= 0.5", 0.5, 0.6)],
)
def test_what_is_bad(bad_when, bad, good):
    check = load().checks[0].model_copy(update={"bad_when": bad_when})
    assert check.is_bad(bad)
    assert not check.is_bad(good)


def test_comments_and_questions_stay_within_the_line():
    assert all(len(line) <= 130 for line in FILE.read_text().splitlines())
