"""How this project's own programs log in to PostgreSQL on a machine.

A service owns what is in its database: views, functions, triggers, policies. Whoever reads a table may run code of the
service, with the reader's rights. So no superuser ever reads a service's table. There are three logins, all by peer
over the local socket (`templates/postgres/pg_ident.conf.j2`), and the database decides which one is used:

- `postgres`, the superuser, in the database `postgres`: the system catalogs, and nothing else;
- `minipc`, in the database `minipc`: the heartbeat and the canaries;
- the database's `reader` (`postgres_databases`), in a service's database: SELECT on the service's tables.
"""

from __future__ import annotations

import shlex

from minipc.config.schema import PostgresSettings
from minipc_machine.repositories import Login

SUPERUSER = "postgres"
OWN = "minipc"
"""The name of our own role and of our own database."""

# The rights of the role are the protection. The options only keep a query from being led astray or being endless: with
# row_security off a query that a policy would shorten fails instead.
SUPERUSER_OPTIONS = "-c search_path=pg_catalog -c event_triggers=off"
_OWN_OPTIONS = "-c search_path=public"
_READER_OPTIONS = (
    "-c search_path=pg_catalog,public,pg_temp -c row_security=off -c default_transaction_read_only=on "
    "-c lock_timeout=5000"
)


def logins(settings: PostgresSettings) -> dict[str, Login]:
    """Return the login for each database: the server's, our own, and the services'."""
    return {
        SUPERUSER: Login(SUPERUSER, SUPERUSER_OPTIONS),
        OWN: Login(OWN, _OWN_OPTIONS),
        **{database.name: Login(database.reader, _READER_OPTIONS) for database in settings.databases},
    }


def command(settings: PostgresSettings, database: str, *options: str, timeout_s: float = 50) -> str:
    """Return the shell command that runs psql on the machine, as root; the statements come through its stdin.

    Args:
        options: more arguments of psql.
        timeout_s: the longest that one statement, and one transaction, may take, seconds.

    Raises:
        KeyError: the database is not one of the settings.
    """
    who = logins(settings)[database]
    limit = int(timeout_s * 1000)
    pgoptions = f"{who.options} -c statement_timeout={limit} -c transaction_timeout={limit}"
    words = [
        "psql",
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-p",
        str(settings.port),
        "-U",
        who.role,
        "-d",
        database,
        *options,
    ]
    return f"cd / && PGOPTIONS={shlex.quote(pgoptions)} runuser -u postgres -- {shlex.join(words)}"
