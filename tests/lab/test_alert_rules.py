"""Test each alert rule with series at which it must fire, and must not, using promtool on the machine.

tests/unit/test_promtool.py does the same on the controller, where promtool is available.
"""

from __future__ import annotations

import shlex

import pytest

from tests.alert_cases import CASES, promtool_files, rules_of
from tests.lab.conftest import on
from tests.lab.test_alerts import watched

__all__ = ["watched"]
FOLDER = "/run/minipc-test-rules"


@pytest.mark.parametrize("name", CASES)
def test_alerts_fire_when_they_should_and_only_then(watched, name):
    files = promtool_files(rules_of(name), CASES[name])
    script = f"rm -rf {FOLDER} && mkdir -p {FOLDER} && cd {FOLDER}"
    script += "".join(f" && printf %s {shlex.quote(text)} > {file}" for file, text in files.items())
    said = on(watched, f"{script} && promtool test rules *.test.yml 2>&1 || true", timeout_s=120)
    assert said.count("SUCCESS") == len({case.alert for case in CASES[name]}), said[:6000]
