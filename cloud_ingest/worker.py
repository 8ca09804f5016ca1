"""The worker: wires source, decode, operators and sinks together; the only module that knows them all.

In: a config, a clock, an event that says stop. Out: rows, windows, files, dead letters, metrics. Fails never for long:
what a service lacks is waited for (ServiceError), what another worker owns is dropped (FencedError), what cannot
be stored is set aside (RefusedError).

A poll goes this way; while steps 3 to 8 run for one poll, steps 1 and 2 run for the next:
    1. fetch: messages from the broker, envelopes read
    2. decode: births looked up, all blocks into one columnar chunk; what fails becomes a dead letter
    3. drop what belongs to partitions this worker does not own (any more)
    4. flush: one transaction for ledger, readings, windows, dead letters and checkpoints (sinks/postgres.py)
       5. in the midst of it: the operators plan, on what the ledger found to be new
    6. apply the operators' steps to the state in memory
    7. hand the readings to the archive, which is written from time to time with a checkpoint of its own
    8. tell the group up to where everything is stored
A failed flush is tried again with the same poll; state in memory changes in step 6 only, so it cannot change twice.
Beside the loop: partitions come and go (ownership.py), broker and store are looked after (housekeeping.py).
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from cloud_ingest.broker import BrokerLink, Cluster
from cloud_ingest.config import IngestConfig
from cloud_ingest.decode import to_chunk
from cloud_ingest.housekeeping import Housekeeping
from cloud_ingest.model import NO_READINGS, Chunk, DeadLetter, Item, Partition, Reason
from cloud_ingest.observe import Metrics, health
from cloud_ingest.operators.partials import Partials
from cloud_ingest.operators.watermark import WatermarkSettings
from cloud_ingest.operators.windows import TumblingWindows
from cloud_ingest.ownership import Ownership
from cloud_ingest.partition_state import PartitionStep, steps_after_chunk, steps_after_silence
from cloud_ingest.registry import Registry
from cloud_ingest.serial_thread import SerialThread
from cloud_ingest.service_watch import ServiceWatch, StoppingError, wait_for_all
from cloud_ingest.sinks.archive import ArchiveSink
from cloud_ingest.sinks.checkpoints import FencedPartitionsError
from cloud_ingest.sinks.postgres import Flush, Plan, PostgresSink
from cloud_ingest.sinks.window_rows import TABLES
from cloud_ingest.source import Source
from cloud_ingest.store import upkeep
from cloud_ingest.store.connection import RefusedError, Store
from common.clock import US_PER_SECOND, Clock
from common.errors import ForebayError, ServiceError
from common.metrics import Health, MetricsServer

if TYPE_CHECKING:
    from cloud_ingest.store.migrate import Kind

log = structlog.get_logger()

ARCHIVE_SUFFIX: Final = ".archive"
EMBEDDED_ARCHIVE_BYTES_MAX: Final = 1 << 20
"""The embedded broker keeps 5 MiB a partition and the edge waits for what is not archived: write early."""
SILENCE_S: Final = 1.0
STOP_FLUSH_S: Final = 2.5
STOP_ARCHIVE_S: Final = 1.2
STOP_SOURCE_S: Final = 0.8


@dataclass(frozen=True, slots=True)
class _Poll:
    """What steps 1 and 2 made; `chunk` is None if the store refused a birth of it, which step 4 then finds."""

    items: Sequence[Item]
    chunk: Chunk | None
    dead: Sequence[DeadLetter]


class Worker:
    """One member of the consumer group. `run` may be called once."""

    def __init__(self, config: IngestConfig, clock: Clock, stop: asyncio.Event) -> None:
        self._config = config
        self._clock = clock
        self._stop = stop
        self.metrics = Metrics()
        self._store = Store(config)
        self._link = BrokerLink(config)
        self._store_watch = ServiceWatch("store", self.metrics.store_up, clock, stop)
        self._broker_watch = ServiceWatch("broker", self.metrics.broker_up, clock, stop)
        self._registry = Registry(self._store)
        self._kind: Kind | None = None
        self._steps: dict[Partition, PartitionStep] = {}
        self.address = ""

    async def run(self) -> None:
        """Work until told to stop; returns within five seconds of that, whatever the services do."""
        http = self._config.http
        self._server = MetricsServer(http.host, http.port, self.metrics.registry, self._health)
        self.address = self._server.address
        log.info("ingest.started", http=self.address, group=self._config.ingest.consumer_group)
        try:
            with contextlib.suppress(StoppingError):
                await wait_for_all(
                    self._store_watch.insist(self._open_store), self._broker_watch.insist(self._open_broker)
                )
                while not self._stop.is_set():
                    await self._serve(await self._broker_watch.insist(self._open_broker))
        finally:
            await asyncio.to_thread(self._link.close)
            await self._store.close()
            self._server.close()
            log.info("ingest.stopped")

    # ---- putting it together --------------------------------------------------------------------------------

    async def _open_store(self) -> None:
        async with self._store.connection() as connection:
            kind = await upkeep.prepare(connection, self._config.retention, self._clock.now_us())
        archive, group = self._config.archive, self._config.ingest.consumer_group
        if self._config.embedded_broker:
            archive = archive.model_copy(update={"bytes_max": min(archive.bytes_max, EMBEDDED_ARCHIVE_BYTES_MAX)})
        archive_group = group + ARCHIVE_SUFFIX if archive.enabled else None
        self._sink = PostgresSink(self._store, kind, group, archive_group)
        self._archive = (
            ArchiveSink(self._store, self._config.archive_folder, archive_group, archive) if archive_group else None
        )
        lateness_us = int(self._config.ingest.allowed_lateness_s * US_PER_SECOND)
        operator = TumblingWindows(sorted(TABLES), lateness_us)
        watermarks = WatermarkSettings(lateness_us, int(self._config.ingest.idle_timeout_s * US_PER_SECOND))
        self._ownership = Ownership(
            self._sink, self._archive, operator, watermarks, self._store_watch, self.metrics, self._clock
        )
        self._kind = kind

    async def _open_broker(self) -> Cluster:
        await asyncio.to_thread(self._link.claim)
        cluster = await asyncio.to_thread(self._link.connect)
        for name in await asyncio.to_thread(self._link.ensure_topics, cluster):
            log.info("broker.topic_created", topic=name)
        return cluster

    async def _serve(self, cluster: Cluster) -> None:
        """Consume from a cluster until told to stop, or until it is gone and another has its place."""
        self._cluster = cluster
        self._ownership.cluster_id = cluster.cluster_id
        self._thread = SerialThread("consumer")
        self._gone = asyncio.Event()
        self._source = await self._thread.run(
            Source, self._config, cluster, self._ownership.hooks(), self._link.partitions()
        )
        self._house = Housekeeping(
            store=self._store,
            kind=self._kind or "plain",
            retention=self._config.retention,
            link=self._link,
            cluster=cluster,
            broker_watch=self._broker_watch,
            source=self._source,
            thread=self._thread,
            ownership=self._ownership,
            metrics=self.metrics,
            clock=self._clock,
        )
        ended = asyncio.create_task(self._stop.wait())
        tasks = [asyncio.create_task(self._consume()), asyncio.create_task(self._house.run(self._gone))]
        try:
            await asyncio.wait([*tasks, ended], return_when=asyncio.FIRST_COMPLETED)
            self._gone.set()
            await asyncio.wait(tasks, timeout=STOP_FLUSH_S if self._stop.is_set() else 10.0)
        finally:
            for task in [*tasks, ended]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self._leave()
        for result in results:
            if isinstance(result, ServiceError):
                log.warning("source.restarted", why=str(result))
            elif isinstance(result, Exception) and not isinstance(result, StoppingError):
                raise result

    async def _leave(self) -> None:
        """Write the archive's rest, leave the group, forget everything; whatever does not work now is read again."""
        with contextlib.suppress(TimeoutError, ForebayError):
            async with asyncio.timeout(STOP_ARCHIVE_S if self._stop.is_set() else 30.0), self._ownership.storing:
                await self._ownership.flush_archive()
                self._tell_group()
        with contextlib.suppress(TimeoutError, ForebayError):
            async with asyncio.timeout(STOP_SOURCE_S if self._stop.is_set() else 10.0):
                await self._thread.run(self._source.close)
        self._thread.stop()
        self._ownership.forget(list(self._ownership.states))

    # ---- the loop -------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        ahead = asyncio.create_task(self._poll())
        silence_at = self._clock.monotonic()
        try:
            while not (self._stop.is_set() or self._gone.is_set()):
                poll = await ahead
                ahead = asyncio.create_task(self._poll())
                if poll.items:
                    await self._store_poll(poll)
                now = self._clock.monotonic()
                if now - silence_at >= SILENCE_S:
                    silence_at = now
                    await self._store_silence()
                    await self._ownership.readopt(now, self._source, self._thread)
                if self._archive is not None and self._archive.due(now):
                    await self._store_watch.insist(self._write_archive, self._stay)
        finally:
            ahead.cancel()
            with contextlib.suppress(asyncio.CancelledError, ForebayError):
                await ahead

    async def _poll(self) -> _Poll:
        settings = self._config.ingest
        items = await self._thread.run(  # 1
            self._source.fetch, settings.readings_per_flush_max, settings.poll_timeout_ms / 1000
        )
        return await self._decode(items)  # 2

    async def _decode(self, items: Sequence[Item]) -> _Poll:
        if not items:
            return _Poll((), NO_READINGS, ())
        try:
            if not self._registry.knows(items):
                await self._store_watch.insist(lambda: self._registry.prepare(items))
        except RefusedError:
            return _Poll(items, None, ())
        chunk, dead = await asyncio.to_thread(to_chunk, items, self._registry.lookup)
        return _Poll(items, chunk, dead)

    async def _store_poll(self, poll: _Poll) -> None:
        """Steps 3 to 8 for a poll, however often it takes."""
        flush: Flush | None = None
        while True:
            mine = [item for item in poll.items if self._ownership.is_mine(item)]  # 3
            if not mine:
                return
            if len(mine) < len(poll.items):
                poll, flush = await self._decode(mine), None
            if poll.chunk is None:
                await self._store_halves(poll.items, "a birth was refused")
                return
            ends = {item.message.partition: item.message.offset + 1 for item in poll.items}  # in order: the last counts
            flush = flush or Flush(self._cluster.cluster_id, ends, poll.chunk, poll.dead)
            try:
                await self._flush(flush, poll.items)
            except FencedPartitionsError as error:
                self._ownership.fenced(error)
            except RefusedError as error:
                await self._store_halves(poll.items, str(error))
                return
            except ServiceError as error:
                await self._store_watch.wait(error, self._stay)
            else:
                self._store_watch.succeeded()
                return

    async def _store_halves(self, items: Sequence[Item], why: str) -> None:
        """The store refused something of a poll: find the message by halves, and set it aside."""
        if len(items) > 1:
            middle = len(items) // 2
            for half in (items[:middle], items[middle:]):
                await self._store_poll(await self._decode(half))
            return
        message = items[0].message
        if isinstance(items[0].content, DeadLetter):
            raise RefusedError(f"not even as a dead letter: {message.partition} {message.offset}: {why}")
        log.error("message.refused_by_store", partition=str(message.partition), offset=message.offset, error=why)
        letter = DeadLetter(message, Reason.REFUSED_BY_STORE, why)
        await self._store_poll(_Poll([Item(message, letter)], NO_READINGS, [letter]))

    async def _flush(self, flush: Flush, items: Sequence[Item]) -> None:
        began, now_us = self._clock.monotonic(), self._clock.now_us()
        states = self._ownership.states
        async with self._ownership.storing:

            def plan(chunk: Chunk) -> Plan:  # 5
                self._steps = steps_after_chunk(states, chunk, now_us)
                return _plan_of(self._steps)

            outcome = await self._sink.flush(flush, plan, now_us)  # 4
            for partition, step in self._steps.items():
                states[partition].apply(step, now_us)  # 6
            if self._archive is not None:
                self._archive.add(flush.chunk.only(outcome.archivable), flush.ends, self._clock.monotonic())  # 7
            self._tell_group()  # 8
        took_s = self._clock.monotonic() - began
        self.metrics.flushed(flush, outcome, items, self._steps.values(), self._clock.now_us(), took_s)
        if flush.dead:
            self._house.letters.set()

    async def _store_silence(self) -> None:
        """Emit the windows of partitions that have been silent for long enough."""
        now_us = self._clock.now_us()
        states = self._ownership.states
        async with self._ownership.storing:
            steps = steps_after_silence(states, now_us)
            ends = {partition: self._ownership.next_offset(partition) for partition in steps}
        if not steps:
            return
        flush, made = Flush(self._cluster.cluster_id, ends), _plan_of(steps)

        async def attempt() -> None:
            async with self._ownership.storing:
                if any(partition not in states for partition in steps):
                    return  # gone meanwhile; the next second looks again
                await self._sink.flush(flush, lambda _: made, now_us)
                for partition, step in steps.items():
                    states[partition].apply(step, None)

        try:
            await self._store_watch.insist(attempt, self._stay)
        except FencedPartitionsError as error:
            self._ownership.fenced(error)

    async def _write_archive(self) -> None:
        try:
            async with self._ownership.storing:
                await self._ownership.flush_archive()
                self._tell_group()
        except FencedPartitionsError as error:
            self._ownership.fenced(error)

    def _tell_group(self) -> None:
        """Commit to Kafka the least that all sinks have of each partition.

        Through the consumer's thread and without waiting: a call from here would block while that thread is in a hook,
        and the hook may be waiting for us.
        """
        if offsets := self._ownership.untold():
            self._thread.post(self._source.commit, offsets)

    async def _stay(self) -> None:
        """Stay in the group while something is waited for."""
        await self._thread.run(self._source.keep_alive)

    def _health(self) -> Health:
        watermarks = self._ownership.watermarks() if self._kind else {}
        return health(self._store_watch, self._broker_watch, self._kind, watermarks, self.metrics.last_commit_us)


def _plan_of(steps: Mapping[Partition, PartitionStep]) -> Plan:
    made = steps.values()
    lengths_us = sorted({length_us for step in made for length_us in step.windows})
    return Plan(
        [(length_us, Partials.concat([step.windows[length_us] for step in made])) for length_us in lengths_us],
        {partition: step.watermark_us for partition, step in steps.items()},
        [(partition, step.new_series) for partition, step in steps.items() if step.new_series.size],
    )
