"""Housekeeping: what goes on beside the loop while a cluster is consumed, once a second or now and then.

In: the parts it looks after. Out: dead letters published, metrics shown, the store kept in shape. Fails with nothing
that a service lacks: it is tried again at the next turn. Ends when it is told to, or by itself when another cluster has
the place of the one that is consumed.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Final

import structlog

from cloud_ingest import dead_letters
from cloud_ingest.broker import BrokerLink, Cluster
from cloud_ingest.config import RetentionSettings
from cloud_ingest.observe import Metrics
from cloud_ingest.operators.watermark import NEVER_US
from cloud_ingest.ownership import Ownership
from cloud_ingest.serial_thread import SerialThread
from cloud_ingest.service_watch import ServiceWatch
from cloud_ingest.source import Source
from cloud_ingest.store import upkeep
from cloud_ingest.store.connection import RefusedError, Store
from cloud_ingest.store.migrate import Kind
from common.clock import US_PER_SECOND, Clock
from common.errors import ServiceError

log = structlog.get_logger()

TURN_S: Final = 1.0
PUBLISH_S: Final = 30.0
UPKEEP_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """The work beside the loop, for one cluster. `run` may be called once."""

    store: Store
    kind: Kind
    retention: RetentionSettings
    link: BrokerLink
    cluster: Cluster
    broker_watch: ServiceWatch
    source: Source
    thread: SerialThread
    ownership: Ownership
    metrics: Metrics
    clock: Clock
    letters: asyncio.Event = field(default_factory=asyncio.Event)
    """To be set when there are dead letters to publish; they would be found later without."""

    async def run(self, gone: asyncio.Event) -> None:
        """Every second: watch the broker, publish dead letters, show lag; now and then: the store's upkeep."""
        upkeep_at = self.clock.monotonic() + UPKEEP_S
        publish_at = self.clock.monotonic()
        while not gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), TURN_S)
            if not await self._watch_broker():
                log.warning("broker.replaced", why="the embedded broker was started anew")
                return
            now = self.clock.monotonic()
            try:
                if self.letters.is_set() or now >= publish_at:
                    self.letters.clear()
                    publish_at = now + PUBLISH_S
                    await self._publish_letters()
                if now >= upkeep_at:
                    upkeep_at = now + UPKEEP_S
                    async with self.store.connection() as connection:
                        await upkeep.settle(connection, self.kind, self.retention, self.clock.now_us())
            except (ServiceError, RefusedError) as error:
                log.warning("housekeeping.failed", error=str(error))
            await self._show()

    async def _watch_broker(self) -> bool:
        """Tell whether the cluster is still the one there is."""
        try:
            if not await asyncio.to_thread(self.link.is_current, self.cluster):
                return False
        except ServiceError as error:
            self.broker_watch.failed(error)
            return True
        if self.source.broker_error is not None:
            self.broker_watch.failed(self.source.broker_error)
            await self.thread.run(self.source.probe)
        if self.source.broker_error is None:
            self.broker_watch.succeeded()
        return True

    async def _publish_letters(self) -> None:
        async with self.store.connection() as connection:
            while await dead_letters.publish(connection, lambda letters: self.link.produce(self.cluster, letters)):
                pass

    async def _show(self) -> None:
        ends = await self.thread.run(self.source.ends)
        for partition, state in self.ownership.states.items():
            labels = (partition.topic, str(partition.number))
            if (end := ends.get(partition)) is not None:
                lag = max(0, end - (self.ownership.next_offset(partition) or 0))
                self.metrics.lag.labels(*labels).set(lag)
            if state.watermark_us > NEVER_US:
                age_us = self.clock.now_us() - state.watermark_us
                self.metrics.watermark_age.labels(*labels).set(age_us / US_PER_SECOND)
