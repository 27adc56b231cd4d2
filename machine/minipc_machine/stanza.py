"""Create pgBackRest's stanza for the running database in each repository that has none.

A repository with the backups of another database is refused (exit code 3): an empty database must never replace one
that was lost. Nothing here upgrades a stanza.
"""

from __future__ import annotations

from minipc_machine import backup_state, schema
from minipc_machine.files import write_file
from minipc_machine.program import EXIT_PASS, EXIT_REFUSED, FailedError, say
from minipc_machine.repositories import Settings, pgbackrest, repository, settings, sql, system_ids

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


def main(_: list[str]) -> int:
    """Create the stanza where it is missing, and check that WAL arrives in every repository."""
    config = settings()
    live = sql("SELECT system_identifier FROM pg_control_system()", "postgres", config.port)
    missing = [repo for repo in config.repos if not _holds(config, repo, live)]
    if missing:
        pgbackrest(f"--stanza={config.stanza}", "stanza-create")
        say(f"stanza {config.stanza} created in {', '.join(f'repo{repo}' for repo in missing)}")
    _prepare_heartbeat(config.port)
    # Sends one WAL segment to every repository.
    pgbackrest(f"--stanza={config.stanza}", "check", timeout_s=600)
    write_file(backup_state.STANZA, schema.dump(backup_state.Stanza(live, config.repos, config.storage)))
    return EXIT_PASS


def _holds(config: Settings, repo: int, live: str) -> bool:
    """Return whether the repository has a stanza for the running database. Raises FailedError if it is for another."""
    found = system_ids(repository(config.stanza, repo))
    if found and found[-1] != live:
        raise FailedError(
            f"repo{repo} contains the backups of another database (system identifier {found[-1]}); the running one is "
            f"{live}. To restore it: `minipc rebuild`, or docs/howto/restore-drill.md. If the old data is not "
            f"needed, remove it there: `pgbackrest --stanza={config.stanza} --repo={repo} stop` and "
            "`stanza-delete`. Nothing was changed",
            EXIT_REFUSED,
        )
    return bool(found)


def _prepare_heartbeat(port: int) -> None:
    sql(HEARTBEAT, "minipc", port)
    # The timer adds the first row within a minute. The first backup may come earlier, and must have one too.
    sql("INSERT INTO heartbeat DEFAULT VALUES", "minipc", port)
