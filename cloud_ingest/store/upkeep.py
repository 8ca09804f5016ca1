"""What the store needs besides rows: policies (TimescaleDB), partitions by day (plain), and forgetting what is old.

In: a connection, the kind of store, the retention settings, the time. Out: tables in shape. Fails with the errors of
cloud_ingest.store.connection. Called at start and then every few minutes by whichever worker gets the lock.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg
import structlog

from cloud_ingest.config import RetentionSettings
from cloud_ingest.store.migrate import Kind, migrate
from common.clock import US_PER_SECOND

log = structlog.get_logger()

DAY_US: Final = 86_400 * US_PER_SECOND
DAYS_AHEAD: Final = 3
DAYS_BACK_MAX: Final = 3_650
"""Days further away than this share the default partition: a broken clock must not make thousands of tables."""
_LOCK: Final = 0x464F_5246


async def prepare(connection: asyncpg.Connection, retention: RetentionSettings, now_us: int) -> Kind:
    """Bring a store into the shape that the worker needs: tables, policies, what is due; returns its kind."""
    migrated = await migrate(connection)
    for one in migrated.applied:
        log.info("store.migrated", version=one.version, name=one.name)
    if migrated.missing:
        log.warning(
            "store.plain", missing=migrated.missing, means="native partitions by day, no columnstore compression"
        )
    if migrated.kind == "timescaledb":
        await set_policies(connection, retention)
    await settle(connection, migrated.kind, retention, now_us)
    return migrated.kind


async def settle(connection: asyncpg.Connection, kind: Kind, retention: RetentionSettings, now_us: int) -> None:
    """Do what is due; returns at once when another worker is at it."""
    async with connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
            return
        if kind == "plain":
            today = now_us // DAY_US
            await make_days(connection, set(range(today - 1, today + DAYS_AHEAD + 1)), now_us)
            await _drop_days(connection, retention.readings_days, now_us)
            for table in ("windows_1m", "windows_5m"):
                await _delete(connection, table, "window_start", retention.windows_days, now_us)
        await _delete(connection, "batch_ledger", "stored_at", retention.ledger_days, now_us)
        await _delete(connection, "dead_letters", "received_at", retention.dead_letters_days, now_us)


async def set_policies(connection: asyncpg.Connection, retention: RetentionSettings) -> None:
    """Make TimescaleDB's jobs fit the settings; they start at different minutes, as together they can deadlock."""
    windows_hours = retention.windows_days * 24
    await _policy(connection, "policy_retention", "readings", retention.readings_days * 24, 7)
    await _policy(connection, "policy_retention", "windows_1m", windows_hours, 27)
    await _policy(connection, "policy_retention", "windows_5m", windows_hours, 37)
    await _policy(connection, "policy_compression", "readings", retention.columnstore_after_hours, 47)


async def _policy(connection: asyncpg.Connection, procedure: str, table: str, hours: int, minute: int) -> None:
    column = "drop_after" if procedure == "policy_retention" else "compress_after"
    now = await connection.fetchval(
        f"SELECT extract(epoch FROM (config->>'{column}')::interval) / 3600 FROM timescaledb_information.jobs"  # noqa: S608 - our own constants
        " WHERE proc_name = $1 AND hypertable_name = $2 AND hypertable_schema = current_schema()",
        procedure,
        table,
    )
    if (now is None and hours == 0) or (now is not None and int(now) == hours):
        return
    start = f"date_trunc('hour', now()) + INTERVAL '1 hour {minute} minutes'"
    async with connection.transaction():
        await connection.execute("SET LOCAL client_min_messages = warning")
        if procedure == "policy_retention":
            await connection.execute("SELECT remove_retention_policy($1::regclass, if_exists => true)", table)
            if hours:
                await connection.execute(
                    f"SELECT add_retention_policy('{table}', INTERVAL '{hours} hours', initial_start => {start})"
                )
        else:
            await connection.execute("CALL remove_columnstore_policy($1::regclass, if_exists => true)", table)
            await connection.execute(
                f"CALL add_columnstore_policy('{table}', after => INTERVAL '{hours} hours', initial_start => {start})"
            )


async def make_days(connection: asyncpg.Connection, days: set[int], now_us: int) -> None:
    """Make the partitions of the days (numbers since 1970) that lie near enough; the others use the default one.

    A day whose readings went to the default partition before its own was made stays there.
    """
    today = now_us // DAY_US
    near = sorted(day for day in days if today - DAYS_BACK_MAX <= day <= today + DAYS_AHEAD)
    if not near:
        return
    have = await _days(connection)
    for day in near:
        if day not in have:
            begin = _date(day)
            sql = (
                f"CREATE TABLE IF NOT EXISTS {_name(day)} PARTITION OF readings"
                f" FOR VALUES FROM ('{begin}+00') TO ('{_date(day + 1)}+00')"
            )
            try:
                async with connection.transaction():
                    await connection.execute(sql)
            except asyncpg.CheckViolationError:
                continue  # the default partition holds rows of that day: it goes on doing so


async def _days(connection: asyncpg.Connection) -> dict[int, str]:
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'readings'::regclass AND c.relname ~ '^readings_[0-9]{8}$'"
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return {
        (datetime.strptime(row["relname"][9:], "%Y%m%d").replace(tzinfo=UTC) - epoch).days: row["relname"]
        for row in rows
    }


async def _drop_days(connection: asyncpg.Connection, keep_days: int, now_us: int) -> None:
    if not keep_days:
        return
    oldest = now_us // DAY_US - keep_days
    for day, name in (await _days(connection)).items():
        if day < oldest:
            await connection.execute(f"DROP TABLE IF EXISTS {name}")
    await connection.execute("DELETE FROM readings_other WHERE ts < $1", oldest * DAY_US)


async def _delete(connection: asyncpg.Connection, table: str, column: str, keep_days: int, now_us: int) -> None:
    if keep_days:
        await connection.execute(f"DELETE FROM {table} WHERE {column} < $1", now_us - keep_days * DAY_US)  # noqa: S608


def _date(day: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")


def _name(day: int) -> str:
    return f"readings_{_date(day).replace('-', '')}"
