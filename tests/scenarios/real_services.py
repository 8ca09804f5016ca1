"""A clean slate on the real Kafka and PostgreSQL of `make services`: no topics of ours, a database of its own."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg
from confluent_kafka.admin import AdminClient

from deploy.dev.ground import Service
from deploy.dev.services import START_TIMEOUT_S, Services

TOPIC_PREFIX = "forebay."


class KafkaControl:
    """Stops and starts the broker as an operator would."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def stop(self) -> None:
        self._service.stop()

    def start(self) -> None:
        self._service.start(START_TIMEOUT_S)


@dataclass(frozen=True)
class RealServices:
    bootstrap_servers: str
    dsn: str
    kafka: KafkaControl


@contextmanager
def real_services() -> Iterator[RealServices]:
    """Start the services unless they run; the database made here is dropped afterwards."""
    services = Services()
    endpoints = services.up()
    bootstrap = endpoints["kafka"]["bootstrap_servers"]
    admin_dsn = endpoints["postgres"]["dsn"]
    delete_topics(bootstrap)
    name = f"forebay_test_{secrets.token_hex(4)}"
    asyncio.run(execute(admin_dsn, f"CREATE DATABASE {name}"))
    try:
        yield RealServices(bootstrap, with_database(admin_dsn, name), KafkaControl(services.kafka))
    finally:
        services.up()
        asyncio.run(execute(admin_dsn, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


def delete_topics(bootstrap: str) -> None:
    """Remove our topics and wait until they are gone."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    deadline = time.monotonic() + 30
    while ours := [name for name in admin.list_topics(timeout=10).topics if name.startswith(TOPIC_PREFIX)]:
        assert time.monotonic() < deadline, f"topics do not go away: {ours}"
        for future in admin.delete_topics(ours).values():
            future.exception()
        time.sleep(0.2)


def with_database(dsn: str, name: str) -> str:
    base, _, query = dsn.partition("?")
    stem = base.rsplit("/", 1)[0]
    return f"{stem}/{name}" + (f"?{query}" if query else "")


async def execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
