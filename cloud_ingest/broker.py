"""The way to the broker: its address, which cluster it is, topics that must be there, dead letters that go out.

In: the config. Out: settings for Kafka clients. Fails with ServiceError when the broker does not answer; everything
here blocks and belongs in a thread.

A *cluster id* tells brokers apart that share an address: offsets mean nothing in another cluster. Kafka has one; for
the embedded broker, which forgets everything when it ends, it is the name of its present life.
"""

import fcntl
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from cloud_ingest import dead_letters
from cloud_ingest.config import IngestConfig
from cloud_ingest.dead_letters import Letter
from cloud_ingest.model import Partition
from common.config import KafkaBroker
from common.embedded.broker import PARTITIONS, EmbeddedBroker, ensure_embedded_broker
from common.errors import ServiceError

TOPICS: Final = ("forebay.stream", "forebay.batch")
_TIMEOUT_S: Final = 5.0
_DELIVERY_TIMEOUT_MS: Final = 5_000

# librdkafka repeats itself for as long as a broker is away; our own events say it once.
silent = logging.getLogger("librdkafka")
silent.addHandler(logging.NullHandler())
silent.propagate = False
silent.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A broker that answered: settings that reach it, and which one it is."""

    settings: dict[str, Any]
    cluster_id: str


class BrokerLink:
    """Keeps hold of the broker of a config."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._embedded: EmbeddedBroker | None = None
        self._producer: tuple[str, Producer] | None = None
        self._lock: int | None = None

    def connect(self) -> Cluster:
        """Find the broker, starting the embedded one if that is it; raises ServiceError when it does not answer."""
        if isinstance(self._config.broker, KafkaBroker):
            settings = self._config.broker.client_settings()
            return Cluster(settings, _ask_cluster_id(settings))
        if self._embedded is None:
            self._embedded = ensure_embedded_broker(self._config.data_dir / "broker")
        else:
            self._embedded.refresh()
        return Cluster({"bootstrap.servers": self._embedded.bootstrap_servers}, self._embedded.incarnation)

    def claim(self) -> None:
        """Become the one worker of the embedded broker; raises ServiceError while another is.

        It has no groups worth the name (a killed member keeps its partitions for long), but it has one data folder:
        a second worker stands by until the first one's lock is gone, however that ended.
        """
        if not self._config.embedded_broker or self._lock is not None:
            return
        folder = self._config.data_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "ingest.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServiceError(f"cannot use the folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ServiceError(f"another cloud-ingest serves {folder}; standing by") from error
        self._lock = lock

    def partitions(self) -> list[Partition] | None:
        """Return what to read of the embedded broker; None for Kafka, whose consumer group says that."""
        if not self._config.embedded_broker:
            return None
        return [Partition(topic, number) for topic in TOPICS for number in range(PARTITIONS)]

    def is_current(self, cluster: Cluster) -> bool:
        """Tell whether the cluster is still the one there is; an embedded broker that died is started again."""
        return self._embedded is None or self.connect().cluster_id == cluster.cluster_id

    def ensure_topics(self, cluster: Cluster) -> list[str]:
        """Make the topics that are missing and return their names; the embedded broker makes its own."""
        if self._config.embedded_broker:
            return []
        admin = AdminClient(cluster.settings, logger=silent)
        try:
            have = admin.list_topics(timeout=_TIMEOUT_S).topics
        except KafkaException as error:
            raise ServiceError(f"broker: {_text(error)}") from error
        settings = self._config.ingest
        wanted = {**dict.fromkeys(TOPICS, settings.topic_partitions), dead_letters.TOPIC: 1}
        new = [
            NewTopic(name, num_partitions=partitions, replication_factor=settings.topic_replication)
            for name, partitions in wanted.items()
            if name not in have
        ]
        for name, future in (admin.create_topics(new, request_timeout=_TIMEOUT_S) if new else {}).items():
            try:
                future.result(_TIMEOUT_S * 2)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise ServiceError(f"broker: cannot create topic {name}: {_text(error)}") from error
        return [topic.topic for topic in new]

    def produce(self, cluster: Cluster, letters: Sequence[Letter]) -> list[int]:
        """Publish dead letters and return the ids of those that were delivered."""
        producer = self._producer_for(cluster)
        delivered: list[int] = []
        for letter in letters:

            def note(error: KafkaError | None, _: Message, number: int = letter.dead_letter_id) -> None:
                if error is None:
                    delivered.append(number)

            producer.produce(
                dead_letters.TOPIC, value=letter.payload, key=letter.key, headers=list(letter.headers), on_delivery=note
            )
        producer.flush(_DELIVERY_TIMEOUT_MS / 1000)
        return delivered

    def close(self) -> None:
        """Let go of the broker."""
        self._producer = None
        if self._embedded is not None:
            self._embedded.close()
            self._embedded = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _producer_for(self, cluster: Cluster) -> Producer:
        if self._producer is None or self._producer[0] != cluster.cluster_id:
            settings = {
                **cluster.settings,
                "enable.idempotence": True,
                "linger.ms": 1,
                "message.max.bytes": 20 * 1024 * 1024,
                "delivery.timeout.ms": _DELIVERY_TIMEOUT_MS,
            }
            self._producer = (cluster.cluster_id, Producer(settings, logger=silent))
        return self._producer[1]


def _ask_cluster_id(settings: dict[str, Any]) -> str:
    admin = AdminClient(settings, logger=silent)
    try:
        found = admin.list_topics(timeout=_TIMEOUT_S).cluster_id
    except KafkaException as error:
        where = settings["bootstrap.servers"]
        raise ServiceError(f"broker {where} does not answer: {_text(error)}") from error
    return str(found)


def _text(error: KafkaException) -> str:
    first = error.args[0]
    return str(first.str()) if isinstance(first, KafkaError) else str(first)
