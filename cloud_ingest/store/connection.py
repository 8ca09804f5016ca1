"""Connections to the store, opened when needed, kept when healthy.

In: a DSN (or the embedded server). Out: asyncpg connections on which timestamptz is int64 microseconds.
Fails with ServiceError when the store is not usable now (retry with backoff), and with RefusedError when it
understood and said no: then the data, or this program, is wrong and trying again will not help.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg

from cloud_ingest.config import EmbeddedStore, IngestConfig, PostgresStore
from cloud_ingest.embedded_postgres import EmbeddedPostgres
from common.errors import ForebayError, ServiceError

EPOCH_2000_US: Final = 946_684_800_000_000
"""PostgreSQL counts from 2000-01-01."""
IDLE_IN_TRANSACTION_MS: Final = 10_000
_IDLE_MAX: Final = 3
# SQLSTATE classes of a server that is not usable now: connection, transaction rollback (deadlock, serialisation),
# resources (disk full, too many connections), operator intervention (shutdown, crash, starting up), system error;
# and "read-only transaction", which a server that fails over answers.
_RETRY_CLASSES: Final = ("08", "40", "53", "55", "57", "58", "XX", "25006")


class RefusedError(ForebayError):
    """The store refused what was sent to it; the caller sets the culprit aside."""


class Store:
    """Where rows go. One instance per program; connections are shared by its tasks, one user at a time each."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config.store
        embedded = isinstance(config.store, EmbeddedStore)
        self._embedded = EmbeddedPostgres(config.data_dir / "postgres") if embedded else None
        self._started = False
        self._idle: list[asyncpg.Connection] = []

    async def dsn(self) -> str:
        """Return where the store is, starting the embedded server when that is the store."""
        if isinstance(self._config, PostgresStore):
            return self._config.dsn.get_secret_value()
        assert self._embedded is not None  # noqa: S101 - the two kinds of config
        if self._started:
            return await asyncio.to_thread(self._embedded.refresh)
        dsn = await asyncio.to_thread(self._embedded.start)
        self._started = True
        return dsn

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection; one that has failed, or whose user was cancelled, is closed and not lent again."""
        connection = await self._take()
        try:
            yield connection
        except BaseException as error:
            lost = connection.is_closed()
            connection.terminate()
            if not isinstance(error, Exception) or isinstance(error, ForebayError):
                raise
            if (named := _named(error)) is not None:
                raise named from error
            if lost:  # asyncpg's own state can be confused after that, and says so in many ways
                raise ServiceError(f"store: connection lost: {error}") from error
            raise
        if len(self._idle) < _IDLE_MAX and not connection.is_closed():
            self._idle.append(connection)
        else:
            connection.terminate()

    async def close(self) -> None:
        """Close what is idle and let go of the embedded server."""
        while self._idle:
            with contextlib.suppress(Exception):  # it is going away in any case
                await asyncio.wait_for(self._idle.pop().close(), 1.0)
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)
            self._started = False

    async def _take(self) -> asyncpg.Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        connect_timeout_s, statement_timeout_s = 10.0, 60.0
        if isinstance(self._config, PostgresStore):
            connect_timeout_s, statement_timeout_s = self._config.connect_timeout_s, self._config.statement_timeout_s
        try:
            connection = await asyncpg.connect(
                await self.dsn(),
                timeout=connect_timeout_s,
                command_timeout=statement_timeout_s,
                server_settings={
                    "application_name": "forebay-ingest",
                    "timezone": "UTC",
                    # A worker that is frozen in the midst of a flush must not hold its partitions' rows for ever.
                    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
                    "statement_timeout": str(int(statement_timeout_s * 1000)),
                },
            )
            await connection.set_type_codec(
                "timestamptz", schema="pg_catalog", encoder=_to_postgres, decoder=_from_postgres, format="tuple"
            )
        except Exception as error:
            named = _named(error)
            if isinstance(named, RefusedError):  # a wrong password, an unknown database: somebody may still mend it
                named = ServiceError(f"store: {error}")
            if named is None:
                raise
            raise named from error
        return connection


def _to_postgres(us: int) -> tuple[int]:
    return (us - EPOCH_2000_US,)


def _from_postgres(value: tuple[int]) -> int:
    return value[0] + EPOCH_2000_US


def _named(error: Exception) -> ForebayError | None:
    """Give an asyncpg or socket error its place in our tree; None for what is neither."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        text = f"store: {type(error).__name__}: {error}"
        return ServiceError(text) if state.startswith(_RETRY_CLASSES) else RefusedError(text)
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return RefusedError(f"store: {error}")  # a value that does not fit its type
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | TimeoutError | ssl.SSLError):
        return ServiceError(f"store: {error or type(error).__name__}")
    return None


async def fetch_all(store: Store, query: str, *arguments: Any) -> list[asyncpg.Record]:  # noqa: ANN401
    """Run one query on a lent connection."""
    async with store.connection() as connection:
        rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
        return rows
