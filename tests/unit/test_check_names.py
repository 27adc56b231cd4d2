"""Names of the checks in tests/verify, as reports show them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minipc.core.paths import ROOT
from minipc.core.variables import EVENTS_VARIABLE
from minipc.evidence.event_stream import CheckEnd, Plan, read

FILES = sorted((ROOT / "tests/verify").rglob("test_*.py"))
CHECKS = '''
import pytest
def test_sentence():
    """The API is not reachable from the public network.

    More words."""
@pytest.mark.parametrize("path", ["/etc/a", "/etc/b-c"])
def test_parameters(path):
    """Only root can read the file."""
    assert path == "/etc/a"
def test_without_docstring(): pytest.skip("NOT EXERCISED: no client")
'''


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_check_has_a_sentence(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            assert first[:1].isupper(), f"{node.name} needs a sentence as docstring: reports show it as its name"
            assert first.endswith("."), f"{node.name}: the sentence must fit on the first line"


def outcomes(folder: Path, checks: str, *options: str) -> list[tuple[str, str, str]]:
    (folder / "test_api.py").write_text(checks)
    events = folder / "events.jsonl"
    argv = [sys.executable, "-m", "pytest", "-p", "minipc.verification.pytest_plugin", "-p", "no:cacheprovider"]
    env = os.environ | {EVENTS_VARIABLE: str(events)}
    argv += [*options, f"--rootdir={folder}", str(folder)]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True)
    plan, *ends = read(events)
    assert isinstance(plan, Plan), done.stdout
    assert plan.operations == len(ends)
    return [(each.name, each.outcome, each.message) for each in ends if isinstance(each, CheckEnd)]


def test_reports_show_the_sentence_and_the_parameters(tmp_path: Path) -> None:
    assert [each[:2] for each in outcomes(tmp_path, CHECKS)] == [
        ("The API is not reachable from the public network", "passed"),
        ("Only root can read the file (/etc/a)", "passed"),
        ("Only root can read the file (/etc/b-c)", "failed"),
        ("without docstring", "not-exercised"),
    ]


def test_a_check_that_fails_once_passes_and_says_so(tmp_path: Path) -> None:
    checks = f'''
from pathlib import Path
def test_late():
    """The metric is there."""
    seen = Path({str(tmp_path / "seen")!r})
    first = not seen.exists()
    seen.touch()
    assert not first, "no metric"
def test_never():
    """The port is closed."""
    assert False, "it is open"
'''
    late, never = outcomes(tmp_path, checks, "--reruns", "1")
    assert late[:2] == ("The metric is there", "passed")
    assert "second attempt" in late[2]
    assert "no metric" in late[2]
    assert never[:2] == ("The port is closed", "failed")
    assert "it is open" in never[2]


CHANGES = re.compile(
    r"systemctl (stop|restart|reload|kill|mask|disable)|nft (delete|flush|add|insert)|nft -f -"
    r"|kill -(KILL|9|TERM|STOP)|pkill|kubectl (delete|scale|apply|patch)"
)


def test_a_check_that_stops_or_changes_something_is_for_the_lab_only():
    found = []
    for path in sorted((ROOT / "tests/verify").rglob("*.py")):
        source = path.read_text()
        for function in ast.parse(source).body:
            if isinstance(function, ast.FunctionDef) and CHANGES.search(ast.get_source_segment(source, function) or ""):
                # The fixture that ends as NOT EXERCISED on a machine in service.
                found.append((path.name, function.name, "disturb" in [each.arg for each in function.args.args]))
    assert [each for each in found if not each[2]] == []
    assert len(found) > 5, "the search finds nothing any more"
