"""Numbered SQL files that make the tables, applied once each, in order, under an advisory lock.

In: a connection. Out: what was applied, and which kind of store it is. Fails with RefusedError (a file fails, or one
that was applied has changed since) and ServiceError. Running it again does nothing; two at a time take turns.

A file `NNN_name.sql` is for every store; `NNN_name.timescaledb.sql` and `NNN_name.plain.sql` are alternatives. The
kind is decided once, when the store is made: by whether the extension can be created then.
"""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal

import asyncpg

from cloud_ingest.store.connection import RefusedError

Kind = Literal["timescaledb", "plain"]

_LOCK: Final = 0x464F_5245  # "FORE"


@dataclass(frozen=True, slots=True)
class Migration:
    """One SQL file."""

    version: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        """What tells whether it has changed since it was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Migrated:
    """`applied` lists what this run did (would do, in a dry run); `missing` says what the plain kind lacks, or ''."""

    kind: Kind
    applied: Sequence[Migration]
    missing: str


def migrations(kind: Kind) -> list[Migration]:
    """Return the files for a kind of store, in order."""
    found = []
    for entry in (resources.files("cloud_ingest.store") / "migrations").iterdir():
        stem, _, variant = entry.name.removesuffix(".sql").partition(".")
        if entry.name.endswith(".sql") and variant in {"", kind}:
            number, _, name = stem.partition("_")
            found.append(Migration(int(number), name, entry.read_text("utf-8")))
    return sorted(found, key=lambda one: one.version)


async def kind_of(connection: asyncpg.Connection) -> Kind | None:
    """Return the kind of a store that has been made, None of one that has not."""
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return None
    kind: Kind | None = await connection.fetchval("SELECT kind FROM schema_migrations ORDER BY version LIMIT 1")
    return kind


async def migrate(connection: asyncpg.Connection, *, dry_run: bool = False, plain: bool = False) -> Migrated:
    """Bring the store up to date; in a dry run, only say what would be done. `plain`: make it without the extension."""
    async with _alone(connection):
        kind = await kind_of(connection)
        missing = "it was made without TimescaleDB on purpose" if plain else await _missing(connection)
        if kind is None:
            if not missing and not dry_run:
                missing = await _create_extension(connection)
            kind = "plain" if missing else "timescaledb"
        done = await _done(connection)
        pending = []
        for one in migrations(kind):
            if one.version not in done:
                pending.append(one)
            elif done[one.version] != one.digest:
                raise RefusedError(f"migration {one.version:03}_{one.name} was applied with other contents")
        if pending and not dry_run:
            async with connection.transaction():
                await connection.execute("SET LOCAL statement_timeout = 0")
                await _apply(connection, kind, pending)
        if kind == "plain" and not missing:
            missing = "TimescaleDB is available here, but these tables were made without it"
        return Migrated(kind, pending, missing if kind == "plain" else "")


async def _missing(connection: asyncpg.Connection) -> str:
    """Say why the extension cannot be used here; '' if it can."""
    if await connection.fetchval("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"):
        return ""
    if not await connection.fetchval("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"):
        return "the TimescaleDB extension is not installed on the server"
    preloaded = await connection.fetchval("SELECT current_setting('shared_preload_libraries', true)")
    if "timescaledb" not in (preloaded or ""):
        return "TimescaleDB is installed but not in shared_preload_libraries"
    return ""


async def _create_extension(connection: asyncpg.Connection) -> str:
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL client_min_messages = error")
            await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    except asyncpg.PostgresError as error:
        return f"TimescaleDB is installed but could not be created in this database: {error}"
    return ""


async def _done(connection: asyncpg.Connection) -> dict[int, str]:
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return {}
    return {row["version"]: row["digest"] for row in await connection.fetch("SELECT * FROM schema_migrations")}


async def _apply(connection: asyncpg.Connection, kind: Kind, pending: Sequence[Migration]) -> None:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version int PRIMARY KEY, name text NOT NULL, kind text NOT NULL,"
        " digest text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    for one in pending:
        await connection.execute(one.sql)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, kind, digest) VALUES ($1, $2, $3, $4)",
            one.version,
            one.name,
            kind,
            one.digest,
        )


@contextlib.asynccontextmanager
async def _alone(connection: asyncpg.Connection) -> AsyncIterator[None]:
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        yield
    finally:
        if not connection.is_closed() and not connection.is_in_transaction():
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
