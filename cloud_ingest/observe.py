"""What the worker shows of itself: metrics and health.

In: events of the worker. Out: a Prometheus registry and a Health. Nothing fails.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cloud_ingest.model import Item, Partition
from cloud_ingest.partition_state import PartitionStep
from cloud_ingest.service_watch import ServiceWatch
from cloud_ingest.sinks.postgres import Flush, Outcome
from cloud_ingest.store.migrate import Kind
from common.clock import US_PER_SECOND, iso8601
from common.metrics import Health

_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """The worker's metrics, `forebay_ingest_<noun>_<unit>`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"forebay_ingest_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"forebay_ingest_{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"forebay_ingest_{name}", text, buckets=_SECONDS, registry=self.registry)

        self.messages = counter("messages", "Messages taken from the broker and settled.", "topic")
        self.batches = counter("batches", "Batches stored.")
        self.births = counter("births", "Births stored.")
        self.readings = counter("readings", "Readings stored.")
        self.repeats = counter("repeats", "Batches and births refused because they are stored already.")
        self.dead_letters = counter("dead_letters", "Messages set aside.", "reason")
        self.windows = counter("windows", "Window rows written, revisions included.", "length_seconds")
        self.late_readings = counter("late_readings", "Readings that came after their window was emitted.")
        self.flush_seconds = seconds("flush_seconds", "Time of one flush: a database transaction.")
        self.latency_seconds = seconds("latency_seconds", "From a message's time at the broker to its commit here.")
        self.lag = gauge("lag_messages", "Messages of a partition that are not stored yet.", "topic", "partition")
        self.watermark_age = gauge(
            "watermark_age_seconds", "How far a partition's watermark is behind the clock.", "topic", "partition"
        )
        self.archive_files = counter("archive_files", "Parquet files published.")
        self.store_up = gauge("store_up", "1 if the store answers.")
        self.broker_up = gauge("broker_up", "1 if the broker answers.")
        self.last_commit_us: int | None = None

    def flushed(
        self,
        flush: Flush,
        outcome: Outcome,
        items: Sequence[Item],
        steps: Iterable[PartitionStep],
        now_us: int,
        took_s: float,
    ) -> None:
        """Count a committed flush of `items` and the steps that its readings led to."""
        self.last_commit_us = now_us
        self.flush_seconds.observe(took_s)
        for item in items:
            self.messages.labels(item.message.partition.topic).inc()
            if item.message.appended_us:
                self.latency_seconds.observe(max(0, now_us - item.message.appended_us) / US_PER_SECOND)
        for entry, accepted in zip(flush.chunk.entries, outcome.accepted.tolist(), strict=True):
            if not accepted:
                self.repeats.inc()
            elif entry.kind == "birth":
                self.births.inc()
            else:
                self.batches.inc()
                self.readings.inc(entry.readings)
        for letter in flush.dead:
            self.dead_letters.labels(letter.reason.value).inc()
        for step in steps:
            self.late_readings.inc(step.late_readings)
            for length_us, partials in step.windows.items():
                self.windows.labels(str(length_us // US_PER_SECOND)).inc(len(partials))

    def forget(self, partition: Partition) -> None:
        """Stop showing a partition."""
        for gauge in (self.lag, self.watermark_age):
            with contextlib.suppress(KeyError):
                gauge.remove(partition.topic, str(partition.number))


def health(
    store: ServiceWatch,
    broker: ServiceWatch,
    kind: Kind | None,
    watermarks: Mapping[str, object],
    last_commit_us: int | None,
) -> Health:
    """Put the picture together: well while both services answer."""
    parts = {
        "store": store.state(),
        "broker": broker.state(),
        "store_kind": kind,
        "partitions": watermarks,
        "last_commit": iso8601(last_commit_us) if last_commit_us else None,
    }
    return Health(bool(store.up and broker.up), parts)
