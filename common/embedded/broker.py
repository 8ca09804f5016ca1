"""The embedded Kafka broker: librdkafka's mock cluster, in a process of its own that both programs share.

In: a folder that both programs name in their config. Out: `bootstrap_servers` for any Kafka client here.
Fails with ServiceError when no broker is there in time. How it starts and ends: common.embedded.keeper.

It is a broker in memory, on 127.0.0.1 and without passwords, for trying out, tests and small single-box plants.
What it does, measured with confluent-kafka 2.16.1 (librdkafka 2.16.0):

- Topics appear by themselves at the first produce, with 4 partitions. CreateTopics, DeleteTopics,
  CreatePartitions, DescribeConfigs and DescribeCluster are not there: a client gets a time-out, not an error.
- Each partition keeps 5 MiB (or 100,000 message sets) and drops the oldest without an error to anybody: a
  consumer that has fallen behind is moved to the first offset left, by `auto.offset.reset`. A message above
  5 MiB is acknowledged and gone. So what is in flight must be bounded: see `PARTITION_BYTES`.
- Idempotent and transactional producers, acks=all, keys and headers work. (Aborted transactions are visible.)
- Groups: commits last as long as this process. `Consumer.committed()` of a client that only names the group and
  never joins sees them (4 ms the first time, below 1 ms then); a consumer with `assign` may commit.
  For a topic that does not exist yet it puts UNKNOWN_TOPIC_OR_PART into the partition and does not raise.
  ListGroups and the admin client's group offsets come back empty.
- Joining a group takes 3.1 s with the classic protocol and 0.1 s with `group.protocol=consumer` (KIP-848).
- A fetch that finds nothing is answered when `fetch.wait.max.ms` is over, not when data comes: that setting
  is the latency (median 8, 38, 488 ms for 10, 50, 500). Set it to 10.
- 84 MB/s of 50 KB messages through one partition, produced and consumed by one Python process, none lost.
- Offsets-for-times knows no times. Watermarks are right, also after the oldest were dropped.
- `list_topics().cluster_id` is made of a memory address: different in each incarnation in practice, not by
  promise. `EmbeddedBroker.incarnation` is different by promise; a new one means that every topic, offset and
  commit of the former is gone, and its port too: clients must be made anew with the address of `refresh()`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from confluent_kafka import KafkaException, Producer

from common.embedded.keeper import keep
from common.embedded.lease import Lease
from common.embedded.places import Address
from common.errors import ServiceError

NAME: Final = "broker"
MODULE: Final = "common.embedded.broker"
PARTITION_BYTES: Final = 5 * 1024 * 1024
"""What one partition keeps. A producer that has more than this unread by the consumer loses its oldest."""
PARTITIONS: Final = 4
METADATA_TIMEOUT_S: Final = 10.0


class EmbeddedBroker:
    """A hold on the broker of a folder; made by `ensure_embedded_broker`. Closing twice is harmless."""

    def __init__(self, lease: Lease, address: Address) -> None:
        self._lease = lease
        self._address = address

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address as of the last `refresh`."""
        return self._address["bootstrap_servers"]

    @property
    def incarnation(self) -> str:
        """A name for this life of the broker: a new one has an empty memory."""
        return self._address["incarnation"]

    @property
    def pid(self) -> int:
        """The broker's process."""
        return int(self._address["pid"])

    def refresh(self, timeout_s: float = 10.0) -> str:
        """Return the current address, after starting a new broker if the last has died.

        A broker that was killed this instant may still be returned (the kernel drops a dead process's locks some
        milliseconds later), so call it again as long as the clients fail. Costs 0.15 ms when all is well.
        Raises ServiceError when none can be started in time. May be called from any thread.
        """
        self._address = self._lease.refresh(timeout_s)
        return self.bootstrap_servers

    def close(self) -> None:
        """Let go of the broker; it ends by itself some seconds after its last client."""
        self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ensure_embedded_broker(folder: Path, timeout_s: float = 10.0) -> EmbeddedBroker:
    """Hold the broker that serves `folder`, starting it if none does. Blocks up to `timeout_s`.

    Every process that names the same folder gets the same broker. Raises ServiceError.
    """
    lease = Lease(folder, NAME, MODULE)
    return EmbeddedBroker(lease, lease.open(timeout_s))


class _MockCluster:
    """librdkafka's mock cluster; it lives inside a producer that nobody produces with."""

    _host: Producer | None = None

    def start(self) -> Address:
        try:
            self._host = Producer({"test.mock.num.brokers": 1})
            brokers = self._host.list_topics(timeout=METADATA_TIMEOUT_S).brokers.values()
        except KafkaException as error:
            raise ServiceError(f"librdkafka's mock cluster did not start: {error}") from error
        return {"bootstrap_servers": ",".join(f"{broker.host}:{broker.port}" for broker in brokers)}

    def alive(self) -> bool:
        return self._host is not None  # threads of this process: they end with it, not before

    def stop(self) -> None:
        self._host = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the broker process of a folder; returns at once when one serves it already."""
    parser = argparse.ArgumentParser(
        prog="python -m common.embedded.broker", description="The process of Forebay's embedded Kafka broker."
    )
    parser.add_argument("--folder", type=Path, required=True, help="where its locks and its address are kept")
    return keep(parser.parse_args(arguments).folder, NAME, _MockCluster())


if __name__ == "__main__":
    sys.exit(main())
