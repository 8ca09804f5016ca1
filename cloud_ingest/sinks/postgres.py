"""The serving store as a sink: one transaction per flush holds everything that the flush means.

In: a Flush (readings, dead letters, where its partitions end) and the plan that the operators make of whatever of it is
new. Out: an Outcome, once it is committed. Fails with FencedPartitionsError (drop those partitions), ServiceError
(try the same flush again; it is found out if it was committed after all) and RefusedError (a message is unfit).

One transaction:
    1. lock the partitions' checkpoints, which fences stale owners for good
    2. enter the batches into the ledger; what was there already is dropped from the chunk
    3. plan: the operators' windows and the watermarks, from what is left
    4. copy the readings, sorted by series and time
    5. merge the windows
    6. dead letters, lanes, origins of series
    7. advance the checkpoints
    8. commit
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import numpy as np
from numpy.typing import NDArray

from cloud_ingest import dead_letters
from cloud_ingest.model import NO_READINGS, Chunk, DeadLetter, Partition, Position
from cloud_ingest.operators.partials import Partials
from cloud_ingest.sinks import ledger, window_rows
from cloud_ingest.sinks.checkpoints import Advance, Checkpoints, FencedPartitionsError
from cloud_ingest.sinks.copy_binary import parse, rows, stream, timestamptz
from cloud_ingest.store import upkeep
from cloud_ingest.store.connection import EPOCH_2000_US, Store
from cloud_ingest.store.migrate import Kind
from common.model import ReadingFrame

DIRECT_COMPRESS_ROWS_MIN: Final = 5_000
"""Below this many rows, TimescaleDB stores rows as they are and compresses them later: tiny batches compress badly."""


@dataclass(frozen=True, slots=True)
class Flush:
    """What is to be stored together. `ends` says for every partition concerned up to where it was read."""

    cluster_id: str
    ends: Mapping[Partition, int | None]
    chunk: Chunk = NO_READINGS
    dead: Sequence[DeadLetter] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What the operators make of the readings that are new. Partials have the series id as `row`."""

    windows: Sequence[tuple[int, Partials]] = ()
    watermarks: Mapping[Partition, int] = field(default_factory=dict)
    origins: Sequence[tuple[Partition, NDArray[np.int32]]] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a committed flush came to: which entries of its chunk were new, and which the archive must look at."""

    accepted: NDArray[np.bool_]
    archivable: NDArray[np.bool_]


class PostgresSink:
    """Rows, windows, ledger, dead letters and checkpoints of this worker's partitions; see `Sink`."""

    def __init__(self, store: Store, kind: Kind, consumer_group: str, archive_group: str | None) -> None:
        """`archive_group` names the archive's checkpoints; None when there is no archive."""
        self._store = store
        self._kind = kind
        self._archive_group = archive_group
        self._checkpoints = Checkpoints(consumer_group)
        self._attempt: tuple[Flush, Outcome, Mapping[Partition, Advance]] | None = None
        self._days: set[int] = set()

    async def adopt(self, partition: Partition, cluster_id: str) -> Position:
        """See `Sink.adopt`."""
        async with self._store.connection() as connection:
            return await self._checkpoints.adopt(connection, partition, cluster_id)

    def forget(self, partitions: Iterable[Partition]) -> None:
        """See `Sink.forget`."""
        self._checkpoints.forget(partitions)

    def position(self, partition: Partition) -> Position | None:
        """See `Sink.position`."""
        return self._checkpoints.owned.get(partition)

    async def flush(self, flush: Flush, plan: Callable[[Chunk], Plan], now_us: int) -> Outcome:
        """Store a flush whole or not at all; `plan` may be called once per attempt and must not change anything."""
        await self._prepare_days(flush.chunk, now_us)
        async with self._store.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                if not await self._checkpoints.lock(connection, flush.ends):  # 1
                    await transaction.rollback()
                    return self._committed_before(flush)
                accepted, archivable = await self._claim(connection, flush)  # 2
                chunk = flush.chunk.only(accepted)
                made = plan(chunk)  # 3
                await self._write(connection, flush, chunk, made)  # 4, 5, 6
                to = {name: self._advance(name, end, made) for name, end in flush.ends.items()}
                await self._checkpoints.advance(connection, to)  # 7
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong first is what counts
                    await transaction.rollback()
                raise
            outcome = Outcome(accepted, archivable)
            self._attempt = (flush, outcome, to)
            await transaction.commit()  # 8
        self._checkpoints.committed(to)
        return outcome

    def _advance(self, partition: Partition, end: int | None, made: Plan) -> Advance:
        """Never back: a poll may hold messages that only the archive still lacks."""
        ends = [one for one in (end, self._checkpoints.owned[partition].next_offset) if one is not None]
        return Advance(max(ends, default=None), made.watermarks.get(partition))

    def _committed_before(self, flush: Flush) -> Outcome:
        """The connection was lost while an earlier attempt committed, and it did commit."""
        if self._attempt is None or self._attempt[0] is not flush:
            raise FencedPartitionsError(flush.ends)  # somebody used this worker's epoch: nothing here can be trusted
        _, outcome, to = self._attempt
        self._checkpoints.committed(to)
        return outcome

    async def _claim(self, connection: asyncpg.Connection, flush: Flush) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Tell which entries are new, and which the archive must look at. Those below the checkpoint are no news."""
        entries = flush.chunk.entries
        accepted = np.fromiter((self._is_above(entry.message.partition, entry.message.offset) for entry in entries),
                               np.bool_, len(entries))  # fmt: skip
        above = np.flatnonzero(accepted).tolist()
        claimed = await ledger.claim(connection, flush.cluster_id, [entries[k] for k in above])
        await ledger.count(connection, [entries[k] for k in above], claimed)
        accepted[above] = claimed
        archivable = accepted.copy()
        if self._archive_group is not None and not accepted.all():
            others = np.flatnonzero(~accepted).tolist()
            archivable[others] = await ledger.unarchived(
                connection, flush.cluster_id, self._archive_group, [entries[k] for k in others]
            )
        return accepted, archivable

    def _is_above(self, partition: Partition, offset: int) -> bool:
        next_offset = self._checkpoints.owned[partition].next_offset
        return next_offset is None or offset >= next_offset

    async def _write(self, connection: asyncpg.Connection, flush: Flush, chunk: Chunk, made: Plan) -> None:
        await self._copy(connection, chunk)
        for length_us, partials in made.windows:
            await window_rows.store(connection, length_us, partials)
        fresh = [one for one in flush.dead if self._is_above(one.message.partition, one.message.offset)]
        await dead_letters.store(connection, flush.cluster_id, fresh)
        for partition, series in made.origins:
            await connection.execute(
                'INSERT INTO series_origin (series_id, topic, "partition") SELECT s, $2, $3 FROM unnest($1::int[]) AS s'
                " ORDER BY s ON CONFLICT (series_id)"
                ' DO UPDATE SET topic = EXCLUDED.topic, "partition" = EXCLUDED."partition"',
                series.tolist(),
                *partition,
            )

    async def _copy(self, connection: asyncpg.Connection, chunk: Chunk) -> None:
        if not chunk.readings:
            return
        if self._kind == "timescaledb" and chunk.readings >= DIRECT_COMPRESS_ROWS_MIN:
            await connection.execute("SET LOCAL timescaledb.enable_direct_compress_copy = on")
        frame = chunk.frame(chunk.block_series)
        data = rows([timestamptz(frame.ts_us), frame.series, frame.values, frame.statuses])
        await connection.copy_to_table("readings", source=stream(data), format="binary")

    async def _prepare_days(self, chunk: Chunk, now_us: int) -> None:
        """Plain PostgreSQL: make the partitions of days that are not there; apart, as it locks the table."""
        if self._kind != "plain" or not chunk.readings:
            return
        days = {
            day
            for entry in chunk.entries
            if entry.first_us is not None and entry.last_us is not None
            for day in (entry.first_us // upkeep.DAY_US, entry.last_us // upkeep.DAY_US)
        }
        if not days - self._days:
            return
        # A batch that spans days: its own readings say which.
        days = set(np.unique(chunk.ts_us // upkeep.DAY_US).tolist())
        async with self._store.connection() as connection:
            await upkeep.make_days(connection, days - self._days, now_us)
        self._days |= days

    async def stored_readings(self, partition: Partition, from_us: int) -> ReadingFrame:
        """Return the stored readings of the partition's series since `from_us`, the series id as `series`."""
        pieces: list[bytes] = []

        async def keep(data: bytes) -> None:
            pieces.append(data)

        async with self._store.connection() as connection:
            await connection.copy_from_query(
                "SELECT r.ts, r.series_id, r.value, r.status_code"
                " FROM readings r JOIN series_origin o USING (series_id)"
                ' WHERE o.topic = $1 AND o."partition" = $2 AND r.ts >= $3',
                *partition,
                from_us,
                output=keep,
                format="binary",
            )
        ts, series, values, statuses = parse(b"".join(pieces), (np.int64, np.int32, np.float64, np.int32))
        return ReadingFrame(series, ts + EPOCH_2000_US, values, statuses)
