"""PostgreSQL: a pool that survives restarts of the server, and calls that always come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from minipc_workload import metrics
from minipc_workload.errors import CircuitOpenError, DatabaseUnavailableError, TransientError
from minipc_workload.resilience import CircuitBreaker, deadline
from minipc_workload.settings import Settings

T = TypeVar("T")
Connection = psycopg.AsyncConnection[DictRow]
Work = Callable[[Connection], Awaitable[T]]


def connect_arguments(settings: Settings, service: str, statement_timeout_s: float) -> dict[str, Any]:
    """Arguments of psycopg.connect. Keepalives and tcp_user_timeout end connections to a host that is gone."""
    return {
        "host": settings.database_host,
        "port": settings.database_port,
        "dbname": settings.database_name,
        "user": settings.database_user,
        "password": settings.database_password,
        "application_name": f"workload-{service}",
        "connect_timeout": 3,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} -c timezone=UTC",
    }


class Database:
    """Runs units of work, each in a transaction of its own.

    Args:
        timeout_s: the longest a unit of work may take, including the wait for a connection.
    """

    def __init__(self, settings: Settings, service: str, max_size: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._breaker = CircuitBreaker("postgres", rest_s=5.0, on_change=metrics.breaker_changed)
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            kwargs=connect_arguments(settings, service, timeout_s) | {"row_factory": dict_row},
            min_size=1,
            max_size=max_size,
            timeout=timeout_s,
            # Give up soon: the next request starts a new attempt, so that we are back as soon as the server is.
            reconnect_timeout=3.0,
            check=AsyncConnectionPool.check_connection,
            open=False,
        )
        for gauge, key in (
            (metrics.POOL_SIZE, "pool_size"),
            (metrics.POOL_MAX, "pool_max"),
            (metrics.POOL_AVAILABLE, "pool_available"),
            (metrics.POOL_WAITING, "requests_waiting"),
        ):
            gauge.set_function(partial(self._statistic, key))

    def _statistic(self, key: str) -> float:
        return self._pool.get_stats().get(key, 0)

    async def open(self) -> None:
        """Starts connecting; does not wait, so that the process also starts while the server is down."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.close(timeout=2.0)

    async def run(self, work: Work[T]) -> T:
        """Runs the work in a transaction: committed when it returns, rolled back when it raises.

        Raises:
            DatabaseUnavailableError: no connection, no answer in time, or the breaker is open.
        """
        try:
            return await self._breaker.call(lambda: self._attempt(work))
        except (TransientError, CircuitOpenError) as error:
            raise DatabaseUnavailableError(str(error)) from error

    async def _attempt(self, work: Work[T]) -> T:
        try:
            return await deadline(self._transaction(work), self._timeout_s)
        except (psycopg.OperationalError, TimeoutError) as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error

    async def _transaction(self, work: Work[T]) -> T:
        async with self._pool.connection() as connection:
            return await work(connection)


class HeartbeatReader:
    """Reads the heartbeats over a connection of its own: the verdict must not queue behind the users' requests."""

    def __init__(self, settings: Settings) -> None:
        self._arguments = connect_arguments(settings, "probe", statement_timeout_s=2.0)
        self._idle: Connection | None = None

    async def ages_s(self) -> dict[str, float]:
        """Seconds since each worker's last heartbeat, by the database's clock.

        Raises:
            DatabaseUnavailableError: not connected, or the schema is not there yet.
        """
        # Taken out while in use: a query that hangs and is abandoned takes its connection with it.
        connection, self._idle = self._idle, None
        if connection is not None:
            try:
                return await self._read(connection)
            except psycopg.OperationalError:
                pass  # the server was restarted since: once more on a new connection
        try:
            fresh = await psycopg.AsyncConnection.connect(**self._arguments, autocommit=True, row_factory=dict_row)
            return await self._read(fresh)
        except psycopg.Error as error:
            raise DatabaseUnavailableError(f"{type(error).__name__}: {error}") from error

    async def _read(self, connection: Connection) -> dict[str, float]:
        try:
            cursor = await connection.execute(
                "SELECT worker, extract(epoch FROM now() - beat_at)::float8 AS age_s FROM worker_heartbeats"
            )
            ages = {row["worker"]: row["age_s"] for row in await cursor.fetchall()}
        except BaseException:
            await connection.close()
            raise
        self._idle = connection
        return ages

    async def close(self) -> None:
        """Closes the connection."""
        if self._idle is not None:
            await self._idle.close()
