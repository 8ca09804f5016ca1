"""The whole worker over the embedded broker and a real PostgreSQL: stored = truth, whatever is killed."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud_ingest.embedded_postgres import EmbeddedPostgres
from common.embedded.broker import EmbeddedBroker, ensure_embedded_broker
from tests.integration.ingesting import (
    Database,
    Feeder,
    WorkerProcess,
    archived_rows,
    check_all,
    config_data,
    stored_rows,
    truth_rows,
    wait_for,
    wrong_windows,
)
from tests.integration.traffic import BASE_US, FakeAgent
from tests.integration.waiting import runs

SECOND = 1_000_000


@pytest.fixture
def broker(folder: Path) -> Iterator[EmbeddedBroker]:
    with ensure_embedded_broker(folder / "broker") as one:
        yield one


def kill_broker(broker: EmbeddedBroker) -> None:
    pid = broker.pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    broker.refresh()


def feed(feeder: Feeder, agents: list[FakeAgent], batches: int, pause_s: float = 0.0, from_us: int = BASE_US) -> None:
    for number in range(batches):
        for agent in agents:
            feeder.agent(agent, agent.batch(from_us + number * 7 * SECOND, 20, 350_000))
        time.sleep(pause_s)


def test_stores_archives_and_windows_everything(folder: Path, broker: EmbeddedBroker, database: Database) -> None:
    agents = [FakeAgent(f"m{k}", seed=k) for k in range(3)]
    feeder = Feeder(broker.bootstrap_servers)
    with WorkerProcess(config_data(database, folder), folder) as worker:
        for agent in agents:
            feeder.agent(agent, agent.birth())
        feed(feeder, agents, 20)
        odd = np.array([np.nan, -0.0, 0.1])
        ts = BASE_US + np.arange(6) * SECOND
        odd_agent = FakeAgent("odd", ["x"])
        feeder.agent(odd_agent, odd_agent.birth())
        feeder.agent(odd_agent, odd_agent.batch(int(ts[0]), 6, SECOND, values=odd[[0, 1, 2, 1, 2, 0]]))
        statuses = np.array([0, -2_147_483_648, 0x4000_0000], np.int32)
        feeder.agent(odd_agent, odd_agent.batch(BASE_US - 3, 3, 1, values=np.array([1.0, 2.0, 3.0]), statuses=statuses))
        feeder.flush()
        check_all(database, folder / "archive", [*agents, odd_agent])
        # Late by an hour: the windows are revised, not lost.
        late = agents[0].batch(BASE_US + SECOND // 2, 20, 350_000)
        feeder.agent(agents[0], late, late, late)
        feeder.flush()
        check_all(database, folder / "archive", [*agents, odd_agent])
        assert database.value("SELECT max(revision) FROM windows_1m") >= 1
        wait_for(lambda: worker.metric("forebay_ingest_repeats_total") == 2)
        assert worker.health()["ok"]
        assert database.value("SELECT sum(repeated) FROM lanes") == 2
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 5


def test_infinities_and_extreme_times_are_stored(folder: Path, broker: EmbeddedBroker, database: Database) -> None:
    agent = FakeAgent("m1", ["x"])
    feeder = Feeder(broker.bootstrap_servers)
    values = np.array([np.inf, -np.inf, 1.7e308, -1.7e308, 5e-324, -0.0])
    with WorkerProcess(config_data(database, folder), folder):
        feeder.agent(agent, agent.birth())
        for at in (BASE_US, 0, -62_135_596_800_000_000, 4_000_000_000_000_000, 253_402_300_000_000_000):
            feeder.agent(agent, agent.batch(at, 6, 1_000, values=values))
            feeder.agent(agent, agent.batch(at + 1, 6, 1_000, values=values[4:].repeat(3)))
        feeder.flush()
        wait_for(lambda: database.value("SELECT count(*) FROM readings") == 60)
        # The future is stored, but its windows wait for the clock: the past is emitted.
        wait_for(lambda: database.value("SELECT sum(count) FROM windows_1m") == 36)
        late = agent.batch(BASE_US + 5, 6, 1_000, values=np.full(6, 5e-324))
        feeder.agent(agent, late)
        feeder.flush()
        wait_for(lambda: database.value("SELECT sum(count) FROM windows_1m") == 42)
    assert database.value("SELECT count(*) FROM dead_letters") == 0


def test_poison_goes_to_the_dead_letters_and_nothing_stops(
    folder: Path, broker: EmbeddedBroker, plain_database: Database
) -> None:
    from confluent_kafka import Consumer  # noqa: PLC0415

    agent, stranger = FakeAgent("m1"), FakeAgent("m1", agent_id="gw-2", tags=["other"])
    feeder = Feeder(broker.bootstrap_servers)
    rng = random.Random(7)
    poison = [rng.randbytes(n) for n in (0, 1, 9, 200, 5000)]
    with WorkerProcess(config_data(plain_database, folder), folder) as worker:
        feeder.agent(agent, agent.birth())
        good = agent.batch(BASE_US, 10)
        feeder.agent(agent, good)
        feeder.send(agent.topic, "m1", *poison)
        feeder.agent(stranger, stranger.batch(BASE_US, 5))  # its birth was never sent
        feeder.agent(agent, good[:-3] + bytes(3))  # a block with a broken checksum
        offsets = np.array([0, 1], np.int64)
        feeder.agent(agent, agent.encode(np.array([-(1 << 62)]), np.array([1.0]), np.zeros(1, np.int32), offsets))
        feeder.agent(
            agent,
            agent.encode(np.array([5]), np.array([1.0]), np.zeros(1, np.int32), offsets, np.array([77], np.int32)),
        )
        feeder.agent(agent, agent.batch(BASE_US + 10 * SECOND, 10))
        feeder.flush()
        check_all_but_gaps = truth_rows([agent])
        wait_for(lambda: len(stored_rows(plain_database)) == len(check_all_but_gaps))
        assert stored_rows(plain_database) == check_all_but_gaps
        wait_for(lambda: plain_database.value("SELECT count(*) FROM dead_letters WHERE published") == 9)
        rows = plain_database.fetch('SELECT reason, payload FROM dead_letters ORDER BY "offset"')
        assert [row["payload"] for row in rows[:5]] == poison
        assert [row["reason"] for row in rows] == [
            *["not_a_message"] * 5, "unknown_birth", "damaged_block", "time_not_storable", "unknown_alias",
        ]  # fmt: skip
        wait_for(lambda: worker.metric("forebay_ingest_dead_letters_total") == 9)
        assert worker.running()

        consumer = Consumer(
            {"bootstrap.servers": broker.bootstrap_servers, "group.id": "t", "auto.offset.reset": "earliest"}
        )
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition  # noqa: PLC0415

        consumer.assign([TopicPartition("forebay.dlq", number, OFFSET_BEGINNING) for number in range(4)])
        found = []
        wait_for(lambda: found.extend(m for m in consumer.consume(10, 0.2) if not m.error()) or len(found) >= 9)
        consumer.close()
        assert sorted(m.value() or b"" for m in found) == sorted(row["payload"] for row in rows)
        headers = dict(next(m for m in found if (m.value() or b"") == poison[4]).headers())
        assert headers["forebay-reason"] == b"not_a_message"
        assert headers["forebay-origin"].startswith(b"forebay.stream/")


def kill_loop(folder: Path, broker: EmbeddedBroker, database: Database, kills: int, seed: int) -> None:
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    rng = random.Random(seed)
    agents = [FakeAgent(f"m{k}", seed=seed + k) for k in range(4)]
    feeder = Feeder(broker.bootstrap_servers)
    stop = threading.Event()

    def produce() -> None:
        for agent in agents:
            feeder.agent(agent, agent.birth())
        number = 0
        while not stop.is_set():
            agent = agents[number % 4]
            message = agent.batch(BASE_US + number * 2 * SECOND - rng.choice([0, 0, 0, 90]) * SECOND, 10)
            feeder.agent(agent, *[message] * rng.choice([1, 1, 1, 2]))
            number += 1
            time.sleep(0.01)

    producing = threading.Thread(target=produce)
    producing.start()
    data = config_data(database, folder, archive={"interval_s": 0.4})
    with WorkerProcess(data, folder) as worker:
        for _ in range(kills):
            wait_for(lambda: bool(worker.health().get("last_commit")))
            time.sleep(rng.uniform(0.0, 0.7))
            worker.kill()
            worker.start()
        stop.set()
        producing.join()
        feeder.flush()
        check_all(database, folder / "archive", agents, 60.0)
        assert worker.stop() == 0


def test_kill_9_loses_and_doubles_nothing(folder: Path, broker: EmbeddedBroker, database: Database) -> None:
    kill_loop(folder, broker, database, 3, 20261122)


@pytest.mark.slow
def test_kill_9_many_times(folder: Path, broker: EmbeddedBroker, database: Database) -> None:
    kill_loop(folder, broker, database, 20, random.randrange(1 << 30))


def test_database_that_dies_is_waited_for(folder: Path, broker: EmbeddedBroker) -> None:
    database_kills(folder, broker, 2)


@pytest.mark.slow
def test_database_that_dies_many_times(folder: Path, broker: EmbeddedBroker) -> None:
    database_kills(folder, broker, 15)


def database_kills(folder: Path, broker: EmbeddedBroker, kills: int) -> None:
    agents = [FakeAgent(f"m{k}", seed=k) for k in range(2)]
    feeder = Feeder(broker.bootstrap_servers)
    data = config_data(None, folder, store="embedded")
    with EmbeddedPostgres(folder / "postgres") as server, WorkerProcess(data, folder) as worker:
        for agent in agents:
            feeder.agent(agent, agent.birth())
        feed(feeder, agents, 10, 0.01)
        wait_for(lambda: worker.metric("forebay_ingest_readings_total") > 0)
        for _ in range(kills):
            os.kill(int((folder / "postgres" / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
            feed(feeder, agents, 30, 0.02, agents[0].truth.ts_us[-1] + SECOND)
            wait_for(lambda: worker.health()["ok"])
        feeder.flush()
        database = Database(server.refresh(), plain=False)
        check_all(database, folder / "archive", agents)
        assert worker.stop() == 0


def test_broker_that_dies_is_replaced_and_what_is_sent_again_is_refused(
    folder: Path, broker: EmbeddedBroker, plain_database: Database
) -> None:
    agents = [FakeAgent(f"m{k}", seed=k) for k in range(2)]
    sent = []
    with WorkerProcess(config_data(plain_database, folder, archive={"interval_s": 600}), folder) as worker:
        feeder = Feeder(broker.bootstrap_servers)
        for agent in agents:
            sent.append((agent, agent.birth()))
            sent += [(agent, agent.batch(BASE_US + k * 7 * SECOND, 20, 350_000)) for k in range(10)]
        for agent, message in sent:
            feeder.agent(agent, message)
        feeder.flush()
        wait_for(lambda: worker.metric("forebay_ingest_batches_total") == 20)
        assert not archived_rows(folder / "archive")
        # The worker and the broker die at once, before anything was archived: the edge sends all of it again.
        worker.kill()
        kill_broker(broker)
        worker.start()
        feeder = Feeder(broker.bootstrap_servers)
        for agent, message in [*sent, *sent[3:9]]:
            feeder.agent(agent, message)
        feed(feeder, agents, 5, 0.0, BASE_US + 1000 * SECOND)
        feeder.flush()
        wait_for(lambda: len(stored_rows(plain_database)) == len(truth_rows(agents)))
        wait_for(lambda: worker.metric("forebay_ingest_repeats_total") == 28)
        assert worker.stop() == 0
    assert stored_rows(plain_database) == truth_rows(agents)
    assert archived_rows(folder / "archive") == truth_rows(agents)


def test_broker_that_dies_alone(folder: Path, broker: EmbeddedBroker, plain_database: Database) -> None:
    agents = [FakeAgent("m1")]
    with WorkerProcess(config_data(plain_database, folder, archive={"interval_s": 600}), folder) as worker:
        feeder = Feeder(broker.bootstrap_servers)
        feeder.agent(agents[0], agents[0].birth())
        feed(feeder, agents, 10)
        feeder.flush()
        wait_for(lambda: worker.metric("forebay_ingest_batches_total") == 10)
        kill_broker(broker)
        feeder = Feeder(broker.bootstrap_servers)
        feed(feeder, agents, 10, 0.0, BASE_US + 500 * SECOND)
        feeder.flush()
        wait_for(lambda: len(stored_rows(plain_database)) == len(truth_rows(agents)))
        wait_for(lambda: not wrong_windows(plain_database))
        assert worker.stop() == 0
    assert archived_rows(folder / "archive") == truth_rows(agents)


def test_a_second_worker_stands_by(folder: Path, broker: EmbeddedBroker, plain_database: Database) -> None:
    agent = FakeAgent("m1")
    feeder = Feeder(broker.bootstrap_servers)
    with (
        WorkerProcess(config_data(plain_database, folder), folder) as first,
        WorkerProcess(config_data(plain_database, folder), folder) as second,
    ):
        feeder.agent(agent, agent.birth(), agent.batch(BASE_US, 10))
        feeder.flush()
        wait_for(lambda: plain_database.value("SELECT count(*) FROM readings") == 20)
        wait_for(lambda: first.health()["ok"] != second.health()["ok"])
        standing_by = second if first.health()["ok"] else first
        assert "standing by" in standing_by.health()["broker"]["error"]
        (first if standing_by is second else second).kill()
        feeder.agent(agent, agent.batch(BASE_US + SECOND, 10))
        feeder.flush()
        check_all(plain_database, folder / "archive", [agent])
        assert standing_by.stop() == 0
