"""The agent's wiring: the one file that knows every stage, in the order in which readings flow.

    adapters -> poller -> filters -> batching -> buffer -> uplink

`Agent.run` returns when `stop` is set: pollers end first, what they delivered is flushed into the buffer, the uplink
drains for a moment, the buffer closes. What is in the buffer is safe at every point.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog

from common.clock import US_PER_SECOND, Clock, SystemClock, iso8601
from common.config import EmbeddedBroker as EmbeddedBrokerConfig
from common.embedded.broker import EmbeddedBroker, ensure_embedded_broker
from common.errors import BufferFullError, ServiceError
from common.metrics import Health, MetricsServer
from common.model import ReadingFrame
from edge_agent.adapters.contract import Adapter, adapter_classes
from edge_agent.batching import Batcher, DraftBatch
from edge_agent.buffer.buffer import Buffer, BufferLimits
from edge_agent.config import AgentConfig
from edge_agent.filters.chain import TagFilters
from edge_agent.metrics import EdgeMetrics
from edge_agent.poller import DeviceState, Pace, poll_device
from edge_agent.series import build_series_table
from edge_agent.uplink.link import EmbeddedLink, KafkaLink, Link
from edge_agent.uplink.uplink import InFlight, Uplink

log = structlog.get_logger()

ResultT = TypeVar("ResultT")

BIRTH_INTERVAL_S = 600.0
LAST_POLL_S = 1.0
"""How long polls in progress may take to end once a stop is asked for."""
CANCEL_AGAIN_S = 0.5
DRAIN_S = 2.0
BROKER_START_S = 10.0
PENDING_READINGS_MAX = 2_000_000
"""Readings held in memory while the disk refuses them; beyond that the newest are dropped and counted."""


def make_adapters(config: AgentConfig) -> list[Adapter]:
    """Make the adapter of each device, in config order; nothing connects yet."""
    known = adapter_classes()
    return [known[device.adapter](device) for device in config.devices]


class Agent:
    """Everything between the devices of one config and the broker."""

    def __init__(self, config: AgentConfig, clock: Clock | None = None) -> None:
        """Build the stages and open the buffer; raises InUseError or ServiceError when that is not possible."""
        self._config = config
        self._clock = clock or SystemClock()
        self._metrics = EdgeMetrics()
        self._table = build_series_table(config.devices)
        self._adapters = make_adapters(config)
        self._states = [DeviceState(device.name, len(device.tags)) for device in config.devices]
        self._filters = TagFilters(self._table)
        batching = config.batching
        self._batcher = Batcher(
            self._table, config.agent.site, config.gateway_id, batching.readings_per_block_max, batching.codec
        )
        limits = BufferLimits(
            config.buffer.size_mb_max,
            config.buffer.history_mb_max,
            config.buffer.segment_mb,
            config.buffer.when_full == "drop_oldest",
        )
        self._buffer = Buffer(config.agent.data_dir / "buffer", limits, self._clock)
        self._disk = ThreadPoolExecutor(1, "buffer")
        self._broker: EmbeddedBroker | None = None
        in_flight = InFlight(config.uplink.in_flight_batches_max, config.in_flight_bytes_max)
        self._uplink = Uplink(self._buffer, self._connect, config.agent.agent_id, in_flight, self._metrics, self._clock)
        self._pending: list[DraftBatch] = []
        self._births_due_s = 0.0
        self._births_epoch: int | None = None
        self._dropped_noted = 0
        self._dropping: str | None = None
        self._storage_error: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; everything accepted is safe, everything delivered is accepted before it returns.

        Raises ServiceError when the HTTP address is taken. Whatever happens, nothing stays open.
        """
        with contextlib.ExitStack() as closing:
            closing.callback(self._buffer.close)
            http = self._config.http
            server = MetricsServer(http.host, http.port, self._metrics.registry, self.health)
            closing.callback(server.close)
            closing.callback(self._disk.shutdown)
            log.info("agent.started", http=server.address, series=len(self._table), **self._plan_words())
            self._uplink.start()
            closing.callback(self._stop_uplink)
            try:
                await self._run_devices(stop)
            finally:
                self._pass(self._filters.flush())
                await self._flush()

    async def _run_devices(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            pollers = [tasks.create_task(self._poll(index, stop)) for index in range(len(self._adapters))]
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._config.batching.flush_interval_s):
                        await stop.wait()
                await self._flush()
            await asyncio.wait(pollers, timeout=LAST_POLL_S)
            while not all(poller.done() for poller in pollers):
                for poller in pollers:
                    poller.cancel()
                # Again, should it have been swallowed: Python 3.11's wait_for does when its answer comes just then.
                await asyncio.wait(pollers, timeout=CANCEL_AGAIN_S)

    # -- devices to batches ----------------------------------------------------------------------------------------

    async def _poll(self, index: int, stop: asyncio.Event) -> None:
        """Keep one device's task alive until `stop`, whatever its adapter does."""
        device, state = self._config.devices[index], self._states[index]
        pace = Pace(device.poll_interval_s, device.poll_interval_s * index / len(self._adapters))
        rows = self._table.rows_of_device[index]
        while not stop.is_set():
            try:
                await poll_device(self._adapters[index], rows, pace, state, self._deliver, self._clock, stop)
            except Exception as error:
                log.exception("adapter.crashed", device=device.name)
                self._metrics.adapter_crashes.labels(device.name).inc()
                state.connected, state.last_error = False, f"adapter crashed: {error!r}"
                await asyncio.sleep(max(1.0, device.poll_interval_s))

    def _deliver(self, frame: ReadingFrame) -> None:
        self._metrics.readings_polled.inc(len(frame))
        self._pass(self._filters.apply(frame))

    def _pass(self, passed: ReadingFrame) -> None:
        self._metrics.readings_passed.inc(len(passed))
        self._batcher.add(passed)

    # -- batches to the buffer -------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        """Make safe what has gathered; the disk is waited for in a thread of its own."""
        await self._in_thread(self._accept, self._batcher.take())
        self._note_devices()
        self._note_buffer()

    async def _in_thread(self, function: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Run a blocking call on the disk's thread: asyncio's shared ones may all be waiting for something else."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    def _accept(self, frame: ReadingFrame) -> None:
        """Compress `frame` and make it safe; on a failing disk keep the drafts in memory for the next try."""
        started = time.perf_counter()
        self._pending += self._batcher.encode(frame)
        try:
            births = self._births_if_due()
            accepted = self._buffer.accept(births + self._pending)
        except BufferFullError as error:
            self._drop(self._pending, "buffer_full", str(error))
            self._pending = []
        except ServiceError as error:
            self._hold(str(error))
        else:
            if self._storage_error is not None:
                log.info("buffer.recovered", readings=sum(batch.readings for batch in accepted))
            self._pending, self._storage_error, self._dropping = [], None, None
            if births:
                self._births_due_s = self._clock.monotonic() + BIRTH_INTERVAL_S
                self._births_epoch = accepted[0].epoch
            if accepted:
                self._metrics.batches_accepted.inc(len(accepted))
                self._metrics.readings_accepted.inc(sum(batch.readings for batch in accepted))
                self._metrics.accept_seconds.observe(time.perf_counter() - started)
                self._uplink.wake()

    def _births_if_due(self) -> list[DraftBatch]:
        """Return the births every BIRTH_INTERVAL_S and at the start of an epoch; they go before what needs them."""
        due = self._clock.monotonic() >= self._births_due_s or self._births_epoch != self._buffer.settle_epoch()
        return self._batcher.births() if due else []

    def _hold(self, why: str) -> None:
        """Keep what the disk refused, within reason."""
        if self._storage_error is None:
            log.error("buffer.unavailable", why=why, then="readings are held in memory and tried again")
        self._storage_error = why
        held = 0
        for index, draft in enumerate(self._pending):
            held += draft.readings
            if held > PENDING_READINGS_MAX:
                self._drop(self._pending[index:], "disk_failed", why)
                del self._pending[index:]
                break

    def _drop(self, drafts: list[DraftBatch], reason: str, why: str) -> None:
        lost = sum(draft.readings for draft in drafts)
        self._metrics.readings_dropped.labels(reason).inc(lost)
        self._births_due_s = 0.0
        if self._dropping != reason:
            log.error("readings.dropped", reason=reason, readings=lost, why=why, then="more are counted in metrics")
        self._dropping = reason
        self._storage_error = why

    # -- the broker --------------------------------------------------------------------------------------------------

    def _connect(self) -> Link:
        """Make a link to the configured broker; called by the uplink's thread."""
        broker, linger_ms = self._config.broker, self._config.uplink.linger_ms
        if not isinstance(broker, EmbeddedBrokerConfig):
            settings = {**broker.client_settings(), "compression.type": self._config.uplink.compression}
            return KafkaLink(settings, linger_ms)
        if self._broker is None:
            self._broker = ensure_embedded_broker(self._config.agent.data_dir / "broker", BROKER_START_S)
        return EmbeddedLink(self._broker, broker.consumer_group, linger_ms)

    def _stop_uplink(self) -> None:
        has_ended = self._uplink.stop(DRAIN_S)
        if self._broker is not None and has_ended:  # else it may be in use; the end of the process lets it go
            self._broker.close()
        log.info("agent.stopped", waiting_batches=self._buffer.status().waiting_batches)

    # -- what people see ---------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """Tell how every part is doing; not ok while the disk fails. A dead device or broker is normal, and shown."""
        buffer = dataclasses.asdict(self._buffer.status())
        buffer["oldest"] = iso8601(buffer.pop("oldest_us")) if buffer["oldest_us"] is not None else None
        return Health(
            ok=self._storage_error is None,
            parts={
                "agent_id": self._config.agent.agent_id,
                "uplink": {"up": self._uplink.up, "last_error": self._uplink.last_error},
                "buffer": {**buffer, "last_error": self._storage_error},
                "devices": [_device_words(state) for state in self._states],
            },
        )

    def _plan_words(self) -> dict[str, str]:
        return {
            f"device_{device.name}": str(adapter.plan)
            for device, adapter in zip(self._config.devices[:20], self._adapters, strict=False)
        }

    def _note_devices(self) -> None:
        for state in self._states:
            self._metrics.device_up.labels(state.name).set(state.connected)
            self._metrics.device_bad_points.labels(state.name).set(state.bad_points)
            self._metrics.device_poll_seconds.labels(state.name).set(state.poll_seconds)
            self._metrics.device_overruns.labels(state.name).set(state.overruns)

    def _note_buffer(self) -> None:
        status = self._buffer.status()
        self._metrics.buffer_waiting.set(status.waiting_batches)
        self._metrics.buffer_bytes.set(status.size_bytes)
        age_us = self._clock.now_us() - status.oldest_us if status.oldest_us is not None else 0
        self._metrics.buffer_oldest.set(age_us / US_PER_SECOND)
        if status.dropped_readings > self._dropped_noted:
            self._metrics.readings_dropped.labels("buffer_full").inc(status.dropped_readings - self._dropped_noted)
            self._dropped_noted = status.dropped_readings
            self._births_due_s = 0.0  # the births that were dropped must be said again


def _device_words(state: DeviceState) -> dict[str, Any]:
    return {
        "name": state.name,
        "state": state.words,
        "points": state.points,
        "bad_points": state.bad_points,
        "last_good": iso8601(state.last_good_us) if state.last_good_us is not None else None,
        "last_error": state.last_error,
        "overruns": state.overruns,
    }
