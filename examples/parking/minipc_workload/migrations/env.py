"""Alembic's entry point: runs on the connection that migrate.py opened."""

from __future__ import annotations

from alembic import context
from minipc_workload.migrate import VERSION_TABLE
from sqlalchemy import text

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table=VERSION_TABLE, transaction_per_migration=True)

# Two migrate jobs at once: the second waits here until the first is through, then finds nothing to do.
connection.execute(text("SELECT pg_advisory_lock(hashtext('minipc_workload.migrate'))"))
# A migration that can't get its lock fails and can be run again; waiting, it would block every reader behind it.
connection.execute(text("SET lock_timeout = '5s'"))
connection.commit()

with context.begin_transaction():
    context.run_migrations()
