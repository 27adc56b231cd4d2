"""When a unit is restarted: exactly when it does not run with the configuration that was placed."""

from __future__ import annotations

import pytest

from minipc.pyinfra_ext.facts.files import FileState
from minipc.pyinfra_ext.operations.files import Placed
from minipc.pyinfra_ext.operations.systemd import digest_of, steps_to

RUNNING = {
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
    "Type": "notify",
    "ConditionResult": "yes",
    "ConditionTimestampMonotonic": "5",
    "Stamp": "r1 l1",
}


def steps(restart="r1", reload="l1", enabled=True, **state):
    return "\n".join(steps_to({"x.service": RUNNING | state}, restart, reload, enabled))


def test_nothing_to_do():
    assert steps() == ""


@pytest.mark.parametrize(
    ("given", "wanted", "unwanted"),
    [
        ({"restart": "r2"}, "systemctl restart x.service", "systemctl reload"),
        ({"reload": "l2"}, "systemctl reload x.service", "systemctl restart"),
        ({"restart": "r2", "reload": "l2"}, "systemctl restart x.service", "systemctl reload"),
        ({"ActiveState": "inactive"}, "systemctl restart x.service", "systemctl reload"),
        ({"ActiveState": "failed", "reload": "l2"}, "systemctl restart x.service", "systemctl reload"),
        ({"UnitFileState": "disabled"}, "systemctl enable --quiet x.service", "systemctl restart"),
        ({"NeedDaemonReload": "yes"}, "systemctl daemon-reload", "systemctl restart"),
        ({"Stamp": ""}, "systemctl restart x.service", "systemctl reload"),
    ],
)
def test_one_step_for_one_reason(given, wanted, unwanted):
    assert wanted in steps(**given)
    assert unwanted not in steps(**given)


def test_the_stamp_is_written_after_the_restart():
    """Power goes between placing a file and the restart: the stamp is old, so the next run restarts."""
    lines = steps(restart="r2").splitlines()
    restart = next(number for number, line in enumerate(lines) if "systemctl restart" in line)
    stamp = next(number for number, line in enumerate(lines) if "echo r2 l1 >" in line)
    assert restart < stamp
    assert lines[-1].startswith("mv ")


def test_daemon_reload_comes_first():
    assert steps(NeedDaemonReload="yes", restart="r2").splitlines()[0] == "systemctl daemon-reload"


def test_several_units_are_enabled_at_once_and_started_in_order():
    states = {name: RUNNING | {"UnitFileState": "disabled", "Stamp": ""} for name in ("b.timer", "a@x.service")}
    lines = steps_to(states, "r1", "l1", enabled=True)
    assert lines[0] == "systemctl enable --quiet b.timer a@x.service"
    assert [line.split(" || ")[0] for line in lines if "systemctl restart" in line] == [
        "systemctl restart b.timer",
        "systemctl restart a@x.service",
    ]


def test_only_the_unit_that_needs_it_is_touched():
    lines = "\n".join(steps_to({"a.service": RUNNING, "b.service": RUNNING | {"Stamp": ""}}, "r1", "l1", enabled=True))
    assert "b.service" in lines
    assert "a.service" not in lines


def test_a_unit_that_its_condition_forbids_is_left_alone():
    assert steps(ActiveState="inactive", ConditionResult="no") == ""
    never_tried = steps(ActiveState="inactive", ConditionResult="no", ConditionTimestampMonotonic="0")
    assert "systemctl restart" in never_tried


def test_a_oneshot_that_ran_rests():
    assert steps(ActiveState="inactive", Type="oneshot") == ""
    assert steps(ActiveState="activating", Type="oneshot") == "", "its timer started it a moment ago"
    assert "restart" in steps(ActiveState="activating", Type="simple")
    assert "restart" in steps(ActiveState="failed", Type="oneshot")


def placed(digest="d", paths=("/etc/x", "/etc/x.d")):
    return Placed(operation=None, digest=digest, paths=paths)


def state(changed, sha256="0" * 64):
    return FileState("regular file", "644", "root", "root", sha256, changed)


def test_a_file_that_was_edited_and_put_back_asks_for_a_restart():
    """Its content is as before; when it got there is not: the unit may have been restarted with the edited one."""
    before = digest_of([placed()], {"/etc/x": state("1.0")})
    assert digest_of([placed()], {"/etc/x": state("1.0")}) == before
    assert digest_of([placed()], {"/etc/x": state("2.0")}) != before
    assert digest_of([placed(digest="e")], {"/etc/x": state("1.0")}) != before


def test_a_directory_changes_with_each_file_in_it_and_does_not_count():
    files = {"/etc/x": state("1.0")}
    before = digest_of([placed()], files)
    assert digest_of([placed()], files | {"/etc/x.d": state("9.0", sha256=None)}) == before
