#!/usr/bin/python3
# Written by minipc (templates/repositories/stanza.py).
"""Makes pgBackRest's stanza for the running database where a repository has none. Run by each converge that needs it.

A repository that holds the backups of another database is refused (exit 3): an empty database must never take the
place of one that was lost. Nothing here ever upgrades a stanza.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from common import (
    EXIT_REFUSED,
    STATE,
    FailedError,
    ended,
    pgbackrest,
    repository,
    say,
    settings,
    sql,
    system_ids,
    write_file,
)

HEARTBEAT = """
CREATE TABLE IF NOT EXISTS heartbeat (
    at timestamptz PRIMARY KEY DEFAULT clock_timestamp(),
    lsn pg_lsn NOT NULL DEFAULT pg_current_wal_insert_lsn()
);
CREATE TABLE IF NOT EXISTS canary (
    drill text NOT NULL,
    name text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (drill, name)
);
"""


def main() -> int:
    config = settings()
    live = sql("SELECT system_identifier FROM pg_control_system()", "postgres", config["port"])
    missing = [repo for repo in config["repos"] if not _holds(config, repo, live)]
    if missing:
        pgbackrest(f"--stanza={config['stanza']}", "stanza-create")
        say(f"stanza {config['stanza']} made in {', '.join(f'repo{repo}' for repo in missing)}")
    _prepare_heartbeat(config["port"])
    # One segment all the way into every repository.
    pgbackrest(f"--stanza={config['stanza']}", "check", timeout_s=600)
    write_file(STATE / "stanza.json", json.dumps({"system_id": live, "repos": config["repos"]}) + "\n")
    return 0


def _holds(config: dict[str, Any], repo: int, live: str) -> bool:
    """Whether the repository already has a stanza for the running database. Raises FailedError: for another one."""
    found = system_ids(repository(config["stanza"], repo))
    if found and found[-1] != live:
        raise FailedError(
            f"repo{repo} holds the backups of another database (system identifier {found[-1]}); the running one is "
            f"{live}. Restore it: `minipc rebuild`, or by hand docs/howto/restore-drill.md. If the old data is really "
            f"not wanted, remove it there by hand: `pgbackrest --stanza={config['stanza']} --repo={repo} stop` and "
            "`stanza-delete`. Nothing was changed",
            EXIT_REFUSED,
        )
    return bool(found)


def _prepare_heartbeat(port: int) -> None:
    if not sql("SELECT 1 FROM pg_database WHERE datname = 'minipc'", "postgres", port):
        sql("CREATE DATABASE minipc", "postgres", port)
        sql("REVOKE ALL ON DATABASE minipc FROM PUBLIC", "postgres", port)
    sql(HEARTBEAT, "minipc", port)
    # The timer's first one comes within a minute, the first backup perhaps before: each can tell how old it is.
    sql("INSERT INTO heartbeat DEFAULT VALUES", "minipc", port)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FailedError as error:
        sys.exit(ended(error))
