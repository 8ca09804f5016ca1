"""The forwarding thread: claims batches in order, seals and sends them, acknowledges what has become safe.

What is in flight is bounded in batches and bytes, so an outage fills the buffer (on disk) and not memory. After a
broken link everything claimed but not acknowledged is claimed again, under the same seq, marked replayed.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from common.clock import Clock
from common.errors import ServiceError
from common.wire import Head, seal
from edge_agent.buffer.buffer import Buffer
from edge_agent.buffer.segment import StoredBatch
from edge_agent.metrics import EdgeMetrics
from edge_agent.uplink.link import NO_ANSWER_YET, Link

log = structlog.get_logger()

CLAIM_MAX = 200
POLL_S = 0.02
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 10.0
STOP_WHEN_DOWN_S = 1.0
"""How long `stop` waits for a broker that has not answered lately."""
JOIN_EXTRA_S = 0.7


@dataclass(frozen=True, slots=True)
class InFlight:
    """How much may be sent and not yet safe."""

    batches_max: int
    bytes_max: int


class Uplink:
    """Runs in a thread of its own between `start` and `stop`."""

    def __init__(
        self,
        buffer: Buffer,
        connect: Callable[[], Link],
        agent_id: str,
        limits: InFlight,
        metrics: EdgeMetrics,
        clock: Clock,
    ) -> None:
        """`connect` makes a link and may fail with ServiceError; it is called again after every failure."""
        self._buffer, self._connect, self._agent_id = buffer, connect, agent_id
        self._limits, self._metrics, self._clock = limits, metrics, clock
        self._outstanding: dict[int, int] = {}
        self._outstanding_bytes = 0
        self._stop_asked_at: float | None = None
        self._drain_s = 0.0
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self._told_down = self._got_through = False
        self.up = False
        self.last_error: str | None = NO_ANSWER_YET

    def start(self) -> None:
        """Begin forwarding."""
        self._thread.start()

    def wake(self) -> None:
        """Say that something was accepted."""
        self._wake.set()

    def stop(self, drain_s: float) -> bool:
        """Send what is left for at most `drain_s`, then end; what is not safe by then stays in the buffer.

        Returns whether the thread has ended; one that hangs in a library is left behind, and can do no harm.
        """
        self._drain_s = drain_s
        self._stop_asked_at = time.monotonic()
        self._wake.set()
        self._thread.join(drain_s + JOIN_EXTRA_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while self._stop_asked_at is None:
            self._got_through = False
            try:
                link = self._connect()
                try:
                    self._serve(link)
                finally:
                    link.close()
            except ServiceError as error:
                self._note(up=False, error=str(error))
            except Exception as error:  # the thread's boundary: whatever it was, the buffer has every batch
                log.exception("uplink.crashed")
                self._metrics.uplink_crashes.inc()
                self._note(up=False, error=f"uplink crashed: {error!r}")
            finally:
                self._outstanding.clear()
                self._outstanding_bytes = 0
                self._buffer.release()
            # A link that got something through was good for a while; one that did not is not retried in a hurry.
            failures = 0 if self._got_through else failures + 1
            self._wait(min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(failures, 10)))

    def _serve(self, link: Link) -> None:
        """Forward over one link until it breaks or all is done."""
        while True:
            batches = self._claim()
            for batch in batches:
                self._send(link, batch)
            self._acknowledge(link.poll(POLL_S if self._outstanding and not batches else 0.0))
            self._note(up=link.up, error=link.last_error)
            if self._is_over(idle=not (batches or self._outstanding)):
                return
            if not batches and not self._outstanding:
                self._wake.wait(0.5)
                self._wake.clear()

    def _claim(self) -> list[StoredBatch]:
        batches = min(CLAIM_MAX, self._limits.batches_max - len(self._outstanding))
        size = self._limits.bytes_max - self._outstanding_bytes
        return self._buffer.claim(batches, size) if batches > 0 and size > 0 else []

    def _send(self, link: Link, batch: StoredBatch) -> None:
        head = Head(
            agent_id=self._agent_id,
            machine_id=batch.machine_id,
            route=batch.route,
            epoch=batch.epoch,
            seq=batch.seq,
            sent_at_us=self._clock.now_us(),
            replayed=self._buffer.is_replay(batch),
        )
        payload = seal(batch.schema, head, batch.body)
        self._outstanding[batch.position] = len(payload)
        self._outstanding_bytes += len(payload)
        link.send(batch.route.topic, batch.machine_id, payload, batch.position)
        self._metrics.batches_sent.inc()
        self._metrics.wire_bytes.inc(len(payload))

    def _acknowledge(self, positions: list[int]) -> None:
        if positions:
            self._buffer.acknowledge(positions)
            self._outstanding_bytes -= sum(self._outstanding.pop(position, 0) for position in positions)
            self._metrics.batches_acknowledged.inc(len(positions))
            self._got_through = True

    def _is_over(self, *, idle: bool) -> bool:
        """Tell whether to end: a stop was asked for, and nothing is left, or nobody answers, or time is up."""
        if self._stop_asked_at is None:
            return False
        waited_s = time.monotonic() - self._stop_asked_at
        return idle or waited_s >= (self._drain_s if self.up else min(self._drain_s, STOP_WHEN_DOWN_S))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stop_asked_at is None and (left := until - time.monotonic()) > 0:
            self._wake.wait(min(0.2, left))
            self._wake.clear()

    def _note(self, *, up: bool, error: str | None) -> None:
        """Show how the link is doing; say it once when it goes down, however the words of the errors vary."""
        if up and not self.up:
            log.info("uplink.connected")
            self._told_down = False
        elif error and error != NO_ANSWER_YET and not up and not self._told_down:
            log.warning("uplink.down", why=error, then="batches wait in the buffer")
            self._told_down = True
        self.up, self.last_error = up, error
        self._metrics.uplink_up.set(up)
