"""Load a queue's newest copy from the backup into a scratch Redis server, and count its keys."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from minipc_machine.load_queue import serve
from minipc_machine.processes import run
from minipc_machine.program import FailedError
from minipc_machine.repositories import Settings, restic, restic_output, snapshots

COPY = "dump.rdb"
# Not below /tmp, which may be memory.
SCRATCH = "/var/lib/minipc"


def count(config: Settings, folder: str) -> tuple[str, int] | None:
    """Return the snapshot of a queue, and the number of its keys; None if it has no copy: nothing was ever stored.

    Args:
        folder: of the queue, on this machine.

    Raises:
        FailedError: there is no snapshot of it, it can't be read, or Redis does not accept the copy.
    """
    found = [each for each in snapshots(config, "minipc") if folder in each.paths]
    if not found:
        raise FailedError("there is no snapshot of it")
    newest, copy = found[-1], f"{folder}/{COPY}"
    if copy not in restic(config, "ls", newest.id, folder).splitlines():
        return None
    scratch = Path(tempfile.mkdtemp(prefix="queue-drill-", dir=SCRATCH))
    try:
        with restic_output(config, "dump", newest.id, copy) as output, (scratch / COPY).open("wb") as file:
            shutil.copyfileobj(output, file, 1 << 20)
        for path in (scratch / COPY, scratch):
            shutil.chown(path, "redis", "redis")
        with serve(scratch) as ask:
            return newest.short_id, int(run([*ask, "dbsize"], 60))
    finally:
        shutil.chown(scratch, "root", "root")
        shutil.rmtree(scratch)
