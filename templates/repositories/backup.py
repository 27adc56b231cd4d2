#!/usr/bin/python3
# Written by minipc (templates/repositories/backup.py).
"""Takes backups: backup full|diff|files [full|diff|files]…

`full` and `diff` are pgBackRest's, one repository after the other; `files` sends configuration and state to restic.
One that fails doesn't keep the next from being tried. Every outcome becomes a metric.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import (
    EXIT_FAIL,
    EXIT_PASS,
    STATE,
    FailedError,
    ended,
    ensure_reachable,
    locked,
    pgbackrest,
    read_json,
    repository,
    restic,
    say,
    settings,
    write_file,
    write_metrics,
)

OUTCOMES = STATE / "outcomes.json"
KINDS = ("full", "diff", "files")
LOCK_WAIT_S = 4 * 3600
NO_REPOSITORY = 10  # restic's exit code


def main(kinds: list[str]) -> int:
    if not kinds or set(kinds) - set(KINDS):
        raise FailedError(f"usage: backup {'|'.join(KINDS)}…")
    config = settings()
    with locked("backup", LOCK_WAIT_S):
        good = [each for kind in kinds for each in _take(config, kind)]
    return EXIT_PASS if all(good) else EXIT_FAIL


def _take(config: dict[str, Any], kind: str) -> list[bool]:
    if kind != "files":
        return [
            attempt(config, f"repo{repo}", lambda repo=repo: database(config, repo, kind)) for repo in config["repos"]
        ]
    if config["restic"] is None:
        say("NOT EXERCISED: configuration and state are not backed up: there is no off-site machine")
        return []
    return [attempt(config, "restic", lambda: files(config))]


def attempt(config: dict[str, Any], repo: str, take: Callable[[], dict[str, Any]]) -> bool:
    """Takes one backup and writes down how it went."""
    outcomes = read_json(OUTCOMES)
    before = outcomes.get(repo, {})
    started = time.time()
    try:
        outcome = take() | {"success": True, "last_success": time.time(), "error": ""}
    except FailedError as error:
        outcome = {**before, "success": False, "error": str(error)}
        print(f"{repo}: FAILED: {error}", file=sys.stderr, flush=True)
    outcome |= {"seconds": round(time.time() - started, 1), "ended": time.time()}
    outcomes[repo] = outcome
    write_file(OUTCOMES, json.dumps(outcomes, indent=1) + "\n")
    publish(outcomes, config["paths"])
    if outcome["success"]:
        say(f"{repo}: {outcome['label']}, {outcome['size']} bytes stored, {outcome['seconds']} s")
    return bool(outcome["success"])


def database(config: dict[str, Any], repo: int, kind: str) -> dict[str, Any]:
    """One backup of the database to one repository; its label and what it takes there."""
    pgbackrest(f"--stanza={config['stanza']}", f"--repo={repo}", f"--type={kind}", "backup")
    newest = repository(config["stanza"], repo)["backup"][-1]
    # pgBackRest stores damaged pages as they are and calls that done.
    if newest.get("error"):
        raise FailedError(
            f"{newest['label']} in repo{repo} holds damaged pages of the living database: `pgbackrest --stanza="
            f"{config['stanza']} --repo={repo} --set={newest['label']} info` names them; earlier backups may be whole"
        )
    return {"label": newest["label"], "size": newest["info"]["repository"]["delta"]}


def files(config: dict[str, Any]) -> dict[str, Any]:
    """One snapshot of configuration and state; absent paths are said, not failed."""
    present = [path for _, path in config["paths"] if Path(path).exists()]
    for component, path in config["paths"]:
        if path not in present:
            say(f"NOT EXERCISED: {component}: {path} is not there")
    _ensure_repository(config)
    command = ["backup", "--json", "--quiet", "--host", config["host"], "--tag", "minipc", *present]
    lines = [json.loads(line) for line in restic(config, *command).splitlines() if line.startswith("{")]
    summary = next(line for line in lines if line["message_type"] == "summary")
    return {"label": summary["snapshot_id"][:8], "size": summary["data_added_packed"]}


def _ensure_repository(config: dict[str, Any]) -> None:
    ensure_reachable(config)
    try:
        restic(config, "cat", "config", timeout_s=120)
    except FailedError as error:
        if f"ended with {NO_REPOSITORY}:" not in str(error):
            raise
        restic(config, "init", timeout_s=120)
        say("restic: new repository made")


def publish(outcomes: dict[str, Any], paths: list[list[str]]) -> None:
    """The outcomes as metrics; a backup that never succeeded has no time of success."""
    by_repo = [({"repo": repo}, outcome) for repo, outcome in sorted(outcomes.items())]
    write_metrics(
        "minipc_backups",
        {
            "minipc_backup_success": (
                "1 when the last backup to this repository succeeded.",
                [(labels, outcome["success"]) for labels, outcome in by_repo],
            ),
            "minipc_backup_last_success_timestamp_seconds": (
                "When a backup to this repository last succeeded.",
                [(labels, outcome["last_success"]) for labels, outcome in by_repo if "last_success" in outcome],
            ),
            "minipc_backup_duration_seconds": (
                "How long the last backup took.",
                [(labels, outcome["seconds"]) for labels, outcome in by_repo],
            ),
            "minipc_backup_size_bytes": (
                "What the last successful backup added to the repository.",
                [(labels, outcome["size"]) for labels, outcome in by_repo if "size" in outcome],
            ),
            "minipc_backup_path_present": (
                "0 for a path that should be backed up and is not there.",
                [({"component": component, "path": path}, os.path.exists(path)) for component, path in paths],
            ),
        },
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FailedError as error:
        sys.exit(ended(error))
