"""The services that somebody else wrote, Django and Node, on one machine: built, used, lost, rebuilt and compared."""

from __future__ import annotations

import os

import pytest

from rehearsal import lab
from tests.lab.conftest import run

NAME = f"others-{os.getpid()}"
SERVICES = {"MINIPC_SERVICES": "examples/django/services:examples/node/services"}
MACHINES = [NAME, f"{NAME}-2", f"offsite-{NAME}"]


@pytest.mark.long
@pytest.mark.timeout(1800, func_only=True)
def test_they_are_rebuilt_with_their_data(lab_ready):
    lab.down(MACHINES)
    try:
        done = run("minipc", "rehearse", "--runtime", "podman", "--name", NAME, env=SERVICES, timeout_s=1700)
    finally:
        lab.down(MACHINES)
    assert done.code == 0, done.output[-6000:]
    record = done.record
    classes = {each["name"]: each for each in record["data_classes"]}
    for service in ("wiki", "flags"):
        measured = classes[f"{service}: must recover"]
        assert measured["verdict"] == "pass"
        assert measured["rows_found"] == measured["rows_expected"] > 0
