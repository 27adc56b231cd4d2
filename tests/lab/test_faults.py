"""Every fault goes as it should, on real machines."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from minipc import lab
from playbooks.faults import FAULTS
from tests.lab.conftest import run

NAME = f"fault-{os.getpid()}"


def play(*names):
    """Exit code and output, and the table's record."""
    words = [word for name in names for word in ("--fault", name)]
    try:
        done = run("minipc", "rehearse", "--name", NAME, *words, timeout_s=3000)
    finally:
        left = [machine.name for machine in lab.list_machines() if NAME in machine.name]
        lab.down(left)
    assert left == []
    path = re.search(r"Record\s+(\S+)", done.output)
    assert path, done.output
    return done, json.loads(Path(path[1]).read_text())


@pytest.mark.timeout(900)
def test_two_of_them_in_every_test_run(lab_ready):
    """The ones that cost least: the stage is most of it."""
    done, record = play("wrong-bundle-passphrase", "offsite-unreachable")
    assert done.code == 0, done.output
    assert {check["name"]: check["outcome"] for check in record["checks"]} == {
        "wrong-bundle-passphrase": "passed",
        "offsite-unreachable": "passed",
    }


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_the_whole_table(lab_ready):
    done, record = play("all")
    seen = {check["name"]: (check["outcome"], check["message"]) for check in record["checks"]}
    assert seen == {fault.name: ("passed", "") for fault in FAULTS}
    assert done.code == 0, done.output
