"""The schemas of settings and results: strict where a mistake would be silent, and able to read earlier versions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from minipc.core.errors import CouldNotVerifyError
from minipc.pyinfra_ext.facts.backups import BackupsState
from minipc.remote.results import parse_result
from minipc_machine import backup_state, drill_results, schema


@dataclass(frozen=True)
class Inner:
    name: str
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    inner: Inner
    pairs: list[tuple[str, str]]
    counts: dict[str, int]
    maybe: int | None = None


GOOD = {"kind": "a", "inner": {"name": "x", "share": 1}, "pairs": [["a", "b"]], "counts": {"n": 1}}


def test_what_was_written_is_read():
    value = schema.parse(Outer, GOOD, "file")
    assert value == Outer("a", Inner("x", 1.0), [("a", "b")], {"n": 1})
    assert schema.loads(Outer, schema.dump(value), "file") == value
    assert schema.loads(dict[str, Outer], schema.dump({"one": value}), "file") == {"one": value}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": "c"}, "file: kind: expected one of 'a', 'b', found 'c'"),
        ({"inner": {}}, "file: inner: the field 'name' is missing"),
        ({"inner": {"name": 1}}, "file: inner: name: expected str, found int"),
        ({"inner": {"name": "x", "shre": 1}}, "file: inner: unknown field 'shre'; known are name, share"),
        ({"inner": []}, "file: inner: expected an object, found list"),
        ({"pairs": [["a"]]}, r"file: pairs\[0\]: expected 2 values, found 1"),
        ({"pairs": "ab"}, "file: pairs: expected a list, found str"),
        ({"counts": {"n": True}}, "file: counts.n: expected int, found bool"),
        ({"counts": {"n": 1.0}}, "file: counts.n: expected int, found float"),
        ({"maybe": "1"}, "file: maybe: expected int, found str"),
        ({"more": 1}, "file: unknown field 'more'"),
    ],
)
def test_a_mistake_is_named_with_its_place(change, error):
    with pytest.raises(schema.SchemaError, match=f"^{error}"):
        schema.parse(Outer, GOOD | change, "file")


def test_results_of_another_version_may_have_more_fields():
    assert schema.parse(Inner, {"name": "x", "new": 1}, "file", ignore_unknown=True) == Inner("x")


def test_text_that_is_not_json_is_an_error_with_its_place():
    with pytest.raises(schema.SchemaError, match=r"^file is not valid JSON"):
        schema.loads(Inner, '{"name": ', "file")


def test_the_controller_gets_its_own_error():
    with pytest.raises(CouldNotVerifyError, match=r"last\.json: the field 'repo' is missing"):
        parse_result(drill_results.Result, '{"started": 1}', "last.json")


def test_values_are_never_part_of_an_error():
    with pytest.raises(schema.SchemaError) as error:
        schema.parse(Outer, GOOD | {"password": "secret"}, "file")
    assert "secret" not in str(error.value)


def test_files_of_the_version_before_the_schemas_are_read():
    """A machine that an earlier commit converged has these; its programs wrote no field without a value."""
    old = {
        "repo1": {"label": "F", "size": 1, "success": True, "last_success": 5.5, "error": "", "seconds": 1, "ended": 6},
        "repo2": {"success": False, "error": "unreachable", "seconds": 0.1, "ended": 7},
    }
    read = backup_state.outcomes(json.dumps(old))
    assert (read["repo1"].last_success, read["repo2"].last_success, read["repo2"].label) == (5.5, 0, "")
    restore = {"repo": 2, "label": "F", "bytes": 1, "seconds": 0.5, "at": 1.5}
    assert schema.parse(backup_state.Restore, restore, "f").wal_until is None
    result = {"id": "x", "repo": 2, "started": 1.5, "phases": [], "checks": [], "classes": [], "not_exercised": []}
    assert drill_results.parse(json.dumps(result), "f").ended == 0


def test_the_fact_of_the_backups_reads_the_same_classes():
    stanza = json.dumps({"system_id": "7", "repos": [1, 2]})
    outcomes = json.dumps({"repo1": {"success": True, "seconds": 1, "ended": 2, "last_success": 2}})
    state = json.dumps({"/var/lib/x": {"snapshot": None, "at": 1.5}})
    found = BackupsState().process(["live 7", f"stanza {stanza}", f"outcomes {outcomes}", f"state {state}"])
    assert (found.live, found.stanza, found.stanza_repos) == ("7", "7", (1, 2))
    assert (found.taken, found.state) == (("repo1",), ("/var/lib/x",))
    empty = BackupsState().process(["live", "stanza", "outcomes", "state"])
    assert (empty.live, empty.stanza, empty.taken, empty.state) == (None, None, (), ())
