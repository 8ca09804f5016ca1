"""A connection to a broker, and the moment at which a batch on it counts as safe.

KafkaLink     safe = the delivery report of an idempotent producer with acks=all
EmbeddedLink  safe = the ingest group has committed past it: the embedded broker is only memory, so a delivery report
              proves nothing that outlives it. When it dies, a new one is started and what was not safe is sent again.
Both fail with ServiceError; the uplink then makes a new link.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from common.embedded.broker import EmbeddedBroker
from common.errors import ServiceError

COMMITTED_EVERY_S = 0.25
COMMITTED_TIMEOUT_S = 1.0
REFRESH_EVERY_S = 1.0
REFRESH_TIMEOUT_S = 3.0
NO_ANSWER_YET = "no answer from the broker yet"
SETTINGS: dict[str, str | int | float | bool] = {
    "enable.idempotence": True,
    "acks": "all",
    "message.timeout.ms": 0,  # never give up: the buffer decides what is dropped, and counts it
    "message.max.bytes": 16_000_000,
    "partitioner": "murmur2_random",  # the Java client's: the same machine, the same partition, whoever sends
    "reconnect.backoff.max.ms": 2000,
    "socket.connection.setup.timeout.ms": 5000,
    "topic.metadata.propagation.max.ms": 5000,
    "log_level": 2,
}


class Link(Protocol):
    """What the uplink needs of a broker; call `poll` often."""

    up: bool
    last_error: str | None

    def send(self, topic: str, key: str, payload: bytes, position: int) -> None:
        """Hand over a message without waiting."""
        ...

    def poll(self, timeout_s: float) -> list[int]:
        """Wait for news up to `timeout_s`; return the positions that have become safe."""
        ...

    def close(self) -> None:
        """Drop what is not safe yet (the buffer still has it) and let go."""
        ...


class KafkaLink:
    """An idempotent producer."""

    def __init__(self, settings: dict[str, str], linger_ms: int) -> None:
        """`settings` reach the cluster; nothing is sent yet."""
        self.up = False
        self.last_error: str | None = NO_ANSWER_YET
        self._safe: list[int] = []
        self._failure: str | None = None
        try:
            self._producer = Producer({**SETTINGS, **settings, "linger.ms": linger_ms, "error_cb": self._on_error})
        except KafkaException as error:
            raise ServiceError(f"broker: {error}") from error

    def send(self, topic: str, key: str, payload: bytes, position: int) -> None:
        """Hand over a message without waiting."""
        try:
            self._producer.produce(topic, payload, key.encode(), on_delivery=self._report(topic, position))
        except (BufferError, KafkaException) as error:
            raise ServiceError(f"broker: {error}") from error

    def poll(self, timeout_s: float) -> list[int]:
        """Return the positions whose delivery the broker has reported."""
        self._producer.poll(timeout_s)
        if self._failure is not None:
            raise ServiceError(f"broker: {self._failure}")
        safe, self._safe = self._safe, []
        return safe

    def close(self) -> None:
        """Drop what is in flight: without its report it is not safe, and will be sent again."""
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._producer.poll(0)

    def _delivered(self, _topic: str, position: int, _message: Message) -> None:
        self._safe.append(position)

    def _report(self, topic: str, position: int) -> Callable[[KafkaError | None, Message], None]:
        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self.up, self.last_error = True, None
                self._delivered(topic, position, message)
            elif error.code() not in {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}:  # noqa: SLF001 - librdkafka's local codes
                self._failure = f"batch at {position} of {topic} was not taken: {error.str()}"

        return on_delivery

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._failure = error.str()
        if error.code() in {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE}:  # noqa: SLF001
            self.up, self.last_error = False, error.str()


class EmbeddedLink(KafkaLink):
    """A producer to the embedded broker that waits for the ingest group's commits."""

    def __init__(self, broker: EmbeddedBroker, consumer_group: str, linger_ms: int) -> None:
        """Starts the broker anew if it has died; raises ServiceError when that fails."""
        servers = broker.refresh(REFRESH_TIMEOUT_S)
        self._broker, self._incarnation = broker, broker.incarnation
        super().__init__({"bootstrap.servers": servers}, linger_ms)
        self._awaiting: dict[tuple[str, int], deque[tuple[int, int]]] = {}
        try:
            self._watcher = Consumer({"bootstrap.servers": servers, "group.id": consumer_group, "log_level": 2})
        except KafkaException as error:
            raise ServiceError(f"broker: {error}") from error
        self._next_committed = self._next_refresh = 0.0

    def poll(self, timeout_s: float) -> list[int]:
        """Return the positions that the ingest group has committed past."""
        super().poll(timeout_s)
        now = time.monotonic()
        if now >= self._next_refresh:
            self._next_refresh = now + REFRESH_EVERY_S
            self._broker.refresh(REFRESH_TIMEOUT_S)
            if self._broker.incarnation != self._incarnation:
                raise ServiceError("broker: the embedded broker was restarted")
        if self._awaiting and now >= self._next_committed:
            self._next_committed = now + COMMITTED_EVERY_S
            return self._committed()
        return []

    def close(self) -> None:
        """Drop what is in flight and the view of the group."""
        super().close()
        self._watcher.close()

    def _delivered(self, topic: str, position: int, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        if partition is None or offset is None:
            raise AssertionError("a delivered message has a place")
        self._awaiting.setdefault((topic, partition), deque()).append((offset, position))

    def _committed(self) -> list[int]:
        wanted = [TopicPartition(topic, partition) for topic, partition in self._awaiting]
        try:
            committed = self._watcher.committed(wanted, timeout=COMMITTED_TIMEOUT_S)
        except KafkaException as error:
            self.last_error = str(error)
            return []
        safe: list[int] = []
        for place in committed:
            waiting = self._awaiting[place.topic, place.partition]
            while waiting and place.error is None and waiting[0][0] < place.offset:
                safe.append(waiting.popleft()[1])
            if not waiting:
                del self._awaiting[place.topic, place.partition]
        return safe
