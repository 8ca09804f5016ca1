"""Migrations, policies and upkeep against a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from cloud_ingest.config import RetentionSettings
from cloud_ingest.embedded_postgres import EmbeddedPostgres
from cloud_ingest.model import Partition
from cloud_ingest.registry import Registry
from cloud_ingest.sinks.postgres import DIRECT_COMPRESS_ROWS_MIN, Plan, PostgresSink
from cloud_ingest.store import migrate as migrations
from cloud_ingest.store import upkeep
from cloud_ingest.store.connection import RefusedError, Store
from cloud_ingest.store.migrate import Migration, migrate
from common.errors import ServiceError
from tests.contract.test_sinks import Ground
from tests.integration.ingesting import Database, config_of, make_database, stored_rows, truth_rows
from tests.integration.traffic import BASE_US, FakeAgent

DAY = 86_400_000_000
FOR_EVER = RetentionSettings(readings_days=0, windows_days=0, ledger_days=0, dead_letters_days=0)


@pytest.fixture
async def store(plain_database: Database, folder: Path) -> AsyncIterator[Store]:
    one = Store(config_of(plain_database, folder))
    yield one
    await one.close()


def days(rows: list[asyncpg.Record]) -> list[str]:
    return [row[0] for row in rows]


CHILDREN = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'readings'::regclass ORDER BY 1"


async def test_plain_days_are_made_ahead_and_dropped_when_old(store: Store) -> None:
    async with store.connection() as connection:
        await upkeep.settle(connection, "plain", FOR_EVER, BASE_US)
        ahead = ["20251231", "20260101", "20260102", "20260103", "20260104"]
        assert days(await connection.fetch(CHILDREN)) == [*(f"readings_{day}" for day in ahead), "readings_other"]
        await upkeep.make_days(connection, {BASE_US // DAY - 400, -(1 << 40), BASE_US // DAY + 1_000}, BASE_US)
        assert "readings_20241127" in days(await connection.fetch(CHILDREN))
        assert len(await connection.fetch(CHILDREN)) == 7
        # What was in the default partition before its day was made stays there, and nothing fails.
        await connection.execute("INSERT INTO readings VALUES ($1, 1, 1, 0)", BASE_US - 100 * DAY)
        await upkeep.make_days(connection, {BASE_US // DAY - 100}, BASE_US)
        assert await connection.fetchval("SELECT count(*) FROM readings_other") == 1
        keep = RetentionSettings(readings_days=1, columnstore_after_hours=24)
        await upkeep.settle(connection, "plain", keep, BASE_US + DAY)
        assert days(await connection.fetch(CHILDREN))[0] == "readings_20260101"
        assert await connection.fetchval("SELECT count(*) FROM readings") == 0


async def test_two_migrations_at_a_time_take_turns(folder: Path, postgres: EmbeddedPostgres) -> None:
    database = await asyncio.to_thread(make_database, postgres.dsn, plain=True)
    one = Store(config_of(database, folder))
    async with one.connection() as connection:
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    async def run() -> int:
        async with one.connection() as connection:
            return len((await migrate(connection, plain=True)).applied)

    assert sorted(await asyncio.gather(run(), run(), run())) == [0, 0, 4]
    await one.close()


async def test_a_changed_migration_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "migrations", lambda _: [Migration(1, "core", "SELECT 1")])
    async with store.connection() as connection:
        with pytest.raises(RefusedError, match="001_core"):
            await migrate(connection)


async def test_errors_have_their_place_in_the_tree(store: Store) -> None:
    async def run(sql: str) -> None:
        async with store.connection() as connection:
            await connection.execute(sql)

    with pytest.raises(RefusedError):
        await run("SELECT 1/0")
    with pytest.raises(RefusedError):
        await run("INSERT INTO series (series_id) VALUES (1)")
    with pytest.raises(ServiceError):
        await run("SELECT pg_terminate_backend(pg_backend_pid())")
    await run("SELECT 1")


@pytest.fixture
async def hypertables(postgres: EmbeddedPostgres, folder: Path) -> AsyncIterator[Ground]:
    if not postgres.timescaledb:
        pytest.skip("TimescaleDB is not installed: policies and direct compression NOT tested")
    database = await asyncio.to_thread(make_database, postgres.dsn, plain=False)
    one = Store(config_of(database, folder))
    yield Ground(database, folder, one, Registry(one))
    await one.close()


JOBS = """
SELECT proc_name, hypertable_name, coalesce(config->>'drop_after', config->>'compress_after') AS after, initial_start
FROM timescaledb_information.jobs WHERE hypertable_name IS NOT NULL ORDER BY 1, 2
"""


@pytest.mark.timescaledb
async def test_policies_follow_the_settings_and_are_staggered(hypertables: Ground) -> None:
    async with hypertables.store.connection() as connection:
        for _ in range(2):
            await upkeep.set_policies(connection, RetentionSettings())
            jobs = await connection.fetch(JOBS)
            assert [(row["proc_name"], row["hypertable_name"], row["after"]) for row in jobs] == [
                ("policy_compression", "readings", "24:00:00"),
                ("policy_retention", "readings", "2160:00:00"),
                ("policy_retention", "windows_1m", "17520:00:00"),
                ("policy_retention", "windows_5m", "17520:00:00"),
            ]
            assert len({row["initial_start"] // 60_000_000 for row in jobs}) == 4
        await upkeep.set_policies(connection, RetentionSettings(readings_days=7, windows_days=0))
        jobs = await connection.fetch(JOBS)
        assert [(row["proc_name"], row["after"]) for row in jobs] == [
            ("policy_compression", "24:00:00"), ("policy_retention", "168:00:00"),
        ]  # fmt: skip


@pytest.mark.timescaledb
async def test_large_flushes_are_compressed_on_arrival(hypertables: Ground) -> None:
    here = Partition("forebay.stream", 0)
    sink = PostgresSink(hypertables.store, "timescaledb", "g", None)
    agent = FakeAgent("m", ["a", "b", "c"])
    await sink.adopt(here, "c")
    count = DIRECT_COMPRESS_ROWS_MIN // 3 + 1
    sent = [agent.birth(), agent.batch(BASE_US, count, 1000), agent.batch(BASE_US, 10, 7)]
    for offset, message in enumerate(sent):
        await sink.flush(await hypertables.flush_of([(here, offset, message)], "c"), lambda _: Plan(), BASE_US)
    async with hypertables.store.connection() as connection:
        stats = await connection.fetchrow("SELECT * FROM chunk_columnstore_stats('readings')")
        assert stats["compression_status"] == "Compressed"
    assert await asyncio.to_thread(stored_rows, hypertables.database) == truth_rows([agent])
