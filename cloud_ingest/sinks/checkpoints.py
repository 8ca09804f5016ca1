"""Checkpoints: up to where a sink has each partition, fenced so that only the latest owner can move them.

In: a connection inside the transaction that stores the rows. Out: positions. Fails with FencedPartitionsError when a
newer owner has taken a partition; the transaction is then to be rolled back and the partitions forgotten.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import asyncpg

from cloud_ingest.model import Partition, Position
from common.errors import FencedError


class FencedPartitionsError(FencedError):
    """A newer worker owns `partitions`."""

    def __init__(self, partitions: Iterable[Partition]) -> None:
        self.partitions = frozenset(partitions)
        super().__init__(f"another worker owns {', '.join(map(str, sorted(self.partitions)))} now")


@dataclass(frozen=True, slots=True)
class Advance:
    """Where a partition is to stand after a flush; a watermark of None leaves it as it is."""

    next_offset: int | None
    watermark_us: int | None = None


class Checkpoints:
    """The checkpoints of one consumer group in the store, and what this worker owns of them."""

    def __init__(self, consumer_group: str) -> None:
        self.consumer_group = consumer_group
        self.owned: dict[Partition, Position] = {}

    async def adopt(self, connection: asyncpg.Connection, partition: Partition, cluster_id: str) -> Position:
        """Take a partition over, fencing whoever had it; a position in another cluster is put on record and void."""
        async with connection.transaction():
            row = await connection.fetchrow(
                'INSERT INTO checkpoints (consumer_group, topic, "partition", epoch, cluster_id)'
                ' VALUES ($1, $2, $3, 1, $4) ON CONFLICT (consumer_group, topic, "partition") DO UPDATE'
                " SET epoch = checkpoints.epoch + 1, updated_at = clock_timestamp()"
                " RETURNING next_offset, epoch, cluster_id, flushes, watermark",
                self.consumer_group,
                *partition,
                cluster_id,
            )
            next_offset = row["next_offset"]
            if row["cluster_id"] != cluster_id:
                await self._retire(connection, partition, row["cluster_id"], cluster_id)
                next_offset = None
        position = Position(next_offset, row["epoch"], cluster_id, row["flushes"], row["watermark"])
        self.owned[partition] = position
        return position

    async def _retire(self, connection: asyncpg.Connection, partition: Partition, former: str, current: str) -> None:
        await connection.execute(
            'INSERT INTO former_checkpoints (consumer_group, cluster_id, topic, "partition", next_offset)'
            ' SELECT consumer_group, cluster_id, topic, "partition", next_offset FROM checkpoints'
            ' WHERE consumer_group = $1 AND topic = $2 AND "partition" = $3 AND cluster_id = $4'
            ' ON CONFLICT (consumer_group, cluster_id, topic, "partition")'
            " DO UPDATE SET next_offset = EXCLUDED.next_offset",
            self.consumer_group,
            *partition,
            former,
        )
        await connection.execute(
            "UPDATE checkpoints SET cluster_id = $4, next_offset = NULL"
            ' WHERE consumer_group = $1 AND topic = $2 AND "partition" = $3',
            self.consumer_group,
            *partition,
            current,
        )

    async def lock(self, connection: asyncpg.Connection, partitions: Iterable[Partition]) -> bool:
        """Lock the partitions until the transaction ends; False if this very flush was committed before.

        That happens when the connection was lost before the commit was confirmed, and the flush is tried again.
        """
        names = sorted(partitions)
        rows = await connection.fetch(
            'SELECT topic, "partition", epoch, flushes FROM checkpoints'
            ' WHERE consumer_group = $1 AND (topic, "partition") IN (SELECT * FROM unnest($2::text[], $3::int[]))'
            ' ORDER BY topic, "partition" FOR UPDATE',
            self.consumer_group,
            [name.topic for name in names],
            [name.number for name in names],
        )
        stored = {Partition(row["topic"], row["partition"]): row for row in rows}
        lost = [
            name
            for name in names
            if name not in self.owned or name not in stored or stored[name]["epoch"] != self.owned[name].epoch
        ]
        if lost:
            raise FencedPartitionsError(lost)
        return all(stored[name]["flushes"] == self.owned[name].flushes for name in names)

    async def advance(self, connection: asyncpg.Connection, to: Mapping[Partition, Advance]) -> None:
        """Move locked checkpoints; the caller calls `committed` once the transaction is."""
        names = sorted(to)
        done = await connection.execute(
            "UPDATE checkpoints c SET next_offset = n.next_offset, flushes = c.flushes + 1,"
            " updated_at = clock_timestamp(), watermark = coalesce(n.watermark, c.watermark)"
            " FROM unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[], $6::timestamptz[])"
            ' AS n (topic, "partition", next_offset, epoch, watermark)'
            ' WHERE c.consumer_group = $1 AND c.topic = n.topic AND c."partition" = n."partition"'
            " AND c.epoch = n.epoch",
            self.consumer_group,
            [name.topic for name in names],
            [name.number for name in names],
            [to[name].next_offset for name in names],
            [self.owned[name].epoch for name in names],
            [to[name].watermark_us for name in names],
        )
        if int(done.rpartition(" ")[2]) != len(names):
            raise FencedPartitionsError(names)

    def committed(self, to: Mapping[Partition, Advance]) -> None:
        """Take note that a transaction with `advance(to)` was committed."""
        for name, step in to.items():
            if (position := self.owned.get(name)) is not None:
                watermark = position.watermark_us if step.watermark_us is None else step.watermark_us
                self.owned[name] = replace(
                    position, next_offset=step.next_offset, flushes=position.flushes + 1, watermark_us=watermark
                )

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Stop owning partitions; the store is not told, as the next owner fences this one."""
        for partition in partitions:
            self.owned.pop(partition, None)
