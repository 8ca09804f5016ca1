"""The services of `make services`: real, on the loopback, restartable in the middle of a test, gone after `down`."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import asyncpg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from cloud_ingest.postgres_install import find_installation
from deploy.dev.ground import pick_port
from deploy.dev.services import Services, variables
from tests.integration.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder of the tests' own: a person's running services are left alone."""
    folder = Path(mkdtemp(prefix="forebay-services-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def services(folder: Path) -> Iterator[Services]:
    services = Services(folder)
    services.up()
    yield services
    services.down()
    assert services.running() == {"kafka": False, "postgres": False}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.dev.services", *arguments],
        cwd=ROOT,
        env={**os.environ, "FOREBAY_SERVICES_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def produce(bootstrap: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "log_level": 0})
    producer.produce(topic, value, partition=0)
    assert producer.flush(20) == 0


def first(bootstrap: str, topic: str) -> bytes | None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    message = consumer.poll(20)
    consumer.close()
    assert message is not None
    assert message.error() is None
    return message.value()


def ask(dsn: str, *statements: str) -> Any:
    async def session() -> Any:
        connection = await asyncpg.connect(dsn, timeout=20)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(session())


def test_up_may_be_said_twice(services: Services) -> None:
    before = services.kafka.processes()
    assert services.up() == services.endpoints()
    assert services.kafka.processes() == before


def test_topics_appear_with_four_partitions(services: Services) -> None:
    bootstrap = services.endpoints()["kafka"]["bootstrap_servers"]
    produce(bootstrap, "new", b"x")
    topics = Producer({"bootstrap.servers": bootstrap}).list_topics(timeout=10).topics
    assert len(topics["new"].partitions) == 4


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_kafka_comes_back_at_the_same_address_with_what_it_had(services: Services, way: str) -> None:
    bootstrap = services.endpoints()["kafka"]["bootstrap_servers"]
    produce(bootstrap, f"kept-{way}", b"x")
    getattr(services.kafka, way)()
    assert not services.running()["kafka"]
    with socket.socket() as probe:
        host, port = bootstrap.split(":")
        assert probe.connect_ex((host, int(port))) != 0
    assert services.start("kafka")["kafka"]["bootstrap_servers"] == bootstrap
    assert first(bootstrap, f"kept-{way}") == b"x"


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_postgres_comes_back_at_the_same_address_with_what_was_committed(services: Services, way: str) -> None:
    dsn = services.endpoints()["postgres"]["dsn"]
    before = ask(
        dsn, "CREATE TABLE IF NOT EXISTS kept (n int)", "INSERT INTO kept VALUES (7)", "SELECT sum(n) FROM kept"
    )
    getattr(services.postgres, way)()
    assert not services.running()["postgres"]
    assert services.start("postgres")["postgres"]["dsn"] == dsn
    assert ask(dsn, "SELECT sum(n) FROM kept") == before


def test_a_wrong_password_is_refused(services: Services) -> None:
    endpoint = services.endpoints()["postgres"]
    with pytest.raises(asyncpg.InvalidPasswordError):
        ask(f"postgresql://forebay:wrong@127.0.0.1:{endpoint['port']}/forebay", "SELECT 1")


def test_timescaledb_is_there_if_it_is_installed(services: Services) -> None:
    endpoint = services.endpoints()["postgres"]
    assert (endpoint["timescaledb"] == "yes") == find_installation().timescaledb
    if endpoint["timescaledb"] == "yes":
        assert ask(endpoint["dsn"], "CREATE EXTENSION timescaledb", "SELECT true") is True


def test_the_command_line_tells_machines_and_shells_the_same(services: Services, folder: Path) -> None:
    assert json.loads(run(folder, "env", "--json").stdout) == variables(services.endpoints())
    assert f"export FOREBAY_KAFKA={services.endpoints()['kafka']['bootstrap_servers']}" in run(folder, "env").stdout
    status = json.loads(run(folder, "status", "--json").stdout)
    assert status["kafka"]["running"]
    assert status["postgres"]["running"]


def test_services_of_another_folder_do_not_clash(services: Services, tmp_path: Path) -> None:
    other = Services(tmp_path / "other")
    assert other.running() == {"kafka": False, "postgres": False}
    other.down()
    assert services.running() == {"kafka": True, "postgres": True}


def test_a_service_that_cannot_start_says_why_and_leaves_nothing(services: Services) -> None:
    services.postgres.stop()
    local = services.folder / "postgres/data/local.conf"
    local.write_text("no_such_setting = 1\n")
    failed = run(services.folder, "postgres", "start")
    assert failed.returncode == 1
    assert "no_such_setting" in failed.stderr
    assert not services.running()["postgres"]
    local.write_text("")
    services.start("postgres")


def test_a_taken_port_is_left_to_its_owner() -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        taken = owner.getsockname()[1]
        assert pick_port(taken) != taken
    wait_until(lambda: pick_port(taken) == taken)
