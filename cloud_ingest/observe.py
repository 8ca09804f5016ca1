"""What the worker shows of itself: metrics, health, and for each service whether it is there.

In: events of the worker. Out: a Prometheus registry and a Health. Nothing fails.
"""

import random
from collections.abc import Mapping
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.clock import Clock, iso8601
from common.metrics import Health

log = structlog.get_logger()

_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_BACKOFF_S_MIN: Final = 0.2
_BACKOFF_S_MAX: Final = 5.0


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


class ServiceWatch:
    """Whether a service is there: says so when that changes, once, and paces the attempts to reach it."""

    def __init__(self, name: str, gauge: Gauge, clock: Clock) -> None:
        self._name = name
        self._gauge = gauge
        self._clock = clock
        self._attempts = 0
        self.up: bool | None = None
        self.since_us = clock.now_us()
        self.error = ""
        gauge.set(0)

    def failed(self, error: object) -> float:
        """Take note of a failure; returns how long to wait before the next attempt."""
        self.error = str(error)
        if self.up is not False:
            self.up, self.since_us = False, self._clock.now_us()
            self._gauge.set(0)
            log.error("service.unreachable", service=self._name, error=self.error, hint="trying again until it answers")
        self._attempts += 1
        delay = min(_BACKOFF_S_MAX, _BACKOFF_S_MIN * 2 ** min(self._attempts - 1, 10))
        return float(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads workers, guards nothing

    def succeeded(self) -> None:
        """Take note that the service answers."""
        self._attempts = 0
        if self.up is not True:
            away_s = round((self._clock.now_us() - self.since_us) / 1e6, 1) if self.up is False else None
            self.up, self.since_us, self.error = True, self._clock.now_us(), ""
            self._gauge.set(1)
            log.info("service.reachable", service=self._name, **({} if away_s is None else {"away_s": away_s}))

    def state(self) -> dict[str, Any]:
        """Return what /health shows."""
        shown: dict[str, Any] = {"up": bool(self.up), "since": iso8601(self.since_us)}
        return shown | ({"error": self.error} if self.error else {})


def health(store: ServiceWatch, broker: ServiceWatch, parts: Mapping[str, Any]) -> Health:
    """Put the picture together: well while both services answer."""
    return Health(bool(store.up and broker.up), {"store": store.state(), "broker": broker.state(), **parts})
