"""Helpers of the ingest tests: databases, configs, worker processes, and the comparison with the truth."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import numpy as np
import pyarrow.dataset as ds
from confluent_kafka import Producer

from cloud_ingest.broker import silent
from cloud_ingest.config import IngestConfig
from cloud_ingest.store.connection import Store
from cloud_ingest.store.migrate import migrate
from common.config import parse
from tests.integration.traffic import FakeAgent
from tests.integration.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Database:
    """A database of its own for one test."""

    dsn: str
    plain: bool

    def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return await connection.fetch(query, *arguments)
            finally:
                await connection.close()

        return in_loop(run())

    def value(self, query: str, *arguments: Any) -> Any:
        return self.fetch(query, *arguments)[0][0]


def in_loop(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(coroutine)


def make_database(server_dsn: str, *, plain: bool) -> Database:
    name = f"t{uuid.uuid4().hex[:12]}"
    parts = urlsplit(server_dsn)
    database = Database(urlunsplit(parts._replace(path=f"/{name}")), plain)

    async def make() -> None:
        connection = await asyncpg.connect(server_dsn)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        store = Store(config_of(database, Path("/nowhere")))
        async with store.connection() as connection:
            await migrate(connection, plain=plain)
        await store.close()

    in_loop(make())
    return database


def config_data(database: Database | None, folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a config with the embedded broker, quick to emit windows, keeping everything for ever."""
    data: dict[str, Any] = {
        "data_dir": str(folder),
        "ingest": {"idle_timeout_s": 0.5, "allowed_lateness_s": 2, "poll_timeout_ms": 50},
        "archive": {"interval_s": 1},
        "retention": {"readings_days": 0, "windows_days": 0, "ledger_days": 0, "dead_letters_days": 0},
        "http": {"port": free_port()},
    }
    if database is not None:
        data["store"] = {"dsn": database.dsn}
    for section, values in changes.items():
        data[section] = {**data.get(section, {}), **values} if isinstance(values, dict) else values
    return data


def config_of(database: Database | None, folder: Path, **changes: Any) -> IngestConfig:
    return parse(IngestConfig, config_data(database, folder, **changes), folder / "ingest.toml")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def to_toml(data: dict[str, Any]) -> str:
    """Render one level of tables, which is all that a config has."""
    plain = {key: value for key, value in data.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def cloud_ingest(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloud_ingest.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class WorkerProcess:
    """`cloud-ingest run` as a process that a test may kill."""

    def __init__(self, data: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / f"ingest-{uuid.uuid4().hex[:6]}.toml"
        self.config.write_text(to_toml(data))
        self.log = self.config.with_suffix(".log")
        self._port = data["http"]["port"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cloud_ingest.cli", "run", str(self.config)], cwd=ROOT, stderr=log, stdout=log
            )

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, within_s: float = 5.0) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(within_s)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=2) as answer:
                return json.loads(answer.read())
        except HTTPError as error:
            return json.loads(error.read())
        except (URLError, OSError):
            return {"ok": False}

    def metric(self, name: str) -> float:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=2) as answer:
                lines = answer.read().decode().splitlines()
        except (URLError, OSError):
            return -1.0
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running():
            self.kill()
        if os.environ.get("FOREBAY_SHOW_LOGS"):
            sys.stderr.write(self.log.read_text())


class Feeder:
    """A producer that keeps what it was given until it is delivered, as an edge agent's buffer does."""

    def __init__(self, bootstrap_servers: str) -> None:
        settings = {"bootstrap.servers": bootstrap_servers, "linger.ms": 1, "enable.idempotence": True}
        self._producer = Producer(settings, logger=silent)
        self.failed: list[str] = []

    def send(self, topic: str, key: str, *messages: bytes) -> None:
        for message in messages:
            self._producer.produce(topic, message, key=key, on_delivery=self._delivered)
        self._producer.poll(0)

    def agent(self, agent: FakeAgent, *messages: bytes) -> None:
        self.send(agent.topic, agent.machine_id, *messages)

    def flush(self) -> None:
        assert self._producer.flush(60) == 0
        assert not self.failed, self.failed

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self.failed.append(str(error))


def wait_for(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    wait_until(holds, within_s)


def truth_rows(agents: Iterable[FakeAgent]) -> list[tuple[Any, ...]]:
    return sorted(row for agent in agents for row in agent.truth.rows())


def stored_rows(database: Database) -> list[tuple[Any, ...]]:
    rows = database.fetch(
        "SELECT machine_id, tag, (extract(epoch FROM ts) * 1000000)::bigint, value, status_code FROM readings_named"
    )
    return _rows(*zip(*(tuple(row) for row in rows), strict=True)) if rows else []


def archived_rows(folder: Path) -> list[tuple[Any, ...]]:
    if not list(folder.glob("readings/date=*/*.parquet")):
        return []
    table = ds.dataset(folder / "readings", format="parquet").to_table()
    return _rows(
        table["machine_id"].to_pylist(),
        table["tag"].to_pylist(),
        table["ts"].cast("int64").to_pylist(),
        table["value"].to_pylist(),
        table["status_code"].to_pylist(),
    )


def _rows(
    machines: Sequence[str], tags: Sequence[str], ts: Sequence[int], values: Sequence[float], statuses: Sequence[int]
) -> list[tuple[Any, ...]]:
    bits = np.array(values, np.float64).view(np.uint64).tolist()
    return sorted(zip(machines, tags, ts, map(hex, bits), statuses, strict=True))


_RECOMPUTED = """
WITH direct AS (
    SELECT series_id, to_timestamp(floor(extract(epoch FROM ts) / {seconds}) * {seconds}) AS window_start,
           count(*) FILTER (WHERE good) AS count, count(*) FILTER (WHERE NOT good) AS bad_count,
           avg(value) FILTER (WHERE good) AS mean, min(value) FILTER (WHERE good) AS min,
           max(value) FILTER (WHERE good) AS max, stddev(value) FILTER (WHERE good) AS stddev,
           (array_agg(value ORDER BY ts) FILTER (WHERE good))[1] AS first,
           (array_agg(value ORDER BY ts DESC) FILTER (WHERE good))[1] AS last
    FROM (SELECT *, status_code >= 0 AND value <> 'NaN' AS good FROM readings) r GROUP BY 1, 2)
SELECT d.*, w.* FROM direct d FULL JOIN {table} w USING (series_id, window_start)
WHERE w.count IS DISTINCT FROM d.count OR w.bad_count IS DISTINCT FROM d.bad_count OR w.min IS DISTINCT FROM d.min
   OR w.max IS DISTINCT FROM d.max OR w.first IS DISTINCT FROM d.first OR w.last IS DISTINCT FROM d.last
   OR (w.mean IS NULL) <> (d.mean IS NULL) OR abs(w.mean - d.mean) > 1e-12 * greatest(abs(d.max), abs(d.min))
   OR (w.stddev IS NULL) <> (d.stddev IS NULL) OR abs(w.stddev - d.stddev) > 1e-7 * greatest(abs(d.max), abs(d.min))
"""


def wrong_windows(database: Database) -> list[asyncpg.Record]:
    """Return the windows that differ from a recomputation by SQL, missing ones included."""
    return [
        row
        for table, seconds in (("windows_1m", 60), ("windows_5m", 300))
        for row in database.fetch(_RECOMPUTED.format(table=table, seconds=seconds))
    ]


def check_all(database: Database, archive: Path, agents: Sequence[FakeAgent], within_s: float = 30.0) -> None:
    """Wait until everything sent is stored, archived and windowed; then compare with the truth, bit for bit."""
    truth = truth_rows(agents)
    wait_for(lambda: database.value("SELECT count(*) FROM readings") >= len(truth), within_s)
    assert stored_rows(database) == truth
    wait_for(lambda: len(archived_rows(archive)) >= len(truth), within_s)
    assert archived_rows(archive) == truth
    wait_for(lambda: not wrong_windows(database), within_s)
    for row in database.fetch(
        "SELECT machine_id, agent_id, epoch, upper(seen) - lower(seen) AS n, received FROM lanes"
    ):
        assert row["n"] == row["received"], dict(row)
    wait_for(lambda: database.value("SELECT count(*) FROM archive_files WHERE state = 'pending'") == 0, 5.0)
