"""Restore what the lost machine kept in files beside its database: restore-state PATH…

Each path comes from the newest snapshot of this machine's name that contains it. A path that is not empty here is left
alone, unless an interrupted run has filled it. A path that no snapshot contains is reported and is not an error: the
lost machine may never have had it. Exit code 4: the repository can't be reached or read. With
`minipc rebuild --without-state` that is not an error, either: certificates and the like are made again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from minipc_machine import backup_state, schema
from minipc_machine.backup_state import RestoredPath
from minipc_machine.files import write_file
from minipc_machine.program import EXIT_COULD_NOT_VERIFY, EXIT_PASS, FailedError, say
from minipc_machine.repositories import Settings, Snapshot, restic, settings, snapshots, until

DONE = backup_state.RESTORED_PATHS
# Exists while a path is being restored, and names it: what is in that path may be half of it.
UNFINISHED = backup_state.STATE / "state-unfinished"
WITHOUT_STATE = backup_state.WITHOUT_STATE


def main(paths: list[str]) -> int:
    """Restore the paths. Raises FailedError if the repository can't be reached; then nothing was changed."""
    config = settings()
    try:
        found = snapshots(config, "minipc")
        for path in paths:
            _record(path, restore(config, path, found))
    except FailedError as error:
        if not WITHOUT_STATE.exists():
            what = "not everything was restored: run again, or go on without it: minipc rebuild --without-state"
            raise FailedError(f"{error}; {what}", EXIT_COULD_NOT_VERIFY) from None
        known = backup_state.restored_paths(DONE.read_text()) if DONE.exists() else {}
        for path in (each for each in paths if each not in known):
            say(f"{path}: NOT RESTORED, as --without-state accepts: {error}")
            _record(path, None)
    return EXIT_PASS


def restore(config: Settings, path: str, found: Sequence[Snapshot]) -> str | None:
    """Restore one path; return the snapshot it came from, or None if it was left as it is."""
    interrupted = UNFINISHED.exists() and UNFINISHED.read_text() == path
    if _is_in_use(Path(path)) and not interrupted:
        say(f"{path}: is not empty, left as it is")
        return None
    candidates = [each for each in found if path in each.paths]
    if ("redis", path) in config.paths:
        # Jobs belong to the data. Certificates and images do not.
        candidates = until(candidates, backup_state.moment())
    if not candidates:
        say(f"{path}: no snapshot of {config.host} contains it")
        return None
    newest = candidates[-1]
    write_file(UNFINISHED, path)
    restic(config, "restore", newest.id, "--target", "/", "--include", path)
    # Before the record says that it is there.
    os.sync()
    say(f"{path}: restored from snapshot {newest.short_id} of {newest.time[:16]}")
    return newest.short_id


def _is_in_use(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _record(path: str, snapshot: str | None) -> None:
    """Remember that the path was asked for: from now on this machine makes its own."""
    known = backup_state.restored_paths(DONE.read_text()) if DONE.exists() else {}
    write_file(DONE, schema.dump(known | {path: RestoredPath(snapshot, time.time())}))
    UNFINISHED.unlink(missing_ok=True)
