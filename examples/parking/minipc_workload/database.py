"""PostgreSQL: a pool that survives restarts of the server, and statements that always come back."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from minipc_workload import metrics
from minipc_workload.resilience import CircuitBreaker, TransientError, deadline
from minipc_workload.settings import Settings, reveal

Row = dict[str, Any]
Connection = psycopg.AsyncConnection[DictRow]


def connect_arguments(settings: Settings, service: str, statement_timeout_s: float) -> dict[str, Any]:
    """Return arguments for psycopg.connect. Keepalives and tcp_user_timeout end connections to a host that is gone."""
    return {
        "host": settings.database_host,
        "port": settings.database_port,
        "dbname": settings.database_name,
        "user": settings.database_user,
        "password": reveal(settings.database_password),
        "application_name": f"parking-{service}",
        "connect_timeout": 3,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} -c timezone=UTC",
    }


class Database:
    """Run statements, each in its own transaction. `timeout_s` includes the wait for a connection.

    Statements name their columns, never `*`: a migration that adds a column while this runs would change what a
    prepared statement returns, and PostgreSQL refuses that.
    """

    def __init__(self, settings: Settings, service: str, max_size: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._breaker = CircuitBreaker("postgres", rest_s=5.0)
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            kwargs=connect_arguments(settings, service, timeout_s) | {"row_factory": dict_row, "autocommit": True},
            min_size=1,
            max_size=max_size,
            timeout=timeout_s,
            # Give up soon: the next request starts a new attempt, so recovery is as quick as the server's.
            reconnect_timeout=3.0,
            check=AsyncConnectionPool.check_connection,
            open=False,
        )
        for key, gauge in metrics.POOL.items():
            gauge.set_function(partial(lambda name: self._pool.get_stats().get(name, 0), key))

    async def open(self) -> None:
        """Start to connect, without waiting: the process also starts while the server is down."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close(timeout=2.0)

    async def fetch(self, sql: str, **values: Any) -> list[Row]:
        """Run one statement and return its rows.

        Raises:
            UnavailableError: no connection, no answer in time, or the breaker is open.
            psycopg.Error: the statement was refused.
        """
        return await self._breaker.call(lambda: self._attempt(sql, values))

    async def _attempt(self, sql: str, values: Row) -> list[Row]:
        try:
            return await deadline(self._execute(sql, values), self._timeout_s)
        except (psycopg.OperationalError, TimeoutError) as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error

    async def _execute(self, sql: str, values: Row) -> list[Row]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(sql.encode(), values or None)
            return await cursor.fetchall() if cursor.description else []
