"""Let one program at a time do something."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minipc_machine.program import EXIT_COULD_NOT_VERIFY, FailedError, say

POLL_S = 0.2


@contextmanager
def locked(path: Path, what: str, wait_s: float = 0, code: int = EXIT_COULD_NOT_VERIFY) -> Iterator[None]:
    """Hold a lock file; the lock ends with the process.

    Args:
        what: name of the program, for the error.
        wait_s: how long to wait for another holder.
        code: exit code of the error.

    Raises:
        FailedError: another program still holds the lock after `wait_s`.
    """
    # An account that can open the file can hold the lock.
    with open(path, "w", encoding="utf-8", opener=_private) as file:
        os.fchmod(file.fileno(), 0o600)
        give_up_at = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise FailedError(f"another {what} is running; this one was not started", code) from None
                time.sleep(POLL_S)
        yield


@contextmanager
def awake(what: str) -> Iterator[None]:
    """Have systemd-logind refuse to shut down or suspend the machine meanwhile. Without logind, nothing is refused.

    Args:
        what: what must not be interrupted, such as "backup".
    """
    argv = ["systemd-inhibit", "--what=shutdown:sleep", "--mode=block", "--who=minipc", f"--why={what} is running"]
    try:
        # It holds the refusal until its program ends, and `cat` ends with its input.
        process = subprocess.Popen([*argv, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    except OSError as error:
        say(f"a reboot can interrupt this: systemd-inhibit cannot be started: {error.strerror}")
        yield
        return
    try:
        yield
    finally:
        process.communicate()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
