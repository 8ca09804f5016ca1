"""Which partitions this worker owns: taking them over, giving them up, and how far all sinks have them.

In: what the consumer group says (through the hooks of a source), what the sinks say (FencedPartitionsError). Out: the
state of every owned partition, where to read from, offsets to tell the group. Fails with StoppingError when the worker
is to end while a store is waited for, and with ServiceError when the consumer must be made anew. What cannot be stored
on the way out is read again by the next owner.

A partition comes: fence the former owner, rebuild the state, read from the database's offset. It goes: store what is
held if there is time, then forget it. A stale owner finds out when it writes, and forgets it as well.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from cloud_ingest.model import Item, Partition
from cloud_ingest.observe import Metrics
from cloud_ingest.operators.watermark import NEVER_US, WatermarkSettings
from cloud_ingest.operators.windows import TumblingWindows
from cloud_ingest.partition_state import PartitionState
from cloud_ingest.serial_thread import SerialThread
from cloud_ingest.service_watch import ServiceWatch
from cloud_ingest.sinks.archive import ArchiveSink
from cloud_ingest.sinks.checkpoints import FencedPartitionsError
from cloud_ingest.sinks.postgres import PostgresSink
from cloud_ingest.source import Hooks, Source
from common.clock import Clock, iso8601
from common.errors import ForebayError

log = structlog.get_logger()

READOPT_S: Final = 5.0
RELEASE_S: Final = 10.0
STOP_RELEASE_S: Final = 0.5


@dataclass(slots=True)
class Ownership:
    """The partitions of this worker. Everything runs on the event loop, but for the hooks, which call into it."""

    store: PostgresSink
    archive: ArchiveSink | None
    operator: TumblingWindows
    watermark_settings: WatermarkSettings
    store_watch: ServiceWatch
    metrics: Metrics
    clock: Clock
    cluster_id: str = ""
    """Of the cluster that is consumed."""
    states: dict[Partition, PartitionState] = field(default_factory=dict)
    storing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever moves checkpoints: a flush, or partitions that come and go."""
    _told: dict[Partition, int] = field(default_factory=dict)
    _readopt_at: dict[Partition, float] = field(default_factory=dict)

    def hooks(self) -> Hooks:
        """Return what a source calls on its thread; made inside the running event loop."""
        loop = asyncio.get_running_loop()

        def assigned(
            partitions: Sequence[Partition], generations: Mapping[Partition, int]
        ) -> Mapping[Partition, int | None]:
            return asyncio.run_coroutine_threadsafe(self._adopt(partitions, generations), loop).result()

        def revoked(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
            return asyncio.run_coroutine_threadsafe(self._release(partitions), loop).result()

        def lost(partitions: Sequence[Partition]) -> None:
            asyncio.run_coroutine_threadsafe(self._lose(partitions), loop).result()

        return Hooks(assigned, revoked, lost)

    def is_mine(self, item: Item) -> bool:
        """Tell whether a message was read since its partition was taken over, or gone back in, for the last time."""
        state = self.states.get(item.message.partition)
        return state is not None and state.generation == item.message.generation

    def next_offset(self, partition: Partition) -> int | None:
        """Return up to where the store has a partition."""
        position = self.store.position(partition)
        return None if position is None else position.next_offset

    def untold(self) -> dict[Partition, int]:
        """Return the least that all sinks have of each partition, where it is news; it is none the next time."""
        offsets = {}
        for partition in self.states:
            position = self.store.position(partition)
            archived = self.archive.position(partition) if self.archive else position
            if position is None or archived is None or position.next_offset is None or archived.next_offset is None:
                continue
            offset = min(position.next_offset, archived.next_offset)
            if self._told.get(partition) != offset:
                offsets[partition] = offset
        self._told.update(offsets)
        return offsets

    def watermarks(self) -> dict[str, dict[str, str | None]]:
        """Return what /health shows of the partitions."""
        return {
            str(partition): {"watermark": iso8601(state.watermark_us) if state.watermark_us > NEVER_US else None}
            for partition, state in sorted(self.states.items())
        }

    async def flush_archive(self) -> None:
        """Write what the archive holds, if there is one; to be called under `storing`, fails as `ArchiveSink.flush`."""
        if self.archive is not None:
            before = self.archive.files_total
            await self.archive.flush()
            self.metrics.archive_files.inc(self.archive.files_total - before)

    def fenced(self, error: FencedPartitionsError) -> None:
        """Drop partitions that a newer owner has taken; see `readopt`."""
        log.warning("partitions.fenced", why=str(error))
        self.forget(list(error.partitions))
        for partition in error.partitions:
            self._readopt_at[partition] = self.clock.monotonic() + READOPT_S

    async def readopt(self, now: float, source: Source, thread: SerialThread) -> None:
        """Take a partition up again that was fenced a while ago although the group still says it is ours."""
        due = [partition for partition, at in self._readopt_at.items() if at <= now]
        if not due:
            return
        assigned = set(await thread.run(source.assigned))
        for partition in due:
            del self._readopt_at[partition]
            if partition in assigned and partition not in self.states:
                starts = await self._adopt([partition], {partition: -1})
                generation = await thread.run(source.read_from, partition, starts[partition])
                if partition in self.states:
                    self.states[partition].generation = generation

    def forget(self, partitions: Sequence[Partition]) -> None:
        """Stop owning partitions, without storing anything."""
        for partition in partitions:
            self.states.pop(partition, None)
            self._told.pop(partition, None)
            self._readopt_at.pop(partition, None)
            self.metrics.forget(partition)
        self.store.forget(partitions)
        if self.archive:
            self.archive.forget(partitions)

    async def _adopt(
        self, partitions: Sequence[Partition], generations: Mapping[Partition, int]
    ) -> dict[Partition, int | None]:
        """Take partitions over: fence the former owner, rebuild the state, and tell where to read from."""
        starts: dict[Partition, int | None] = {}
        for partition in partitions:

            async def take(partition: Partition = partition) -> int | None:
                async with self.storing:
                    return await self._adopt_one(partition, generations[partition])

            starts[partition] = await self.store_watch.insist(take)
        if partitions:
            log.info("partitions.assigned", partitions={str(one): starts[one] for one in partitions})
        return starts

    async def _adopt_one(self, partition: Partition, generation: int) -> int | None:
        position = await self.store.adopt(partition, self.cluster_id)
        archived = await self.archive.adopt(partition, self.cluster_id) if self.archive else position
        state = PartitionState(self.operator, self.watermark_settings, generation, self.clock.now_us())
        if position.watermark_us is not None and position.watermark_us > NEVER_US:
            from_us = self.operator.rebuild_from_us(position.watermark_us)
            stored = await self.store.stored_readings(partition, from_us)
            await asyncio.to_thread(state.rebuild, stored, position.watermark_us)
        self.states[partition] = state
        self._readopt_at.pop(partition, None)
        if position.next_offset is None or archived.next_offset is None:
            return None
        return min(position.next_offset, archived.next_offset)

    async def _release(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Give partitions up in good order; on failure the next owner simply reads more again."""
        offsets: dict[Partition, int] = {}
        with contextlib.suppress(TimeoutError, ForebayError):
            async with asyncio.timeout(STOP_RELEASE_S if self.store_watch.stopping else RELEASE_S), self.storing:
                await self.flush_archive()
                offsets = self.untold()
        async with self.storing:
            self.forget(partitions)
        log.info("partitions.revoked", partitions=[str(one) for one in partitions])
        return offsets

    async def _lose(self, partitions: Sequence[Partition]) -> None:
        log.warning("partitions.lost", partitions=[str(one) for one in partitions])
        async with self.storing:
            self.forget(partitions)
