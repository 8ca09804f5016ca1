"""The uplink to real brokers: the embedded one, its death included, and Kafka."""

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from common.clock import SystemClock
from common.embedded.broker import EmbeddedBroker, ensure_embedded_broker
from common.errors import ServiceError
from common.model import Route
from common.wire import BIRTH, Birth, decode_message, encode_birth_body
from deploy.dev.services import Services
from edge_agent.batching import DraftBatch
from edge_agent.buffer.buffer import Buffer, BufferLimits
from edge_agent.metrics import EdgeMetrics
from edge_agent.uplink.link import EmbeddedLink, KafkaLink
from edge_agent.uplink.uplink import InFlight, Uplink
from tests.integration.edge_fixtures import black_hole, taken_port
from tests.integration.waiting import wait_until

MACHINES = tuple(f"m{number}" for number in range(6))
TOPICS = ["forebay.stream", "forebay.batch"]
LIMITS = InFlight(2000, 4_000_000)


def message(machine_id: str, route: Route = Route.STREAM, size: int = 300) -> DraftBatch:
    return DraftBatch(BIRTH, machine_id, route, 0, 0, 1, encode_birth_body("s" * size, "", ())[1])


class Ingest:
    """A consumer group that commits what it has read, in a thread, whatever broker `servers` names."""

    def __init__(self, servers: str, group: str, topics: list[str] = TOPICS) -> None:
        self.read: list[Birth] = []
        self._stop = threading.Event()
        settings = {
            "bootstrap.servers": servers, "group.id": group, "auto.offset.reset": "earliest",
            "enable.auto.commit": False, "group.protocol": "consumer", "fetch.wait.max.ms": 10, "log_level": 0,
            "allow.auto.create.topics": True, "topic.metadata.refresh.interval.ms": 500,
        }  # fmt: skip
        self._consumer = Consumer(settings)
        self._consumer.subscribe(topics)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            found = [one for one in self._consumer.consume(200, 0.1) if one.error() is None]
            for one in found:
                value = one.value()
                assert value is not None
                birth = decode_message(value)
                assert isinstance(birth, Birth)
                assert one.key() == birth.head.machine_id.encode()
                assert one.topic() == birth.head.route.topic
                self.read.append(birth)
            if found:
                try:
                    self._consumer.commit(asynchronous=False)
                except KafkaException:
                    return  # the broker has died

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._consumer.close()

    @property
    def seqs(self) -> dict[tuple[str, str], list[int]]:
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for birth in self.read:
            found[birth.head.machine_id, birth.head.route].append(birth.head.seq)
        return found


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    made = Buffer(tmp_path / "buffer", BufferLimits(), SystemClock())
    yield made
    made.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with ensure_embedded_broker(tmp_path / "broker") as made:
        yield made


def waiting(buffer: Buffer) -> int:
    return buffer.status().waiting_batches


def test_embedded_everything_arrives_once_and_in_order(buffer: Buffer, broker: EmbeddedBroker) -> None:
    uplink = Uplink(buffer, lambda: EmbeddedLink(broker, "forebay", 5), "a", LIMITS, EdgeMetrics(), SystemClock())
    uplink.start()
    for _ in range(50):
        buffer.accept([message(machine, route) for machine in MACHINES for route in Route])
        uplink.wake()
    wait_until(lambda: uplink.up)
    assert waiting(buffer) == 600, "what only the broker's memory has is not safe"
    wait_until(lambda: len(uplink._outstanding) == 600)
    ingest = Ingest(broker.bootstrap_servers, "forebay")
    wait_until(lambda: waiting(buffer) == 0, within_s=20)
    assert ingest.seqs == {(machine, route): list(range(1, 51)) for machine in MACHINES for route in Route}
    assert not any(birth.head.replayed for birth in ingest.read)
    assert uplink.stop(2.0)
    ingest.close()


def test_embedded_a_new_incarnation_gets_what_was_not_safe_under_the_same_seqs(
    buffer: Buffer, broker: EmbeddedBroker
) -> None:
    uplink = Uplink(buffer, lambda: EmbeddedLink(broker, "forebay", 5), "a", LIMITS, EdgeMetrics(), SystemClock())
    uplink.start()
    buffer.accept([message(machine) for machine in MACHINES])
    uplink.wake()
    wait_until(lambda: uplink.up)
    first = Ingest(broker.bootstrap_servers, "forebay", TOPICS[:1])
    wait_until(lambda: waiting(buffer) == 0, within_s=20)
    first.close()
    for _ in range(20):
        buffer.accept([message(machine) for machine in MACHINES])
    uplink.wake()
    wait_until(lambda: len(uplink._outstanding) == 120)
    before = broker.incarnation
    psutil.Process(broker.pid).kill()
    wait_until(lambda: broker.incarnation != before, within_s=20)
    buffer.accept([message(machine) for machine in MACHINES])
    uplink.wake()
    wait_until(lambda: len(uplink._outstanding) == 126 and uplink.up)
    second = Ingest(broker.bootstrap_servers, "forebay", TOPICS[:1])
    wait_until(lambda: waiting(buffer) == 0, within_s=20)
    assert second.seqs == {(machine, "stream"): list(range(2, 23)) for machine in MACHINES}
    assert all(birth.head.replayed for birth in second.read if birth.head.seq <= 21)
    assert not any(birth.head.replayed for birth in second.read if birth.head.seq == 22)
    assert uplink.stop(2.0)
    second.close()


def test_embedded_the_brokers_memory_is_never_overrun(buffer: Buffer, broker: EmbeddedBroker) -> None:
    """One machine, one partition of 5 MiB, 20 MB to send, and nobody reads until all that may be is in flight."""
    size = 100_000
    uplink = Uplink(buffer, lambda: EmbeddedLink(broker, "forebay", 5), "a", LIMITS, EdgeMetrics(), SystemClock())
    for _ in range(200):
        buffer.accept([message("m", size=size)])
    uplink.start()
    wait_until(lambda: uplink._outstanding_bytes > LIMITS.bytes_max - size)
    ingest = Ingest(broker.bootstrap_servers, "forebay", TOPICS[:1])
    wait_until(lambda: waiting(buffer) == 0, within_s=30)
    assert ingest.seqs["m", "stream"] == list(range(1, 201))
    assert uplink.stop(2.0)
    ingest.close()


@pytest.mark.parametrize("silent", [True, False], ids=["accepts and says nothing", "lets nobody in"])
def test_stop_does_not_wait_for_a_broker_that_is_not_there(buffer: Buffer, *, silent: bool) -> None:
    with taken_port() as listening, black_hole() as hole:
        port = listening.getsockname()[1] if silent else hole
        servers = {"bootstrap.servers": f"127.0.0.1:{port}"}
        uplink = Uplink(buffer, lambda: KafkaLink(servers, 5), "a", LIMITS, EdgeMetrics(), SystemClock())
        uplink.start()
        buffer.accept([message(machine) for machine in MACHINES])
        uplink.wake()
        wait_until(lambda: len(uplink._outstanding) == 6)
        started = time.monotonic()
        assert uplink.stop(2.0)
        assert time.monotonic() - started < 2.5
    assert waiting(buffer) == 6


def test_settings_that_no_client_can_be_made_of() -> None:
    with pytest.raises(ServiceError, match="broker:"):
        KafkaLink({"bootstrap.servers": "127.0.0.1:1", "security.protocol": "pigeon"}, 5)


# -- Kafka ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A broker that others use too: so this test's routes have topics of their own there, as Kafka makes them."""
    servers = Services().start("kafka")["kafka"]["bootstrap_servers"]
    mine = uuid.uuid4().hex[:8]
    monkeypatch.setattr(Route, "topic", property(lambda route: f"test-{mine}.{route.value}"))
    topics = [route.topic for route in Route]
    admin = AdminClient({"bootstrap.servers": servers})
    config = {"max.message.bytes": "1048588"}
    for future in admin.create_topics([NewTopic(topic, 4, 1, config=config) for topic in topics]).values():
        future.result(10)
    yield servers
    admin.delete_topics(topics)


def kafka_uplink(buffer: Buffer, servers: str) -> Uplink:
    settings = {"bootstrap.servers": servers}
    return Uplink(buffer, lambda: KafkaLink(settings, 5), "a", LIMITS, EdgeMetrics(), SystemClock())


@pytest.mark.services
def test_kafka_everything_arrives_once_and_in_order(buffer: Buffer, kafka: str) -> None:
    ingest = Ingest(kafka, "test", [route.topic for route in Route])
    uplink = kafka_uplink(buffer, kafka)
    uplink.start()
    for _ in range(50):
        buffer.accept([message(machine, route) for machine in MACHINES for route in Route])
        uplink.wake()
    wait_until(lambda: waiting(buffer) == 0, within_s=30)
    assert uplink.up
    wait_until(lambda: len(ingest.read) >= 600, within_s=30)
    assert ingest.seqs == {(machine, route): list(range(1, 51)) for machine in MACHINES for route in Route}
    assert uplink.stop(2.0)
    ingest.close()


@pytest.mark.services
def test_kafka_a_message_too_large_is_said_and_not_tried_in_a_hurry(buffer: Buffer, kafka: str) -> None:
    connects = 0

    def connect() -> KafkaLink:
        nonlocal connects
        connects += 1
        return KafkaLink({"bootstrap.servers": kafka}, 5)

    uplink = Uplink(buffer, connect, "a", LIMITS, EdgeMetrics(), SystemClock())
    buffer.accept([message("m", size=1_200_000)])
    uplink.start()
    wait_until(lambda: "too large" in (uplink.last_error or "").lower(), within_s=20)
    time.sleep(2.0)  # long enough for a loop without pauses to show
    assert connects < 8
    assert not uplink.up
    assert waiting(buffer) == 1
    assert uplink.stop(1.0)


@pytest.mark.services
@pytest.mark.slow
def test_kafka_killed_and_restarted_loses_nothing(buffer: Buffer, kafka: str) -> None:
    services = Services()
    uplink = kafka_uplink(buffer, kafka)
    uplink.start()
    for step in range(60):
        buffer.accept([message(machine) for machine in MACHINES])
        uplink.wake()
        if step == 20:
            services.kafka.kill()
        if step == 40:
            wait_until(lambda: waiting(buffer) > 0)
            services.start("kafka")
        time.sleep(0.05)  # a plant's pace
    wait_until(lambda: waiting(buffer) == 0, within_s=60)
    ingest = Ingest(kafka, "test", [Route.STREAM.topic])
    wait_until(lambda: len({(one.head.machine_id, one.head.seq) for one in ingest.read}) == 360, within_s=60)
    for machine in MACHINES:
        seqs = ingest.seqs[machine, "stream"]
        assert list(dict.fromkeys(seqs)) == list(range(1, 61)), "in order; a repeat is a whole batch"
    assert uplink.stop(2.0)
    ingest.close()
