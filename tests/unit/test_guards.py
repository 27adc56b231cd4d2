"""Which machine may be converged, and which not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minipc.config import load
from minipc.core.errors import EXIT_REFUSED, RefusedError
from minipc.pyinfra_ext.facts.machine import Admission, MachineAdmission
from minipc.pyinfra_ext.guards import NEEDED_MB, admit, refuse_lockout, replaced_keys

OURS = Admission(identity="id-1", user="root", version="13", free_mb=NEEDED_MB)


def test_our_machine_is_admitted():
    admit("m", "id-1", OURS)


@pytest.mark.parametrize(
    ("pinned", "found", "told"),
    [
        (None, OURS, "does not pin an identity"),
        ("id-1", replace(OURS, identity=None), "was not adopted"),
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
    told = ["root", "13", " 7012M", "10.77.0.1 22 operator0", "id-1"]
    assert fact.process(told) == Admission("id-1", "root", "13", 7012, "10.77.0.1", 22, "operator0")
    assert fact.process(["root", "13", "1M", "10.77.0.1 22"]) == Admission(None, "root", "13", 1, "10.77.0.1", 22)
    assert fact.process(["root", "", "12M", ""]) == Admission(None, "root", "", 12)


@pytest.fixture(scope="module")
def settings():
    return load("lab", host_operator_keys=[], firewall_operator_networks=["10.77.0.0/24", "fd77::/64"])


CAME = replace(OURS, client="10.77.0.1", port=22, interface="operator0")


@pytest.mark.parametrize(
    "found",
    [
        CAME,
        replace(CAME, client="fd77::1"),
        replace(CAME, client="10.99.0.2", interface="wg0"),
        replace(CAME, client="fd99:6d69:6e69::2", interface="wg0"),
        OURS,  # not over SSH: a console
    ],
)
def test_settings_that_let_us_in_again_are_admitted(settings, found):
    refuse_lockout("m", settings, found)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            replace(CAME, client="192.168.1.9"),
            r"you connect from 192\.168\.1\.9, .* neither in firewall_operator_networks",
        ),
        (replace(CAME, port=2200), r"your SSH connection uses port 2200, which is not in firewall_operator_tcp \(22\)"),
        (replace(CAME, interface="public0"), r"uses public0, .* not in firewall_operator_interfaces \(operator0\)"),
        (replace(CAME, interface=""), "an unknown interface"),
    ],
)
def test_settings_that_would_lock_us_out_are_refused(settings, found, told):
    with pytest.raises(RefusedError, match=told) as error:
        refuse_lockout("m", settings, found)
    assert "nothing was changed" in error.value.next_step


OLD, NEW = "ssh-ed25519 AAAAold", "ssh-ed25519 AAAAnew"


@pytest.mark.parametrize(
    ("authorized", "replaced", "gone"),
    [
        ("", "", []),
        (f"restrict {NEW} mini PC\n", f"{OLD}\n", [OLD]),
        (f"restrict {OLD} mini PC\n", "", [OLD]),
        # It was cut off between the two files.
        (f"restrict {OLD} mini PC\n", f"{OLD}\n", [OLD]),
    ],
)
def test_a_new_key_replaces_the_one_that_got_in(authorized, replaced, gone):
    assert replaced_keys(NEW, authorized, replaced) == gone


def test_a_replaced_machines_key_never_gets_in_again():
    """Another computer, whose secrets are older than the rebuild, converges the off-site machine."""
    with pytest.raises(RefusedError, match="older than the last rebuild"):
        replaced_keys(OLD, f"restrict {NEW} mini PC\n", f"{OLD}\n")
