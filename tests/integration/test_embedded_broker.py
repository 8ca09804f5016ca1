"""The embedded broker: one for all processes of a folder, survives its clients' kill -9, leaves nothing running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from common.embedded import keeper
from common.embedded.broker import PARTITION_BYTES, PARTITIONS, EmbeddedBroker, ensure_embedded_broker
from common.embedded.places import open_lock, try_exclusive
from common.errors import ServiceError
from tests.integration.waiting import runs, wait_until

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = keeper.GRACE_S + 5 * keeper.CHECK_S

CLIENT = """
import sys
from pathlib import Path
from common.embedded.broker import ensure_embedded_broker
broker = ensure_embedded_broker(Path(sys.argv[1]))
print(broker.pid, broker.bootstrap_servers, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def broker(folder: Path) -> Iterator[EmbeddedBroker]:
    with ensure_embedded_broker(folder) as held:
        yield held
        os.kill(held.pid, signal.SIGTERM)  # do not make the suite wait for the grace period


def start_client(folder: Path) -> tuple[subprocess.Popen[str], int, str]:
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert client.stdout is not None
    pid, bootstrap = client.stdout.readline().split()
    return client, int(pid), bootstrap


def produce(bootstrap: str, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "acks": "all"})
    for value in values:
        producer.produce(topic, value, key=b"machine-1", partition=partition, headers={"route": b"stream"})
    assert producer.flush(10) == 0


def consumer(bootstrap: str, group: str = "ingest") -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 10,
        }
    )


def read(bootstrap: str, topic: str, count: int) -> list[Message]:
    reader = consumer(bootstrap, "reader")
    reader.assign([TopicPartition(topic, 0, 0)])
    got: list[Message] = []
    deadline = time.monotonic() + 10
    while len(got) < count and time.monotonic() < deadline:
        got.extend(reader.consume(count, 0.1))
    reader.close()
    return got


def test_two_processes_of_a_folder_share_one_broker(folder: Path, broker: EmbeddedBroker) -> None:
    client, pid, bootstrap = start_client(folder)
    assert (pid, bootstrap) == (broker.pid, broker.bootstrap_servers)
    client.communicate("")


def test_processes_that_race_for_the_first_start_get_the_same_broker(folder: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        clients = list(pool.map(lambda _: start_client(folder), range(6)))
    assert len({(pid, bootstrap) for _, pid, bootstrap in clients}) == 1
    for client, _, _ in clients:
        client.communicate("")
    os.kill(clients[0][1], signal.SIGTERM)


def test_memory_outlives_a_killed_client_that_started_the_broker(folder: Path) -> None:
    client, pid, bootstrap = start_client(folder)
    produce(bootstrap, "kept", [b"one", b"two"])
    client.kill()
    client.wait()
    with ensure_embedded_broker(folder) as again:
        assert (again.pid, again.bootstrap_servers) == (pid, bootstrap)
        messages = read(bootstrap, "kept", 2)
        assert [message.value() for message in messages] == [b"one", b"two"]
        assert messages[0].headers() == [("route", b"stream")]
    os.kill(pid, signal.SIGTERM)


def test_nothing_is_left_running_after_the_last_client_was_killed(folder: Path) -> None:
    client, pid, _ = start_client(folder)
    other, _, _ = start_client(folder)
    client.kill()
    client.communicate()
    other.kill()
    other.communicate()
    wait_until(lambda: not runs(pid), ENDS_WITHIN_S)
    assert not (folder / "broker.json").exists()


def test_refresh_notices_a_killed_broker_and_starts_another(broker: EmbeddedBroker) -> None:
    former_pid, former = broker.pid, broker.incarnation
    assert broker.refresh() == broker.bootstrap_servers
    assert broker.incarnation == former
    os.kill(former_pid, signal.SIGKILL)
    wait_until(lambda: bool(broker.refresh()) and broker.incarnation != former)
    assert broker.pid != former_pid
    produce(broker.bootstrap_servers, "fresh", [b"x"])
    assert read(broker.bootstrap_servers, "fresh", 1)[0].value() == b"x"


def test_a_client_that_comes_while_the_broker_ends_gets_a_new_one(folder: Path) -> None:
    with ensure_embedded_broker(folder) as first:
        former = first.pid
        os.kill(former, signal.SIGTERM)
        wait_until(lambda: not (folder / "broker.json").exists())
        with ensure_embedded_broker(folder) as second:
            assert second.pid != former
            assert first.refresh() == second.bootstrap_servers
            os.kill(second.pid, signal.SIGTERM)


def test_an_address_left_by_a_killed_broker_is_not_believed(folder: Path) -> None:
    folder.mkdir()
    old = {"bootstrap_servers": "127.0.0.1:1", "pid": "1", "incarnation": "old"}
    (folder / "broker.json").write_text(json.dumps(old))
    with ensure_embedded_broker(folder) as broker:
        assert broker.bootstrap_servers != "127.0.0.1:1"
        os.kill(broker.pid, signal.SIGTERM)


def test_a_keeper_that_never_gets_ready_is_an_error_with_a_reason(folder: Path) -> None:
    folder.mkdir()
    lock = open_lock(folder / "broker.lock")
    assert try_exclusive(lock)  # someone holds the lock and never publishes
    with pytest.raises(ServiceError, match=r"broker.*not ready in time"):
        ensure_embedded_broker(folder, timeout_s=0.3)
    os.close(lock)


def test_a_folder_that_cannot_be_used_is_an_error_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ServiceError, match=str(file)):
        ensure_embedded_broker(file)


def test_commits_are_seen_by_a_client_that_never_joins_the_group(broker: EmbeddedBroker) -> None:
    bootstrap = broker.bootstrap_servers
    produce(bootstrap, "telemetry", [b"0", b"1", b"2"])
    ingest, uplink = consumer(bootstrap), consumer(bootstrap)
    partition = TopicPartition("telemetry", 0)
    assert uplink.committed([partition], timeout=5)[0].offset < 0
    ingest.commit(offsets=[TopicPartition("telemetry", 0, 2)], asynchronous=False)
    assert uplink.committed([partition], timeout=5)[0].offset == 2


def test_topics_appear_with_the_partitions_that_the_constant_says(broker: EmbeddedBroker) -> None:
    produce(broker.bootstrap_servers, "new", [b"x"])
    topics = Producer({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=5).topics
    assert len(topics["new"].partitions) == PARTITIONS


def test_a_partition_keeps_no_more_than_the_constant_says(broker: EmbeddedBroker) -> None:
    value = os.urandom(100_000)
    produce(broker.bootstrap_servers, "full", [value] * 100)
    low, high = consumer(broker.bootstrap_servers).get_watermark_offsets(TopicPartition("full", 0), timeout=5)
    assert high == 100
    assert (high - low) * len(value) <= PARTITION_BYTES
