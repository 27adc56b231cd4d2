"""One operator at a time changes a machine; the second one sees who does, and since when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from minipc import config
from minipc.core.errors import CouldNotVerifyError, RefusedError
from minipc.remote import operator_lock
from minipc.remote.inventory import Target

# It runs the remote command here, as the login shell of the machine would.
SSH = '#!/bin/sh\nfor last; do :; done\nexec bash -c "$last"\n'
OTHER = """
import sys, time
from minipc import config
from minipc.remote import operator_lock, ssh
from minipc.remote.inventory import Target
operator_lock.FILE = sys.argv[1]
ssh.write_config = lambda _: "config"
with operator_lock.held(Target("mini", {}, config.load("lab")), "minipc apply"):
    print("has it", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def target(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(operator_lock, "FILE", str(tmp_path / "lock"))
    monkeypatch.setattr(operator_lock, "_TAKE", operator_lock._TAKE.replace("-w 5", "-w 1"))
    monkeypatch.setattr(operator_lock.ssh, "write_config", lambda _: tmp_path / "config")
    return Target("mini", {}, config.load("lab"))


@pytest.fixture
def other(target, tmp_path):
    """Another operator, in another process, who has the lock."""
    argv = [sys.executable, "-c", OTHER, operator_lock.FILE]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_it_is_free_again_afterwards(target):
    for _ in range(2):
        with operator_lock.held(target, "minipc apply"), operator_lock.held(target, "minipc release sync"):
            pass


def test_the_second_operator_sees_who_has_it_and_since_when(target, other):
    with pytest.raises(RefusedError) as refused, operator_lock.held(target, "minipc rebuild"):
        pass
    assert "minipc apply" in refused.value.what
    assert " on " in refused.value.what
    assert " s: " in refused.value.what
    assert "minipc unlock --host mini" in refused.value.next_step


def test_an_operator_whose_computer_crashed_holds_nothing(target, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with operator_lock.held(target, "minipc rebuild"):
        pass


def test_it_can_be_taken_over(target, other, monkeypatch):
    def run(_, script):
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout

    monkeypatch.setattr(operator_lock, "on", run)
    assert "minipc apply" in operator_lock.end(target)
    with operator_lock.held(target, "minipc rebuild"):
        pass
    assert operator_lock.end(target) == ""
    assert other.poll() is None


def test_a_machine_that_cannot_be_reached_says_so(target, monkeypatch):
    monkeypatch.setattr(operator_lock, "_TAKE", "echo 'ssh: connect: No route to host' >&2; exit 255")
    with pytest.raises(CouldNotVerifyError, match="No route to host"), operator_lock.held(target, "minipc apply"):
        pass


def test_a_fault_inside_frees_it(target):
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), operator_lock.held(target, "minipc apply"):
        raise ZeroDivisionError
    with operator_lock.held(target, "minipc apply"):
        pass
    assert time.monotonic() - started < 4
