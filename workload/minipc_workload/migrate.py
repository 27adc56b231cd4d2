"""Brings the schema to this version of the code, before anything else of a release. Again does no harm."""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from minipc_workload.database import connect_arguments
from minipc_workload.settings import Settings


def upgrade(settings: Settings) -> None:
    """Applies the missing migrations, each in a transaction of its own.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: not reachable, or a statement failed; that migration was rolled back.
    """
    arguments = connect_arguments(settings, "migrate", statement_timeout_s=300.0)
    # The password goes to the driver directly: no URL with a password exists that could be printed.
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(**arguments))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    engine.dispose()
