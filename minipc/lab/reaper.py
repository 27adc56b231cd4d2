"""Removes the machines of a process that died without doing it: `python -m minipc.lab.reaper PID STARTED`.

One small detached process for each owner. It waits on the owner's pidfd, so that not even `kill -9` of the owner
leaves anything behind. `minipc lab down --all` mends what is left when the reaper is killed too.
"""

from __future__ import annotations

import os
import select
import sys
import time

from minipc.errors import MinipcError
from minipc.lab.lifecycle import remove_owned_by
from minipc.lab.machine import ProcessId
from minipc.lab.ownership import enter_own_group

TRIES = 30
PAUSE_S = 10


def main(owner: ProcessId) -> None:
    enter_own_group(owner)
    wait_for_end(owner)
    remove(owner)


def remove(owner: ProcessId) -> None:
    """Removes its machines. A process that waits for a busy disk can't be killed for a while: then again, later.

    Raises:
        MinipcError: it still can't after five minutes.
    """
    for left in reversed(range(TRIES)):
        try:
            remove_owned_by(owner)
            return
        except MinipcError:
            if not left:
                raise
            time.sleep(PAUSE_S)


def wait_for_end(process: ProcessId) -> None:
    """Return when the process is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    if process.is_running():  # and not a later one with the same number
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()


if __name__ == "__main__":
    main(ProcessId(int(sys.argv[1]), int(sys.argv[2])))
