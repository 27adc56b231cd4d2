"""What pyinfra calls an operation, what the display shows, and what a plan reads."""

from __future__ import annotations

import pytest

from minipc.core.errors import RefusedError
from minipc.pyinfra_ext.converge import ConvergeError, PendingChange, _failure, pending_changes
from minipc.pyinfra_ext.progress import split_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deploys/redis.py | redis | install packages", ("redis", "install packages")),
        ("redis | configure", ("redis", "configure")),
        ("deploys/host.py | host | set | the name", ("host", "set | the name")),
        ("server.shell", ("", "server.shell")),
    ],
)
def test_names(name, expected):
    assert split_name(name) == expected


def test_a_conditional_change_is_pending_too():
    payload = {
        "plan": [
            {"names": ["redis | a"], "hosts_with_change": ["m"], "hosts_with_conditional_change": []},
            {"names": ["redis | b"], "hosts_with_change": [], "hosts_with_conditional_change": ["m"]},
            {"names": ["redis | c"], "hosts_with_change": [], "hosts_with_conditional_change": []},
        ]
    }
    assert pending_changes(payload) == [PendingChange("redis", "a"), PendingChange("redis", "b")]


def test_a_failure_names_the_operation_and_how_to_go_on(tmp_path):
    said = "--> Starting operation: redis | configure \n    [m] refused: the check of /etc/x failed\n"
    error = _failure(1, said, tmp_path / "log", ["pyinfra"])
    assert isinstance(error, ConvergeError)
    assert "during `redis | configure`" in error.what
    assert "the check of /etc/x failed" in error.what
    assert "run the same command again" in error.next_step


def test_exit_3_is_a_refusal_and_a_signal_is_named():
    assert isinstance(_failure(3, "x", None, ["pyinfra"]), RefusedError)
    assert "killed by signal 9" in _failure(-9, "x", None, ["pyinfra"]).what
