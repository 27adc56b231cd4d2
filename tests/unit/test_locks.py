"""Locks of the backups: another account can neither hold them nor prepare them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minipc_machine import backup, drill, restore
from minipc_machine.locks import locked
from minipc_machine.program import FailedError

HOLD = """
import fcntl, os, sys
os.setuid(65534)
fcntl.flock(open(sys.argv[1], sys.argv[2]), fcntl.LOCK_EX)
"""


@pytest.mark.parametrize("mode", ["r", "w", "a"])
@pytest.mark.parametrize("before", [None, 0o666], ids=["new", "of an earlier version"])
def test_another_account_cannot_hold_a_lock(tmp_path, mode, before):
    if os.geteuid():
        pytest.skip("NOT EXERCISED: not root")
    # Outside pytest's folder, which only root can open.
    path = f"/dev/shm/minipc-test-lock-{os.getpid()}"
    try:
        if before:
            os.close(os.open(path, os.O_CREAT, before))
        with locked(type(tmp_path)(path), "test"):
            pass
        done = subprocess.run([sys.executable, "-c", HOLD, path, mode], capture_output=True, text=True)
        assert "PermissionError" in done.stderr
    finally:
        os.unlink(path)


def test_no_lock_is_in_a_folder_where_every_account_may_create_files():
    for module in (backup, drill, restore):
        assert module.LOCK.is_relative_to("/var/lib/minipc")


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises((OSError, FailedError)), locked(tmp_path / "lock", "test"):
        pass
    assert not (tmp_path / "other").exists()
