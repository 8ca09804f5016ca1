"""The contract of cloud_ingest.sinks, over both sinks: stored once, fenced, positions at one with what is stored."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

from cloud_ingest.config import ArchiveSettings
from cloud_ingest.decode import open_envelope, to_chunk
from cloud_ingest.model import Item, Partition, Position, Received
from cloud_ingest.registry import Registry
from cloud_ingest.sinks import archive_file
from cloud_ingest.sinks.archive import ArchiveSink
from cloud_ingest.sinks.checkpoints import FencedPartitionsError
from cloud_ingest.sinks.postgres import Flush, Outcome, Plan, PostgresSink
from cloud_ingest.store.connection import Store
from common.errors import ServiceError
from tests.integration.conftest import database, folder, postgres  # noqa: F401 - fixtures
from tests.integration.ingesting import Database, archived_rows, config_of, stored_rows, truth_rows
from tests.integration.traffic import BASE_US, FakeAgent

HERE = Partition("forebay.stream", 0)
THERE = Partition("forebay.stream", 1)
CLUSTER = "cluster-1"


@dataclass
class Ground:
    """One store and one archive folder, which several sinks (workers) share."""

    database: Database
    folder: Path
    store: Store
    registry: Registry

    async def items(self, messages: Sequence[tuple[Partition, int, bytes]]) -> list[Item]:
        items = [open_envelope(Received(partition, offset, b"k", value)) for partition, offset, value in messages]
        await self.registry.prepare(items)
        return items

    async def flush_of(self, messages: Sequence[tuple[Partition, int, bytes]], cluster: str = CLUSTER) -> Flush:
        chunk, dead = to_chunk(await self.items(messages), self.registry.lookup)
        assert not dead
        return Flush(cluster, {partition: offset + 1 for partition, offset, _ in messages}, chunk)


class PostgresHarness:
    """Stores at once."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.sink = PostgresSink(ground.store, "plain" if ground.database.plain else "timescaledb", "g", "g.archive")
        self.waiting: list[Flush] = []

    async def add(self, *messages: tuple[Partition, int, bytes]) -> None:
        self.waiting.append(await self.ground.flush_of(messages))

    async def flush(self) -> None:
        while self.waiting:
            await self.sink.flush(self.waiting[0], lambda _: Plan(), BASE_US)
            self.waiting.pop(0)

    def rows(self) -> list[tuple[Any, ...]]:
        return stored_rows(self.ground.database)


class ArchiveHarness:
    """Takes what the ledger let pass, and stores it in files."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.sink = ArchiveSink(ground.store, ground.folder, "g.archive", ArchiveSettings())

    async def add(self, *messages: tuple[Partition, int, bytes]) -> None:
        flush = await self.ground.flush_of(messages)
        self.sink.add(flush.chunk, flush.ends, 0.0)

    async def flush(self) -> None:
        await self.sink.flush()

    def rows(self) -> list[tuple[Any, ...]]:
        return archived_rows(self.ground.folder)


Harness = PostgresHarness | ArchiveHarness


@pytest.fixture
async def ground(database: Database, folder: Path) -> AsyncIterator[Ground]:  # noqa: F811
    store = Store(config_of(database, folder))
    yield Ground(database, folder, store, Registry(store))
    await store.close()


@pytest.fixture(params=[PostgresHarness, ArchiveHarness])
def make(request: pytest.FixtureRequest, ground: Ground) -> Callable[[], Harness]:
    return lambda: request.param(ground)


def messages(
    agent: FakeAgent, offset: int, batches: int = 1, at: Partition = HERE
) -> list[tuple[Partition, int, bytes]]:
    bodies = [agent.birth(), *(agent.batch(BASE_US + (offset + k) * 1_000_000, 5) for k in range(batches))]
    return [(at, offset + k, body) for k, body in enumerate(bodies)]


async def test_stores_what_was_added_and_remembers_how_far(make: Callable[[], Harness]) -> None:
    agent, one = FakeAgent("m"), make()
    assert (await one.sink.adopt(HERE, CLUSTER)).next_offset is None
    await one.add(*messages(agent, 10, 3))
    await one.flush()
    assert await asyncio.to_thread(one.rows) == truth_rows([agent])
    position = one.sink.position(HERE)
    assert position is not None
    assert position.next_offset == 14
    assert (await make().sink.adopt(HERE, CLUSTER)).next_offset == 14


async def test_nothing_is_stored_or_remembered_before_the_flush(make: Callable[[], Harness]) -> None:
    one = make()
    await one.sink.adopt(HERE, CLUSTER)
    await one.add(*messages(FakeAgent("m"), 0))
    assert await asyncio.to_thread(one.rows) == []
    assert (await make().sink.adopt(HERE, CLUSTER)).next_offset is None


async def test_what_is_below_the_position_is_skipped(make: Callable[[], Harness]) -> None:
    agent, one = FakeAgent("m"), make()
    sent = messages(agent, 0, 5)
    await one.sink.adopt(HERE, CLUSTER)
    await one.add(*sent[:4])
    await one.flush()
    other = make()
    assert (await other.sink.adopt(HERE, CLUSTER)).next_offset == 4
    await other.add(*sent[1:3])
    await other.flush()
    assert (other.sink.position(HERE) or Position(0, 0, "")).next_offset == 4
    await other.add(*sent[2:])
    await other.flush()
    assert await asyncio.to_thread(other.rows) == truth_rows([agent])


async def test_a_former_owner_cannot_write(make: Callable[[], Harness]) -> None:
    agent, old, new = FakeAgent("m"), make(), make()
    sent = messages(agent, 0, 4)
    await old.sink.adopt(HERE, CLUSTER)
    await old.sink.adopt(THERE, CLUSTER)
    await old.add(*sent[:3])
    await new.sink.adopt(HERE, CLUSTER)
    with pytest.raises(FencedPartitionsError) as caught:
        await old.flush()
    assert caught.value.partitions == {HERE}
    assert await asyncio.to_thread(old.rows) == []
    old.sink.forget([HERE])
    await new.add(*sent)
    await new.flush()
    assert await asyncio.to_thread(new.rows) == truth_rows([agent])


async def test_forgotten_partitions_are_not_stored_and_the_others_are(make: Callable[[], Harness]) -> None:
    kept, dropped, one = FakeAgent("kept"), FakeAgent("dropped"), make()
    for partition in (HERE, THERE):
        await one.sink.adopt(partition, CLUSTER)
    await one.add(*messages(kept, 0))
    if isinstance(one, ArchiveHarness):
        await one.add(*messages(dropped, 0, at=THERE))
    one.sink.forget([THERE])
    assert one.sink.position(THERE) is None
    await one.flush()
    assert await asyncio.to_thread(one.rows) == truth_rows([kept])


async def test_another_cluster_means_from_the_beginning(make: Callable[[], Harness]) -> None:
    one = make()
    first = await one.sink.adopt(HERE, CLUSTER)
    await one.add(*messages(FakeAgent("m"), 0))
    await one.flush()
    second = await make().sink.adopt(HERE, "cluster-2")
    assert (second.next_offset, second.cluster_id) == (None, "cluster-2")
    assert second.epoch > first.epoch


# ---- what only the serving store has ---------------------------------------------------------------------------


async def flush(harness: PostgresHarness, *sent: tuple[Partition, int, bytes], cluster: str = CLUSTER) -> Outcome:
    return await harness.sink.flush(await harness.ground.flush_of(sent, cluster), lambda _: Plan(), BASE_US)


async def test_repeats_are_refused_within_a_poll_and_after(ground: Ground) -> None:
    agent, one = FakeAgent("m"), PostgresHarness(ground)
    await one.sink.adopt(HERE, CLUSTER)
    birth, batch = (body for _, _, body in messages(agent, 0))
    outcome = await flush(one, (HERE, 0, birth), (HERE, 1, batch), (HERE, 2, batch), (HERE, 3, birth))
    assert outcome.accepted.sum() == 2
    assert (await flush(one, (HERE, 4, batch), (HERE, 5, birth))).accepted.sum() == 0
    assert await asyncio.to_thread(one.rows) == truth_rows([agent])
    # Also after the ledger's rows have been forgotten by age: the lane remembers ranges.
    async with ground.store.connection() as connection:
        await connection.execute("DELETE FROM batch_ledger")
    assert (await flush(one, (HERE, 6, batch))).accepted.sum() == 0
    lane = (await asyncio.to_thread(ground.database.fetch, "SELECT received, repeated, seen::text FROM lanes"))[0]
    assert tuple(lane) == (2, 5, "{[1,3)}")


async def test_a_commit_whose_answer_was_lost_is_found_out(ground: Ground) -> None:
    agent, one = FakeAgent("m"), PostgresHarness(ground)
    await one.sink.adopt(HERE, CLUSTER)
    await flush(one, *messages(agent, 0))
    made = await ground.flush_of(messages(agent, 2))
    plans = []

    def plan(_: object) -> Plan:
        plans.append(1)
        return Plan()

    commit = asyncpg.transaction.Transaction.commit

    async def commit_and_lose_the_answer(self: Any) -> None:
        await commit(self)
        raise ConnectionResetError("lost")

    asyncpg.transaction.Transaction.commit = commit_and_lose_the_answer
    try:
        with pytest.raises(ServiceError):
            await one.sink.flush(made, plan, BASE_US)
    finally:
        asyncpg.transaction.Transaction.commit = commit
    outcome = await one.sink.flush(made, plan, BASE_US)
    assert outcome.accepted.all()
    assert plans == [1]
    await flush(one, *messages(agent, 4))
    assert await asyncio.to_thread(one.rows) == truth_rows([agent])
    assert await asyncio.to_thread(ground.database.value, "SELECT sum(repeated) FROM lanes") == 0


async def test_what_the_archive_lacks_of_a_lost_cluster_is_archivable_once(ground: Ground) -> None:
    agent, one = FakeAgent("m"), PostgresHarness(ground)
    archive = ArchiveHarness(ground).sink
    await archive.adopt(HERE, CLUSTER)
    await one.sink.adopt(HERE, CLUSTER)
    sent = messages(agent, 0, 2)
    assert (await flush(one, *sent)).archivable.all()
    await archive.adopt(HERE, "cluster-2")
    await one.sink.adopt(HERE, "cluster-2")
    outcome = await flush(one, *sent, cluster="cluster-2")
    assert not outcome.accepted.any()
    assert outcome.archivable.all()
    again = [(HERE, 10 + offset, body) for _, offset, body in sent]
    assert not (await flush(one, *again, cluster="cluster-2")).archivable.any()


async def test_rolled_back_whole(ground: Ground) -> None:
    agent, one = FakeAgent("m"), PostgresHarness(ground)
    await one.sink.adopt(HERE, CLUSTER)
    made = await ground.flush_of(messages(agent, 0))

    def fails(_: object) -> Plan:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await one.sink.flush(made, fails, BASE_US)
    for table in ("readings", "batch_ledger", "lanes"):
        assert await asyncio.to_thread(ground.database.value, f"SELECT count(*) FROM {table}") == 0  # noqa: S608
    assert (await one.sink.flush(made, lambda _: Plan(), BASE_US)).accepted.all()
    assert await asyncio.to_thread(one.rows) == truth_rows([agent])


# ---- what only the archive has -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_in", ["write", "commit", "publish", "mark"])
async def test_a_worker_that_dies_while_archiving(
    ground: Ground, dies_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, old = FakeAgent("m"), ArchiveHarness(ground)
    sent = messages(agent, 0, 3)
    sent.append((HERE, 4, agent.batch(BASE_US + 86_400_000_000, 5)))  # and a second day
    await old.sink.adopt(HERE, CLUSTER)
    await old.add(*sent)
    step = {"write": "_commit", "commit": "_commit", "publish": "_finish", "mark": "_mark_published"}[dies_in]
    with monkeypatch.context() as patch:
        if dies_in == "publish":
            patch.setattr(archive_file, "publish", _dies)
        elif dies_in == "commit":
            commit = old.sink._commit

            async def commit_and_die(*arguments: Any) -> None:
                await commit(*arguments)
                _dies()

            patch.setattr(old.sink, "_commit", commit_and_die)
        else:
            patch.setattr(old.sink, step, _dies)
        with pytest.raises(KeyboardInterrupt):
            await old.flush()
    new = ArchiveHarness(ground)
    position = await new.sink.adopt(HERE, CLUSTER)
    assert position.next_offset == (None if dies_in == "write" else 5)
    await new.add(*sent)
    await new.flush()
    assert await asyncio.to_thread(new.rows) == truth_rows([agent])
    files = await asyncio.to_thread(ground.database.fetch, "SELECT state FROM archive_files")
    assert [row["state"] for row in files] == ["published"] * 2
    assert not list((ground.folder / "readings/.incoming").iterdir())


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


async def test_a_database_that_is_away_for_a_while_is_no_matter(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, one = FakeAgent("m"), ArchiveHarness(ground)
    sent = messages(agent, 0, 4)
    await one.sink.adopt(HERE, CLUSTER)
    await one.add(*sent[:3])
    with monkeypatch.context() as patch:

        async def away(*_: object) -> None:
            raise ServiceError("away")

        patch.setattr(one.sink, "_commit", away)
        for _ in range(2):
            with pytest.raises(ServiceError):
                await one.flush()
    await one.add(*sent[2:])  # the third is read again: it is left out
    await one.flush()
    await one.flush()
    assert await asyncio.to_thread(one.rows) == truth_rows([agent])


async def test_files_have_the_columns_that_readers_expect(ground: Ground) -> None:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    one = ArchiveHarness(ground)
    await one.sink.adopt(HERE, CLUSTER)
    agents = [FakeAgent(name, ["b", "a"]) for name in ("m2", "m1")]
    await one.add(*messages(agents[0], 0), *messages(agents[1], 2))
    await one.flush()
    (path,) = ground.folder.rglob("*.parquet")
    assert path.parent.name == "date=2026-01-01"
    assert path.name == "forebay.stream-0-1-0-3.parquet"
    table = pq.ParquetFile(path).read()
    assert {field.name: field.type for field in table.schema} == {
        "ts": pa.timestamp("us", "UTC"), "machine_id": pa.string(), "tag": pa.string(), "unit": pa.string(),
        "value": pa.float64(), "status_code": pa.int32(), "agent_id": pa.string(),
        "epoch": pa.int64(), "seq": pa.int64(),
    }  # fmt: skip
    keys = list(zip(table["machine_id"].to_pylist(), table["tag"].to_pylist(), table["ts"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert np.unique(table["seq"].to_numpy()).tolist() == [2]
