"""Brings the schema to this version of the code, before anything else of a release. Again does no harm."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import psycopg
import redis
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from minipc_workload.cache import connect_arguments as cache_arguments
from minipc_workload.database import connect_arguments
from minipc_workload.errors import DatabaseUnavailableError
from minipc_workload.settings import Settings

log = logging.getLogger(__name__)
VERSION_TABLE = "schema_version"


def wait_for_data(settings: Settings, seconds: float) -> None:
    """Returns once PostgreSQL lets us in and Redis answers.

    Raises:
        DatabaseUnavailableError: one of them didn't in so many seconds.
    """
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(**connect_arguments(settings, "migrate", statement_timeout_s=5.0)).close()
            with redis.Redis(**cache_arguments(settings), socket_timeout=2.0, socket_connect_timeout=2.0) as cache:
                cache.ping()
            return
        except (psycopg.OperationalError, redis.RedisError) as error:
            if time.monotonic() >= give_up_at:
                raise DatabaseUnavailableError(f"{type(error).__name__}: {error}") from error
            log.warning("waiting for data", extra={"reason": f"{type(error).__name__}: {error}"})
            time.sleep(1.0)


def upgrade(settings: Settings) -> None:
    """Applies the missing migrations, each in a transaction of its own.

    A schema that is newer than this code is left alone: after a rollback the version before runs on it. That it can is
    the rule for migrations: expand, then contract.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: not reachable, or a statement failed; that migration was rolled back.
    """
    arguments = connect_arguments(settings, "migrate", statement_timeout_s=300.0)
    # The password goes to the driver directly: no URL with a password exists that could be printed.
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(**arguments))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        newer = _unknown_revisions(config, connection)
        if newer:
            log.info("schema is newer than this code", extra={"schema": ", ".join(newer)})
        else:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    engine.dispose()


def _unknown_revisions(config: Config, connection: Connection) -> list[str]:
    """What the database has that this code has no migration for."""
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    present = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    connection.rollback()  # the migrations begin a transaction of their own
    return sorted(set(present) - known)
