"""The consumer: polls of messages out, partitions coming and going through two hooks, offsets kept by the store.

In: a cluster, hooks. Out: items, their envelopes read. Fails with ServiceError when the consumer must be made anew.
Every method blocks and belongs on one thread (SerialThread), on which the hooks are called too, from within `fetch`,
`keep_alive` and `close`.

Where a partition is read from is what `on_assigned` answers: the store knows what is stored, the group's committed
offsets are for people only (and for the edge, which in embedded mode frees its buffer by them).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from cloud_ingest.broker import TOPICS, Cluster, silent
from cloud_ingest.config import IngestConfig
from cloud_ingest.decode import open_envelope
from cloud_ingest.model import Item, Partition, Received
from common.clock import US_PER_MS
from common.errors import ServiceError
from common.wire import TelemetryBatch

log = structlog.get_logger()

MESSAGES_PER_CALL: Final = 200
MESSAGES_PER_POLL_MAX: Final = 20_000
BYTES_PER_POLL_MAX: Final = 32 * 1024 * 1024
MAX_POLL_INTERVAL_MS: Final = 600_000
_WATERMARKS_TIMEOUT_S: Final = 5.0
_HARMLESS: Final = {
    KafkaError._PARTITION_EOF,  # noqa: SLF001 - the public names of librdkafka's own codes begin so
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._TRANSPORT,  # noqa: SLF001
    KafkaError._RESOLVE,  # noqa: SLF001
    KafkaError._MAX_POLL_EXCEEDED,  # noqa: SLF001
    KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001
}


@dataclass(frozen=True, slots=True)
class Hooks:
    """Called on the consumer's thread. `assigned` returns where to read from, None = from the beginning."""

    assigned: Callable[[Sequence[Partition], Mapping[Partition, int]], Mapping[Partition, int | None]]
    """Gets the partitions and their generations."""
    revoked: Callable[[Sequence[Partition]], Mapping[Partition, int]]
    """Partitions are about to go to somebody else; storing what is held of them is still possible. Returns offsets to
    commit while it is."""
    lost: Callable[[Sequence[Partition]], None]
    """Partitions are somebody else's already."""


class Source:
    """A member of the consumer group; or, given fixed partitions, the one reader of those."""

    def __init__(self, config: IngestConfig, cluster: Cluster, hooks: Hooks, fixed: Sequence[Partition] | None) -> None:
        self._hooks = hooks
        self._fixed = fixed
        self._to_assign = fixed is not None
        self._generations: dict[Partition, int] = {}
        self._paused = False
        self._held: list[Item] = []
        self.broker_error: str | None = None
        self._consumer = Consumer({**_settings(config), **cluster.settings, "error_cb": self._on_error}, logger=silent)
        if fixed is None:
            self._consumer.subscribe(
                list(TOPICS), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )

    def fetch(self, readings_max: int, wait_s: float) -> list[Item]:
        """Wait up to `wait_s` for a first message, then take what is there, up to about `readings_max` readings."""
        if self._to_assign:
            self._on_assign(self._consumer, [TopicPartition(*one) for one in self._fixed or ()])
            self._to_assign = False
        if self._paused:
            self._consumer.resume(self._consumer.assignment())
            self._paused = False
        items, self._held = self._held, []
        if not items:
            items = self._take(1, wait_s)
        room, room_bytes = readings_max - _readings(items), BYTES_PER_POLL_MAX
        while items and room > 0 and room_bytes > 0 and len(items) < MESSAGES_PER_POLL_MAX:
            more = self._take(MESSAGES_PER_CALL, 0.0)
            if not more:
                break
            items += more
            room -= _readings(more)
            room_bytes -= sum(len(item.message.value) for item in more)
        return items

    def keep_alive(self) -> None:
        """Stay a member of the group without reading on; `fetch` reads on."""
        self._consumer.pause(self._consumer.assignment())
        self._paused = True
        self._held += self._take(1, 0.05)  # what slips through is for the next fetch

    def read_from(self, partition: Partition, offset: int | None) -> int:
        """Go back to an offset of an assigned partition; returns the new generation."""
        start = OFFSET_BEGINNING if offset is None else offset
        try:
            self._consumer.seek(TopicPartition(partition.topic, partition.number, start))
        except KafkaException as error:
            log.warning("source.seek_failed", partition=str(partition), error=str(error))
        self._held = [item for item in self._held if item.message.partition != partition]
        self._generations[partition] = self._generations.get(partition, 0) + 1
        return self._generations[partition]

    def assigned(self) -> list[Partition]:
        """Return what the group gave to this member."""
        return [Partition(one.topic, one.partition) for one in self._consumer.assignment()]

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Tell the group, without waiting, up to where everything is stored."""
        if offsets:
            try:
                self._consumer.commit(
                    offsets=[TopicPartition(*partition, offset) for partition, offset in offsets.items()],
                    asynchronous=True,
                )
            except (KafkaException, RuntimeError) as error:  # RuntimeError: closed
                log.debug("source.commit_failed", error=str(error))

    def ends(self) -> dict[Partition, int]:
        """Return where the assigned partitions end, as of the last fetch."""
        found = {}
        for one in self._consumer.assignment():
            _, high = self._consumer.get_watermark_offsets(one, cached=True)
            if high >= 0:
                found[Partition(one.topic, one.partition)] = high
        return found

    def probe(self) -> None:
        """Ask the broker something, to notice that it is back."""
        try:
            self._consumer.list_topics(timeout=1.0)
        except KafkaException as error:
            self.broker_error = self.broker_error or str(error.args[0].str())
        else:
            self.broker_error = None

    def close(self) -> None:
        """Leave the group; partitions are revoked on the way."""
        if self._fixed is not None and not self._to_assign:
            self.commit(self._hooks.revoked(self._fixed))
        self._consumer.close()

    def _take(self, messages_max: int, wait_s: float) -> list[Item]:
        try:
            messages = self._consumer.consume(messages_max, wait_s)
        except RuntimeError as error:  # closed
            raise ServiceError(f"consumer: {error}") from error
        items = []
        for message in messages:
            failure = message.error()
            if failure is None:
                items.append(open_envelope(self._received(message)))
            elif failure.fatal() or failure.code() not in _HARMLESS:
                log.warning("source.error", error=failure.str(), code=failure.name())
                if failure.fatal():
                    raise ServiceError(f"consumer: {failure.str()}")
        if items:
            self.broker_error = None
        return items

    def _received(self, message: Message) -> Received:
        topic, number, offset = message.topic(), message.partition(), message.offset()
        if topic is None or number is None or offset is None:
            raise ServiceError("consumer: a message without a place")  # librdkafka fills them in always
        partition = Partition(topic, number)
        kind, stamp_ms = message.timestamp()
        return Received(
            partition,
            offset,
            _bytes(message.key()),
            _bytes(message.value()) or b"",
            tuple((str(name), _bytes(value)) for name, value in list(message.headers() or ())),
            stamp_ms * US_PER_MS if kind else 0,
            self._generations.get(partition, 0),
        )

    def _on_assign(self, consumer: Consumer, assigned: Sequence[TopicPartition]) -> None:
        partitions = [Partition(one.topic, one.partition) for one in assigned]
        for partition in partitions:
            self._generations[partition] = self._generations.get(partition, 0) + 1
        starts = self._hooks.assigned(partitions, {one: self._generations[one] for one in partitions})
        places = [TopicPartition(*one, self._start(one, starts.get(one))) for one in partitions]
        if self._fixed is None:
            consumer.incremental_assign(places)
        else:
            consumer.assign(places)

    def _start(self, partition: Partition, stored: int | None) -> int:
        """Return where to read from: what is stored if the partition still has it, else its beginning."""
        if stored is None:
            return int(OFFSET_BEGINNING)
        try:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(*partition), timeout=_WATERMARKS_TIMEOUT_S)
        except KafkaException:
            return stored  # auto.offset.reset says the same, only more quietly
        if low <= stored <= high:
            return stored
        log.warning("source.offset_gone", partition=str(partition), stored=stored, low=low, high=high)
        return int(low)

    def _on_revoke(self, consumer: Consumer, revoked: Sequence[TopicPartition]) -> None:
        partitions = [Partition(one.topic, one.partition) for one in revoked]
        self.commit(self._hooks.revoked(partitions))
        self._leave(partitions)
        consumer.incremental_unassign(list(revoked))

    def _on_lost(self, consumer: Consumer, lost: Sequence[TopicPartition]) -> None:
        partitions = [Partition(one.topic, one.partition) for one in lost]
        self._hooks.lost(partitions)
        self._leave(partitions)
        consumer.incremental_unassign(list(lost))

    def _leave(self, partitions: Sequence[Partition]) -> None:
        self._held = [item for item in self._held if item.message.partition not in partitions]

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in {KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE}:  # noqa: SLF001
            self.broker_error = error.str()


def _settings(config: IngestConfig) -> dict[str, Any]:
    ingest = config.ingest
    settings: dict[str, Any] = {
        "group.id": ingest.consumer_group,
        "client.id": ingest.worker_id or "forebay-ingest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
        # Latency: ask again at once after an answer; the default of the second is a second.
        "fetch.wait.max.ms": 10 if config.embedded_broker else 100,
        "fetch.queue.backoff.ms": 5,
        "queued.max.messages.kbytes": 32 * 1024,
        "reconnect.backoff.max.ms": 2_000,
        "socket.keepalive.enable": True,
    }
    if config.embedded_broker:
        # Topics appear with the first message or question.
        settings |= {"topic.metadata.refresh.interval.ms": 500, "allow.auto.create.topics": True}
    else:
        settings |= {
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(ingest.session_timeout_s * 1000),
            "heartbeat.interval.ms": int(ingest.session_timeout_s * 1000 / 4),
            "topic.metadata.refresh.interval.ms": 10_000,
        }
        if ingest.worker_id is not None:
            settings["group.instance.id"] = ingest.worker_id
    return settings


def _readings(items: Sequence[Item]) -> int:
    return sum(item.content.readings for item in items if isinstance(item.content, TelemetryBatch))


def _bytes(value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return str(value).encode()
