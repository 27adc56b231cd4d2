"""Which machine may be converged, and which not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minipc.errors import EXIT_REFUSED, RefusedError
from minipc.facts.machine import Admission, MachineAdmission
from minipc.guards import NEEDED_MB, admit, refuse_lockout

OURS = Admission(identity="id-1", user="root", version="13", free_mb=NEEDED_MB)


def test_our_machine_is_admitted():
    admit("m", "id-1", OURS)


@pytest.mark.parametrize(
    ("pinned", "found", "told"),
    [
        (None, OURS, "pins no machine identity"),
        ("id-1", replace(OURS, identity=None), "never adopted"),
        ("id-2", OURS, "this is another machine: its identity is id-1, the inventory pins id-2"),
        ("id-1", replace(OURS, user="ops"), "logged in as ops"),
        ("id-1", replace(OURS, version="12"), "Debian 13 is needed, the machine has 12"),
        ("id-1", replace(OURS, version=""), "something else"),
        ("id-1", replace(OURS, free_mb=NEEDED_MB - 1), "MB free below /var"),
    ],
)
def test_any_other_is_refused_with_a_next_step(pinned, found, told):
    with pytest.raises(RefusedError, match=told) as error:
        admit("m", pinned, found)
    assert error.value.exit_code == EXIT_REFUSED == 3
    assert error.value.next_step


def test_what_the_machine_says_is_read():
    fact = MachineAdmission()
    told = ["root", "13", " 7012M", "10.77.0.1", "id-1"]
    assert fact.process(told) == Admission("id-1", "root", "13", 7012, "10.77.0.1")
    assert fact.process(["root", "", "12M", ""]) == Admission(None, "root", "", 12)


def test_settings_that_would_lock_us_out_are_refused():
    refuse_lockout("m", ["10.77.0.0/24", "fd77::/64"], "10.77.0.1")
    refuse_lockout("m", ["10.77.0.0/24", "fd77::/64"], "fd77::1")
    refuse_lockout("m", ["10.77.0.0/24"], "")  # not over SSH: a console
    with pytest.raises(
        RefusedError, match=r"you come from 192\.168\.1\.9, which is in none of firewall_operator_networks"
    ):
        refuse_lockout("m", ["10.77.0.0/24"], "192.168.1.9")
