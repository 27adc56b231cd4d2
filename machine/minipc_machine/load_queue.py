"""Load the restored copy of a Redis queue: load-queue FOLDER.

A server that starts with an append-only file ignores the copy (dump.rdb), and would begin empty. So the copy is loaded
by a server without one, which then writes it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minipc_machine.processes import run
from minipc_machine.program import EXIT_PASS, FailedError, say

LIMIT_S = 600
ACCOUNT = ["setpriv", "--reuid=redis", "--regid=redis", "--init-groups", "--"]


def main(arguments: list[str]) -> int:
    """Load the copy in a folder. Raises FailedError if Redis does not accept it; then the copy is still there."""
    if len(arguments) != 1:
        raise FailedError("usage: load-queue FOLDER")
    folder = Path(arguments[0])
    if not (folder / "dump.rdb").exists():
        say(f"{folder}: there is no copy to load")
        return EXIT_PASS
    shutil.rmtree(folder / "appendonlydir", ignore_errors=True)
    with serve(folder) as ask:
        run([*ask, "config", "set", "appendonly", "yes"], 60)
        wait(lambda: _written(run([*ask, "info", "persistence"], 10)), "it does not write the append-only file")
        keys = run([*ask, "dbsize"], 10).strip()
    say(f"{folder}: loaded, {keys} keys")
    return EXIT_PASS


@contextmanager
def serve(folder: Path) -> Iterator[list[str]]:
    """Run a server with the copy in a folder, on a socket only, and yield the command that asks it.

    Raises:
        FailedError: Redis does not accept the copy.
    """
    with tempfile.TemporaryDirectory() as scratch:
        shutil.chown(scratch, "redis", "redis")
        socket = f"{scratch}/socket"
        command = ["redis-server", "--port", "0", "--unixsocket", socket, "--dir", str(folder), "--appendonly", "no"]
        # As the server's account: in a drill root may not write to a socket of another account.
        ask = [*ACCOUNT, "redis-cli", "-s", socket]
        try:
            run([*ACCOUNT, *command, "--save", "", "--daemonize", "yes", "--logfile", f"{scratch}/log"], 60)
            wait(lambda: run([*ask, "ping"], 10, accepted=(0, 1)).strip() == "PONG", "it does not load the copy")
            yield ask
        finally:
            run([*ask, "shutdown", "nosave"], 60, accepted=(0, 1))
            # Or root, in a drill, could not remove what is in it.
            shutil.chown(scratch, "root", "root")


def _written(text: str) -> bool:
    """Return whether the append-only file is complete."""
    found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    done = (found["aof_rewrite_in_progress"], found["aof_rewrite_scheduled"]) == ("0", "0")
    return done and (found["aof_enabled"], found["aof_last_bgrewrite_status"]) == ("1", "ok")


def wait(done: Callable[[], bool], why: str) -> None:
    """Wait until something is done. Raises FailedError with the reason if that takes too long."""
    give_up_at = time.monotonic() + LIMIT_S
    while not done():
        if time.monotonic() > give_up_at:
            raise FailedError(f"redis-server: {why}")
        time.sleep(0.2)
