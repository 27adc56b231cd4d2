"""Bring the schema to this version of the code, before anything else of a release. Running it again does no harm."""

from __future__ import annotations

from pathlib import Path

import psycopg
import structlog
import tenacity
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from minipc_workload.database import connect_arguments
from minipc_workload.settings import Settings

log = structlog.stdlib.get_logger(__name__)
VERSION_TABLE = "schema_version"


def wait_for_database(settings: Settings, seconds: float) -> None:
    """Return when PostgreSQL accepts a login. Migrations need nothing else: a restore drill offers nothing else.

    Raises psycopg.OperationalError if it does not in this time.
    """

    def attempt() -> None:
        psycopg.connect(**connect_arguments(settings, "migrate", statement_timeout_s=5.0)).close()

    def announce(state: tenacity.RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        log.warning("waiting for the database", reason=f"{type(error).__name__}: {error}")

    tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(1.0),
        before_sleep=announce,
        reraise=True,
    )(attempt)


def upgrade(settings: Settings) -> None:
    """Apply the missing migrations, each in its own transaction.

    A schema that is newer than this code stays as it is: after a rollback the earlier version runs on it. The rule for
    migrations makes that possible: expand, then contract.

    Raises sqlalchemy.exc.SQLAlchemyError if a statement failed; that migration was rolled back.
    """
    arguments = connect_arguments(settings, "migrate", statement_timeout_s=300.0)
    # The password goes to the driver directly: no URL with a password exists that could be printed.
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(**arguments))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.connect() as connection:
        present = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
        connection.rollback()  # the migrations begin their own transactions
        if newer := sorted(set(present) - known):
            log.info("schema is newer than this code", schema=", ".join(newer))
        else:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    engine.dispose()
