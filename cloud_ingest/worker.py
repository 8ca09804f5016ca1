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
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from cloud_ingest import dead_letters
from cloud_ingest.broker import BrokerLink, Cluster
from cloud_ingest.config import IngestConfig
from cloud_ingest.decode import to_chunk
from cloud_ingest.model import NO_READINGS, Chunk, DeadLetter, Item, Partition, Reason
from cloud_ingest.observe import Metrics, ServiceWatch, health
from cloud_ingest.operators.partials import Partials
from cloud_ingest.operators.watermark import NEVER_US, WatermarkSettings
from cloud_ingest.operators.windows import TumblingWindows
from cloud_ingest.partition_state import PartitionState, PartitionStep
from cloud_ingest.registry import Registry
from cloud_ingest.serial_thread import SerialThread
from cloud_ingest.sinks.archive import ArchiveSink
from cloud_ingest.sinks.checkpoints import FencedPartitionsError
from cloud_ingest.sinks.postgres import Flush, Outcome, Plan, PostgresSink
from cloud_ingest.sinks.window_rows import TABLES
from cloud_ingest.source import Hooks, Source
from cloud_ingest.store import upkeep
from cloud_ingest.store.connection import RefusedError, Store
from cloud_ingest.store.migrate import Kind, migrate
from common.clock import US_PER_SECOND, Clock, iso8601
from common.errors import ForebayError, ServiceError
from common.metrics import Health, MetricsServer

log = structlog.get_logger()

ResultT = TypeVar("ResultT")

ARCHIVE_SUFFIX: Final = ".archive"
EMBEDDED_ARCHIVE_BYTES_MAX: Final = 1 << 20
"""The embedded broker keeps 5 MiB a partition and the edge waits for what is not archived: write early."""
UPKEEP_S: Final = 300.0
HOUSEKEEPING_S: Final = 1.0
READOPT_S: Final = 5.0
STOP_FLUSH_S: Final = 2.5
STOP_ARCHIVE_S: Final = 1.2
STOP_SOURCE_S: Final = 0.8


class _StoppingError(ForebayError):
    """The worker is to end while it waits for a service."""


@dataclass(frozen=True, slots=True)
class _Poll:
    """What steps 1 and 2 made; `chunk` is None if the store refused a birth of it, which step 4 then finds."""

    items: Sequence[Item]
    chunk: Chunk | None
    dead: Sequence[DeadLetter]


class Worker:
    """One member of the consumer group. `run` may be called once."""

    def __init__(self, config: IngestConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self.metrics = Metrics()
        self._stop = asyncio.Event()
        self._store = Store(config)
        self._link = BrokerLink(config)
        self._store_watch = ServiceWatch("store", self.metrics.store_up, clock)
        self._broker_watch = ServiceWatch("broker", self.metrics.broker_up, clock)
        self._operator = TumblingWindows(sorted(TABLES), int(config.ingest.allowed_lateness_s * US_PER_SECOND))
        self._watermarks = WatermarkSettings(
            int(config.ingest.allowed_lateness_s * US_PER_SECOND), int(config.ingest.idle_timeout_s * US_PER_SECOND)
        )
        self._registry = Registry(self._store)
        self._states: dict[Partition, PartitionState] = {}
        self._storing = asyncio.Lock()
        """Held by whoever moves checkpoints: a flush, or partitions that come and go."""
        self._readopt_at: dict[Partition, float] = {}
        self._told: dict[Partition, int] = {}
        self._letters = asyncio.Event()
        self._steps: dict[Partition, PartitionStep] = {}
        self._kind: Kind | None = None
        self._last_commit_us: int | None = None
        self.address = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; returns within five seconds of that, whatever the services do."""
        self._stop = stop
        self._server = MetricsServer(
            self._config.http.host, self._config.http.port, self.metrics.registry, self._health
        )
        self.address = self._server.address
        log.info("ingest.started", http=self.address, group=self._config.ingest.consumer_group)
        try:
            with contextlib.suppress(_StoppingError):
                await self._open_both()
                while not stop.is_set():
                    await self._serve(await self._insist(self._open_broker, self._broker_watch))
        finally:
            await asyncio.to_thread(self._link.close)
            await self._store.close()
            self._server.close()
            log.info("ingest.stopped")

    # ---- services -------------------------------------------------------------------------------------------

    async def _open_both(self) -> None:
        """Wait for store and broker at once, so that each says what it lacks."""
        tasks = [
            asyncio.create_task(self._insist(self._open_store, self._store_watch)),
            asyncio.create_task(self._insist(self._open_broker, self._broker_watch)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open_store(self) -> None:
        async with self._store.connection() as connection:
            migrated = await migrate(connection)
            for one in migrated.applied:
                log.info("store.migrated", version=one.version, name=one.name)
            if migrated.missing:
                log.warning(
                    "store.plain",
                    missing=migrated.missing,
                    means="native partitions by day, no columnstore compression",
                )
            if migrated.kind == "timescaledb":
                await upkeep.set_policies(connection, self._config.retention)
            await upkeep.settle(connection, migrated.kind, self._config.retention, self._clock.now_us())
        self._kind = migrated.kind
        group = self._config.ingest.consumer_group
        archive = self._config.archive
        if self._config.embedded_broker:
            archive = archive.model_copy(update={"bytes_max": min(archive.bytes_max, EMBEDDED_ARCHIVE_BYTES_MAX)})
        archive_group = group + ARCHIVE_SUFFIX if archive.enabled else None
        self._sink = PostgresSink(self._store, migrated.kind, group, archive_group)
        self._archive = (
            ArchiveSink(self._store, self._config.archive_folder, archive_group, archive) if archive_group else None
        )

    async def _open_broker(self) -> Cluster:
        await asyncio.to_thread(self._link.claim)
        cluster = await asyncio.to_thread(self._link.connect)
        for name in await asyncio.to_thread(self._link.ensure_topics, cluster):
            log.info("broker.topic_created", topic=name)
        return cluster

    async def _insist(
        self, attempt: Callable[[], Awaitable[ResultT]], watch: ServiceWatch, source: Source | None = None
    ) -> ResultT:
        """Repeat `attempt` until the service is there; staying in the group meanwhile if there is a source."""
        while True:
            try:
                result = await attempt()
            except ServiceError as error:
                await self._wait(error, watch, source)
            else:
                watch.succeeded()
                return result

    async def _wait(self, error: ServiceError, watch: ServiceWatch, source: Source | None) -> None:
        """Wait for as long as the watch says; raises _StoppingError when the worker is to end."""
        delay = watch.failed(error)
        if source is not None:
            await self._thread.run(source.keep_alive)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay)
        if self._stop.is_set():
            raise _StoppingError("stopped while waiting for a service") from error

    # ---- one cluster ----------------------------------------------------------------------------------------

    async def _serve(self, cluster: Cluster) -> None:
        """Consume from a cluster until told to stop, or until it is gone and another has its place."""
        self._cluster = cluster
        self._thread = SerialThread("consumer")
        self._gone = asyncio.Event()
        self._source = await self._thread.run(Source, self._config, cluster, self._hooks(), self._link.partitions())
        ended = asyncio.create_task(self._stop.wait())
        tasks = [asyncio.create_task(self._consume()), asyncio.create_task(self._keep_house())]
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
            elif isinstance(result, Exception) and not isinstance(result, _StoppingError):
                raise result

    async def _leave(self) -> None:
        """Write the archive's rest, leave the group, forget everything; whatever does not work now is read again."""
        with contextlib.suppress(TimeoutError, ForebayError):
            async with asyncio.timeout(STOP_ARCHIVE_S if self._stop.is_set() else 30.0), self._storing:
                await self._flush_archive()
        with contextlib.suppress(TimeoutError, ForebayError):
            async with asyncio.timeout(STOP_SOURCE_S if self._stop.is_set() else 10.0):
                await self._thread.run(self._source.close)
        self._thread.stop()
        self._forget(list(self._states))

    def _hooks(self) -> Hooks:
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

    async def _adopt(
        self, partitions: Sequence[Partition], generations: Mapping[Partition, int]
    ) -> dict[Partition, int | None]:
        """Take partitions over: fence the former owner, rebuild the state, and tell where to read from."""
        starts: dict[Partition, int | None] = {}
        for partition in partitions:

            async def take(partition: Partition = partition) -> int | None:
                async with self._storing:
                    return await self._adopt_one(partition, generations[partition])

            starts[partition] = await self._insist(take, self._store_watch)
        if partitions:
            log.info("partitions.assigned", partitions={str(one): starts[one] for one in partitions})
        return starts

    async def _adopt_one(self, partition: Partition, generation: int) -> int | None:
        position = await self._sink.adopt(partition, self._cluster.cluster_id)
        archived = await self._archive.adopt(partition, self._cluster.cluster_id) if self._archive else position
        state = PartitionState(self._operator, self._watermarks, generation, self._clock.now_us())
        if position.watermark_us is not None and position.watermark_us > NEVER_US:
            from_us = self._operator.rebuild_from_us(position.watermark_us)
            stored = await self._sink.stored_readings(partition, from_us)
            await asyncio.to_thread(state.rebuild, stored, position.watermark_us)
        self._states[partition] = state
        self._readopt_at.pop(partition, None)
        if position.next_offset is None or archived.next_offset is None:
            return None
        return min(position.next_offset, archived.next_offset)

    async def _release(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Give partitions up in good order; on failure the next owner simply reads more again."""
        offsets: dict[Partition, int] = {}
        with contextlib.suppress(TimeoutError, ForebayError):
            async with asyncio.timeout(0.5 if self._stop.is_set() else 10.0), self._storing:
                await self._flush_archive(tell=False)
                offsets = self._untold()
        async with self._storing:
            self._forget(partitions)
        log.info("partitions.revoked", partitions=[str(one) for one in partitions])
        return offsets

    async def _lose(self, partitions: Sequence[Partition]) -> None:
        log.warning("partitions.lost", partitions=[str(one) for one in partitions])
        async with self._storing:
            self._forget(partitions)

    def _forget(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._states.pop(partition, None)
            self._told.pop(partition, None)
            self._readopt_at.pop(partition, None)
            for gauge in (self.metrics.lag, self.metrics.watermark_age):
                with contextlib.suppress(KeyError):
                    gauge.remove(partition.topic, str(partition.number))
        self._sink.forget(partitions)
        if self._archive:
            self._archive.forget(partitions)

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
                if now - silence_at >= HOUSEKEEPING_S:
                    silence_at = now
                    await self._store_silence()
                    await self._readopt(now)
                if self._archive is not None and self._archive.due(now):
                    await self._insist(self._write_archive, self._store_watch, self._source)
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
                await self._insist(lambda: self._registry.prepare(items), self._store_watch)
        except RefusedError:
            return _Poll(items, None, ())
        chunk, dead = await asyncio.to_thread(to_chunk, items, self._registry.lookup)
        return _Poll(items, chunk, dead)

    async def _store_poll(self, poll: _Poll) -> None:
        """Steps 3 to 8 for a poll, however often it takes."""
        flush: Flush | None = None
        while True:
            mine = [item for item in poll.items if self._is_mine(item)]  # 3
            if not mine:
                return
            if len(mine) < len(poll.items):
                poll, flush = await self._decode(mine), None
            if poll.chunk is None:
                await self._store_halves(poll.items, "a birth was refused")
                return
            flush = flush or Flush(self._cluster.cluster_id, self._ends(poll.items), poll.chunk, poll.dead)
            try:
                await self._flush(flush, poll.items)
            except FencedPartitionsError as error:
                self._fenced(error)
            except RefusedError as error:
                await self._store_halves(poll.items, str(error))
                return
            except ServiceError as error:
                await self._wait(error, self._store_watch, self._source)
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
        began = self._clock.monotonic()
        now_us = self._clock.now_us()
        async with self._storing:

            def plan(chunk: Chunk) -> Plan:  # 5
                parts = chunk.of_partitions() if chunk.entries else {}
                self._steps = {
                    partition: self._states[partition].after_chunk(part, now_us)
                    for partition, part in parts.items()
                    if part.readings
                }
                return _plan_of(self._steps)

            outcome = await self._sink.flush(flush, plan, now_us)  # 4
            for partition, step in self._steps.items():
                self._states[partition].apply(step, now_us)  # 6
            if self._archive is not None:
                self._archive.add(flush.chunk.only(outcome.archivable), flush.ends, self._clock.monotonic())  # 7
            self._tell_group()  # 8
        self._measure(flush, outcome, items, began)

    async def _store_silence(self) -> None:
        """Emit the windows of partitions that have been silent for long enough."""
        now_us = self._clock.now_us()
        steps: dict[Partition, PartitionStep] = {}
        async with self._storing:
            for partition, state in self._states.items():
                if (step := state.after_silence(now_us)) is not None:
                    steps[partition] = step
            ends = {partition: self._next_offset(partition) for partition in steps}
        if not steps:
            return
        flush, made = Flush(self._cluster.cluster_id, ends), _plan_of(steps)

        async def attempt() -> None:
            async with self._storing:
                if any(partition not in self._states for partition in steps):
                    return  # gone meanwhile; the next second looks again
                await self._sink.flush(flush, lambda _: made, now_us)
                for partition, step in steps.items():
                    self._states[partition].apply(step, None)

        try:
            await self._insist(attempt, self._store_watch, self._source)
        except FencedPartitionsError as error:
            self._fenced(error)

    async def _write_archive(self) -> None:
        try:
            async with self._storing:
                await self._flush_archive()
        except FencedPartitionsError as error:
            self._fenced(error)

    async def _flush_archive(self, *, tell: bool = True) -> None:
        if self._archive is not None:
            before = self._archive.files_total
            await self._archive.flush()
            self.metrics.archive_files.inc(self._archive.files_total - before)
            if tell:
                self._tell_group()

    def _tell_group(self) -> None:
        """Commit to Kafka the least that all sinks have of each partition.

        Through the consumer's thread and without waiting: a call from here would block while that thread is in a hook,
        and the hook may be waiting for us.
        """
        if offsets := self._untold():
            self._thread.post(self._source.commit, offsets)

    def _untold(self) -> dict[Partition, int]:
        offsets = {}
        for partition in self._states:
            position = self._sink.position(partition)
            archived = self._archive.position(partition) if self._archive else position
            if position is None or archived is None or position.next_offset is None or archived.next_offset is None:
                continue
            offset = min(position.next_offset, archived.next_offset)
            if self._told.get(partition) != offset:
                offsets[partition] = offset
        self._told.update(offsets)
        return offsets

    def _fenced(self, error: FencedPartitionsError) -> None:
        log.warning("partitions.fenced", why=str(error))
        self._forget(list(error.partitions))
        for partition in error.partitions:
            self._readopt_at[partition] = self._clock.monotonic() + READOPT_S

    async def _readopt(self, now: float) -> None:
        """Take a partition up again that was fenced although the group still says it is ours."""
        due = [partition for partition, at in self._readopt_at.items() if at <= now]
        if not due:
            return
        assigned = set(await self._thread.run(self._source.assigned))
        for partition in due:
            del self._readopt_at[partition]
            if partition in assigned and partition not in self._states:
                starts = await self._adopt([partition], {partition: -1})
                generation = await self._thread.run(self._source.read_from, partition, starts[partition])
                if partition in self._states:
                    self._states[partition].generation = generation

    def _is_mine(self, item: Item) -> bool:
        state = self._states.get(item.message.partition)
        return state is not None and state.generation == item.message.generation

    def _next_offset(self, partition: Partition) -> int | None:
        position = self._sink.position(partition)
        return None if position is None else position.next_offset

    @staticmethod
    def _ends(items: Sequence[Item]) -> dict[Partition, int | None]:
        return {item.message.partition: item.message.offset + 1 for item in items}  # in order: the last one counts

    # ---- beside the loop ------------------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        """Every second: watch the broker, publish dead letters, show lag; now and then: the store's upkeep."""
        upkeep_at = self._clock.monotonic() + UPKEEP_S
        publish_at = self._clock.monotonic()
        while not self._gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), HOUSEKEEPING_S)
            if not await self._watch_broker():
                log.warning("broker.replaced", why="the embedded broker was started anew")
                return
            now = self._clock.monotonic()
            try:
                if self._letters.is_set() or now >= publish_at:
                    self._letters.clear()
                    publish_at = now + 30.0
                    await self._publish_letters()
                if now >= upkeep_at:
                    upkeep_at = now + UPKEEP_S
                    async with self._store.connection() as connection:
                        await upkeep.settle(
                            connection, self._kind or "plain", self._config.retention, self._clock.now_us()
                        )
            except (ServiceError, RefusedError) as error:
                log.warning("housekeeping.failed", error=str(error))
            await self._show()

    async def _watch_broker(self) -> bool:
        """Tell whether the cluster is still the one there is."""
        try:
            if not await asyncio.to_thread(self._link.is_current, self._cluster):
                return False
        except ServiceError as error:
            self._broker_watch.failed(error)
            return True
        if self._source.broker_error is not None:
            self._broker_watch.failed(self._source.broker_error)
            await self._thread.run(self._source.probe)
        if self._source.broker_error is None:
            self._broker_watch.succeeded()
        return True

    async def _publish_letters(self) -> None:
        async with self._store.connection() as connection:
            while await dead_letters.publish(connection, lambda letters: self._link.produce(self._cluster, letters)):
                pass

    async def _show(self) -> None:
        ends = await self._thread.run(self._source.ends)
        for partition, state in self._states.items():
            labels = (partition.topic, str(partition.number))
            if (end := ends.get(partition)) is not None:
                self.metrics.lag.labels(*labels).set(max(0, end - (self._next_offset(partition) or 0)))
            if state.watermark_us > NEVER_US:
                age_us = self._clock.now_us() - state.watermark_us
                self.metrics.watermark_age.labels(*labels).set(age_us / US_PER_SECOND)

    def _measure(self, flush: Flush, outcome: Outcome, items: Sequence[Item], began: float) -> None:
        metrics, now_us = self.metrics, self._clock.now_us()
        self._last_commit_us = now_us
        metrics.flush_seconds.observe(self._clock.monotonic() - began)
        for item in items:
            metrics.messages.labels(item.message.partition.topic).inc()
            if item.message.appended_us:
                metrics.latency_seconds.observe(max(0, now_us - item.message.appended_us) / US_PER_SECOND)
        for entry, accepted in zip(flush.chunk.entries, outcome.accepted.tolist(), strict=True):
            if not accepted:
                metrics.repeats.inc()
            elif entry.kind == "birth":
                metrics.births.inc()
            else:
                metrics.batches.inc()
                metrics.readings.inc(entry.readings)
        for letter in flush.dead:
            metrics.dead_letters.labels(letter.reason.value).inc()
            self._letters.set()
        for step in self._steps.values():
            metrics.late_readings.inc(step.late_readings)
            for length_us, partials in step.windows.items():
                metrics.windows.labels(str(length_us // US_PER_SECOND)).inc(len(partials))

    def _health(self) -> Health:
        parts: dict[str, Any] = {
            "store_kind": self._kind,
            "partitions": {
                str(partition): {"watermark": iso8601(state.watermark_us) if state.watermark_us > NEVER_US else None}
                for partition, state in sorted(self._states.items())
            },
            "last_commit": iso8601(self._last_commit_us) if self._last_commit_us else None,
        }
        return health(self._store_watch, self._broker_watch, parts)


def _plan_of(steps: Mapping[Partition, PartitionStep]) -> Plan:
    windows = [
        (length_us, partials)
        for length_us in sorted({length for step in steps.values() for length in step.windows})
        for partials in [Partials.concat([step.windows[length_us] for step in steps.values()])]
    ]
    return Plan(
        windows,
        {partition: step.watermark_us for partition, step in steps.items()},
        [(partition, step.new_series) for partition, step in steps.items() if step.new_series.size],
    )
