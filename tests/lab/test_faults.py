"""Test that every fault goes as expected, on real machines."""

from __future__ import annotations

import os

import pytest

from rehearsal import lab
from rehearsal.faults import FAULTS
from tests.lab.conftest import run

NAME = f"fault-{os.getpid()}"


def inject(*names):
    """Rehearse faults. Returns exit code and output, and the record of the table."""
    words = [word for name in names for word in ("--fault", name)]
    try:
        done = run("minipc", "rehearse", "--name", NAME, *words, timeout_s=3000)
    finally:
        left = [machine.name for machine in lab.list_machines() if NAME in machine.name]
        lab.down(left)
    assert left == []
    return done, done.record


@pytest.mark.timeout(900)
def test_two_faults(lab_ready):
    """These two are the fastest, so every test run includes them. Most of the time is the setup."""
    done, record = inject("wrong-bundle-passphrase", "offsite-unreachable")
    assert done.code == 0, done.output
    assert {check["name"]: check["outcome"] for check in record["checks"]} == {
        "wrong-bundle-passphrase": "passed",
        "offsite-unreachable": "passed",
    }


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_all_faults(lab_ready):
    done, record = inject("all")
    seen = {check["name"]: (check["outcome"], check["message"]) for check in record["checks"]}
    assert seen == {fault.name: ("passed", "") for fault in FAULTS}
    assert done.code == 0, done.output
