"""Remove the machines of a process that died without doing it: `python -m rehearsal.lab.reaper PID STARTED`.

Each owner has one small detached reaper. It waits on the owner's pidfd, so even `kill -9` of the owner leaves nothing
behind. `minipc lab down --all` removes the leftovers if the reaper was killed too.
"""

from __future__ import annotations

import os
import select
import sys
import time

from minipc.core.errors import MinipcError
from rehearsal.lab.lifecycle import remove_owned_by
from rehearsal.lab.machine import ProcessId
from rehearsal.lab.ownership import enter_own_group

TRIES = 30
PAUSE_S = 10


def main(owner: ProcessId) -> None:
    enter_own_group(owner)
    wait_for_end(owner)
    remove(owner)


def remove(owner: ProcessId) -> None:
    """Remove its machines. A process that waits for a busy disk cannot be killed for a while, so try repeatedly.

    Raises:
        MinipcError: they could not be removed within five minutes.
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
    """Wait until the process has ended."""
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
