"""The worker over a real Kafka and a real PostgreSQL: rebalances, outages, stale owners."""

import random
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

import pytest
from confluent_kafka.admin import AdminClient

from cloud_ingest.broker import silent
from common.model import Route
from deploy.dev.services import Services
from tests.integration.ingesting import (
    Database,
    Feeder,
    WorkerProcess,
    check_all,
    config_data,
    make_database,
    wait_for,
)
from tests.integration.traffic import BASE_US, FakeAgent

pytestmark = pytest.mark.services
SECOND = 1_000_000


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    """Services of the tests' own: they are killed on the way."""
    folder = Path(mkdtemp(prefix="forebay-"))
    folder.chmod(0o755)
    services = Services(folder)
    services.up()
    yield services
    services.down()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def kafka(services: Services) -> str:
    """A broker without our topics."""
    servers = services.start("kafka")["kafka"]["bootstrap_servers"]
    admin = AdminClient({"bootstrap.servers": servers}, logger=silent)

    def ours() -> list[str]:
        return [name for name in admin.list_topics(timeout=10).topics if name.startswith("forebay.")]

    if names := ours():
        for future in admin.delete_topics(names).values():
            future.result(10)
        wait_for(lambda: not ours())
    return servers


@pytest.fixture
def real_database(services: Services) -> Database:
    return make_database(services.start("postgres")["postgres"]["dsn"], plain=False)


def settings(database: Database, kafka: str, folder: Path, **ingest: Any) -> dict[str, Any]:
    data = config_data(
        database, folder, broker={"bootstrap_servers": kafka}, ingest=ingest, archive={"interval_s": 0.7}
    )
    data["ingest"] |= {"consumer_group": f"g-{uuid.uuid4().hex[:8]}", "session_timeout_s": 6}
    return data


def again(data: dict[str, Any]) -> dict[str, Any]:
    """The config of a further worker of the same group."""
    return {**data, "http": config_data(None, Path())["http"]}


class Traffic:
    """Agents that send until stopped, on a thread of their own."""

    def __init__(self, kafka: str, seed: int, pause_s: float = 0.005) -> None:
        self.agents = [FakeAgent(f"m{k}", seed=seed + k) for k in range(8)]
        self.agents += [FakeAgent(f"m{k}", ["vibration"], route=Route.BATCH, seed=100 + seed + k) for k in range(4)]
        self._feeder = Feeder(kafka)
        self._rng = random.Random(seed)
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce)

    def _produce(self) -> None:
        for agent in self.agents:
            self._feeder.agent(agent, agent.birth())
        number = 0
        while not self._stop.is_set():
            agent = self.agents[number % len(self.agents)]
            late_s = self._rng.choice([0, 0, 0, 0, 100])
            message = agent.batch(BASE_US + number * SECOND // 2 - late_s * SECOND, 10)
            self._feeder.agent(agent, *[message] * self._rng.choice([1, 1, 1, 2]))
            number += 1
            time.sleep(self._pause_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._feeder.flush()


def partitions_of(worker: WorkerProcess) -> int:
    return len(worker.health().get("partitions", ()))


def stored_more(database: Database) -> Callable[[], bool]:
    before = database.value("SELECT count(*) FROM batch_ledger")
    return lambda: database.value("SELECT count(*) FROM batch_ledger") > before


def test_workers_come_and_go(kafka: str, real_database: Database, folder: Path) -> None:
    data = settings(real_database, kafka, folder / "archive")
    data["data_dir"] = str(folder)
    with (
        WorkerProcess(data, folder) as first,
        WorkerProcess(again(data), folder) as second,
        WorkerProcess(again(data), folder) as third,
    ):
        third.kill()
        with Traffic(kafka, 11) as traffic:
            wait_for(lambda: partitions_of(first) > 0 and partitions_of(second) > 0, 40)
            first.kill()
            wait_for(lambda: partitions_of(second) == 8, 40)
            first.start()
            third.start()
            wait_for(lambda: all(partitions_of(one) for one in (first, second, third)), 40)
            assert second.stop() == 0
            wait_for(lambda: partitions_of(first) + partitions_of(third) == 8, 40)
        check_all(real_database, folder / "archive", traffic.agents, 60)
        assert first.stop() == third.stop() == 0


def test_a_worker_that_slept_cannot_write(kafka: str, real_database: Database, folder: Path) -> None:
    data = settings(real_database, kafka, folder)
    with WorkerProcess(data, folder) as first, Traffic(kafka, 12) as traffic:
        wait_for(lambda: partitions_of(first) == 8, 40)
        wait_for(stored_more(real_database))
        first.signal(signal.SIGSTOP)
        with WorkerProcess(again(data), folder) as second:
            wait_for(lambda: partitions_of(second) == 8, 40)
            wait_for(stored_more(real_database))
            first.signal(signal.SIGCONT)
            wait_for(lambda: partitions_of(first) > 0 and partitions_of(first) + partitions_of(second) == 8, 60)
            wait_for(stored_more(real_database))
            traffic.stop()
            check_all(real_database, folder / "archive", traffic.agents, 60)
            assert second.stop() == 0
        assert first.stop() == 0


def test_outages_are_waited_for(services: Services, kafka: str, real_database: Database, folder: Path) -> None:
    outages(services, kafka, real_database, folder, 4.0)


@pytest.mark.slow
def test_long_outages_are_waited_for(services: Services, kafka: str, real_database: Database, folder: Path) -> None:
    outages(services, kafka, real_database, folder, 20.0)


def outages(services: Services, kafka: str, database: Database, folder: Path, away_s: float) -> None:
    data = settings(database, kafka, folder)
    with WorkerProcess(data, folder) as worker, Traffic(kafka, 13, 0.02) as traffic:
        wait_for(lambda: partitions_of(worker) == 8, 40)
        for name, service, brutal in (
            ("broker", services.kafka, False),
            ("store", services.postgres, True),
            ("broker", services.kafka, True),
            ("store", services.postgres, False),
        ):
            wait_for(stored_more(database))
            (service.kill if brutal else service.stop)()
            wait_for(lambda name=name: not worker.health()[name]["up"], 20)  # type: ignore[misc]
            time.sleep(away_s)
            services.start("kafka" if name == "broker" else "postgres")
            wait_for(lambda: worker.health()["ok"], 30)
        traffic.stop()
        check_all(database, folder / "archive", traffic.agents, 90)
        assert worker.stop() == 0
    for service in ("broker", "store"):
        said = [e for e in worker.events() if e["event"] == "service.unreachable" and e["service"] == service]
        assert len(said) == 2, said
