#!/usr/bin/python3
# Written by minipc (templates/repositories/restore_state.py).
"""Brings back what the lost machine kept beside its database: restore-state PATH…

Each path comes from the newest snapshot of this machine's name that has it. One that is not empty here is left alone.
No snapshot has it: said, and no failure, the machine may never have had it. A repository that can't be asked: exit 4.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from common import (
    EXIT_COULD_NOT_VERIFY,
    STATE,
    FailedError,
    ended,
    ensure_reachable,
    read_json,
    restic,
    say,
    settings,
    write_file,
)

DONE = STATE / "state.json"
NO_REPOSITORY = "ended with 10:"  # restic's exit code


def main(paths: list[str]) -> int:
    config = settings()
    snapshots = _snapshots(config)
    for path in paths:
        _record(path, bring_back(config, path, snapshots))
    return 0


def bring_back(config: dict[str, Any], path: str, snapshots: list[dict[str, Any]]) -> str | None:
    """Restores one path; the snapshot it came from, None when it was left as it is."""
    if _holds_something(Path(path)):
        say(f"{path}: something is there, left as it is")
        return None
    having = [each for each in snapshots if path in each["paths"]]
    if not having:
        say(f"{path}: no snapshot of {config['host']} has it")
        return None
    newest = max(having, key=lambda each: str(each["time"]))
    restic(config, "restore", newest["id"], "--target", "/", "--include", path)
    say(f"{path}: restored from snapshot {newest['short_id']} of {newest['time'][:16]}")
    return str(newest["short_id"])


def _snapshots(config: dict[str, Any]) -> list[dict[str, Any]]:
    """All of this machine's; none when the repository was never made."""
    try:
        ensure_reachable(config)
        said = restic(config, "snapshots", "--json", "--host", config["host"], "--tag", "minipc", timeout_s=300)
    except FailedError as error:
        if NO_REPOSITORY in str(error):
            return []
        raise FailedError(f"{error}; nothing was brought back, run again", EXIT_COULD_NOT_VERIFY) from None
    return list(json.loads(said))


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _record(path: str, snapshot: str | None) -> None:
    """It is not asked for again: from now on this machine makes its own."""
    write_file(DONE, json.dumps(read_json(DONE) | {path: {"snapshot": snapshot, "at": time.time()}}) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FailedError as error:
        sys.exit(ended(error))
