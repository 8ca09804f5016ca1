"""`python -m bench ingest`: the whole cloud side on the real Kafka and PostgreSQL of `make services`.

Batches are built beforehand, with fresh values for every block, and lie in Kafka before the ingester starts: then the
time from its first to its last stored reading is its throughput. Latency is measured at a share of that throughput,
paced, from the moment a batch is handed to the producer to the commit that made its rows visible.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
import numpy as np
import psutil
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from common.codec import encode_blocks
from common.model import ReportMode, Route, SeriesDefinition
from common.wire import BIRTH, TELEMETRY_BATCH, Head, encode_batch_body, encode_birth_body, seal
from deploy.demo.rig import Rig, RigOptions
from tests.scenarios.real_services import RealServices, real_services

TAGS_PER_MACHINE = 10
STEP_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """How many series, and how many readings of each a batch carries."""

    series: int
    block: int
    readings: int

    @property
    def machines(self) -> int:
        """Machines of TAGS_PER_MACHINE tags each."""
        return max(1, self.series // TAGS_PER_MACHINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run gave; CPU in percent of one core, latencies in milliseconds from hand-over to commit."""

    series: int
    block: int
    readings: int
    wire_bytes_per_reading: float
    readings_per_s: float
    ingest_cpu: float
    ingest_rss_mb: float
    paced_share: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch that waits for its head."""

    machine: int
    seq: int
    body: bytes

    @property
    def key(self) -> str:
        """The machine's id, which is the Kafka key."""
        return f"machine-{self.machine:06d}"

    def sealed(self, schema: str = TELEMETRY_BATCH) -> bytes:
        """Return the message, sent now."""
        return seal(schema, Head("bench", self.key, Route.STREAM, 1, self.seq, time.time_ns() // 1000), self.body)


class Plant:
    """Builds the messages of a load: births first, then batches in rounds over the machines."""

    def __init__(self, load: Load, seed: int = 1) -> None:
        self._load, self._random = load, np.random.default_rng(seed)
        series = tuple(
            SeriesDefinition(n, f"tag_{n}", "temperature", "degC", ReportMode.PERIODIC, STEP_US)
            for n in range(TAGS_PER_MACHINE)
        )
        self._birth_id, self._birth = encode_birth_body("bench", "gw", series)
        self._seq = 0
        history_us = (load.readings // load.series + 2 * load.block) * STEP_US  # event time ends at about now
        self._start_us = time.time_ns() // 1000 - history_us
        self._level = self._random.uniform(20, 80, (load.machines, TAGS_PER_MACHINE))

    @property
    def readings_per_batch(self) -> int:
        """Readings in each batch of a round."""
        return TAGS_PER_MACHINE * self._load.block

    def births(self) -> Iterator[Draft]:
        """Yield each machine's birth."""
        self._seq += 1
        return (Draft(machine, self._seq, self._birth) for machine in range(self._load.machines))

    def round(self) -> Iterator[Draft]:
        """Yield one batch a machine: a random walk in steps of 0.1 per series."""
        self._seq += 1
        shape = (TAGS_PER_MACHINE, self._load.block)
        ts_us = np.tile(self._start_us + np.arange(self._load.block, dtype=np.int64) * STEP_US, TAGS_PER_MACHINE)
        self._start_us += self._load.block * STEP_US
        cuts = np.arange(TAGS_PER_MACHINE + 1, dtype=np.int64) * self._load.block
        statuses, one_batch = np.zeros(ts_us.size, np.int32), np.array([0, TAGS_PER_MACHINE])
        aliases = np.arange(TAGS_PER_MACHINE, dtype=np.int32)
        for machine in range(self._load.machines):
            walk = self._level[machine][:, None] + np.cumsum(self._random.integers(-1, 2, shape), axis=1) * 0.1
            self._level[machine] = walk[:, -1]
            blocks = encode_blocks(ts_us, np.round(walk, 1).ravel(), statuses, cuts, "balanced", groups=one_batch)
            body = encode_batch_body(self._birth_id, (int(ts_us[0]), int(ts_us[-1])), ts_us.size, aliases, blocks)
            yield Draft(machine, self._seq, body)


def produce(producer: Producer, key: str, payload: bytes) -> None:
    """Hand a message over, waiting while the producer's queue is full."""
    while True:
        try:
            producer.produce(Route.STREAM.topic, payload, key.encode())
        except BufferError:
            producer.poll(0.1)
        else:
            return


def run(load: Load, services: RealServices, paced_share: float, paced_s: float) -> Outcome:
    """Measure one load on a clean slate."""
    plant = Plant(load)
    producer = Producer({"bootstrap.servers": services.bootstrap_servers, "linger.ms": 5, "acks": "all"})
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
        options = RigOptions(kafka=services.bootstrap_servers, dsn=services.dsn)
        with Rig(Path(folder), options) as rig:
            rig.write_ingest_config()
            rig.start_ingest()
            rig.ingest.stop()  # tables and topics are there now
            readings = wire_bytes = 0
            for birth in plant.births():
                produce(producer, birth.key, birth.sealed(BIRTH))
            while readings < load.readings:
                for draft in plant.round():
                    payload = draft.sealed()
                    wire_bytes += len(payload)
                    readings += plant.readings_per_batch
                    produce(producer, draft.key, payload)
                producer.poll(0)
            producer.flush()
            rate, cpu, rss = _measure_throughput(rig, readings)
            latencies = _measure_latency(plant, producer, services.dsn, rate * paced_share, paced_s)
            rig.ingest.stop()
    return Outcome(load.series, load.block, readings, wire_bytes / readings, rate, cpu, rss, paced_share, *latencies)


def _measure_throughput(rig: Rig, readings: int) -> tuple[float, float, float]:
    """Drain what lies in Kafka; returns readings/s between the first and the last stored one, CPU %, RSS MB."""
    rig.start_ingest()
    process = psutil.Process(rig.ingest.pid)
    stored = lambda: rig.metrics(rig.ingest_port).get("forebay_ingest_readings_total", 0.0)  # noqa: E731
    rig.wait("the first readings", lambda: stored() > 0, 60, rig.ingest)
    first, started, cpu = stored(), time.monotonic(), process.cpu_times()
    rig.wait("everything to be stored", lambda: stored() >= readings, 600, rig.ingest)
    took = time.monotonic() - started
    busy = process.cpu_times()
    seconds = busy.user + busy.system - cpu.user - cpu.system
    return (readings - first) / took, 100 * seconds / took, process.memory_info().rss / 1e6


def _measure_latency(plant: Plant, producer: Producer, dsn: str, rate: float, seconds: float) -> tuple[float, float]:
    """Send at `rate` readings/s for `seconds`; returns p50 and p99 in ms from sending to commit."""
    drafts: list[Draft] = []
    while len(drafts) * plant.readings_per_batch < rate * seconds:
        drafts += plant.round()  # built beforehand: the generator must not be what is measured
    since_us = time.time_ns() // 1000
    started = time.monotonic()
    for number, draft in enumerate(drafts):
        due = started + number * plant.readings_per_batch / rate
        if (pause := due - time.monotonic()) > 0:
            producer.poll(0)
            time.sleep(pause)
        produce(producer, draft.key, draft.sealed())
    producer.flush()
    time.sleep(1.0)
    return asyncio.run(_percentiles(dsn, since_us))


async def _percentiles(dsn: str, since_us: int) -> tuple[float, float]:
    connection = await asyncpg.connect(dsn)
    try:
        p50, p99 = await connection.fetchval(
            "SELECT percentile_cont(array[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM stored_at - sent_at)) "
            "FROM batch_ledger WHERE kind = 'batch' AND sent_at >= to_timestamp($1::float8 / 1e6)",
            since_us,
        )
    finally:
        await connection.close()
    return float(p50) * 1000, float(p99) * 1000


def main(arguments: list[str]) -> int:
    """Run every load; medians over the runs."""
    parser = argparse.ArgumentParser(prog="python -m bench ingest")
    parser.add_argument("--readings", type=int, default=5_000_000, help="per run (default 5,000,000)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--paced-share", type=float, default=0.5)
    parser.add_argument("--paced-seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    outcomes = []
    for series, block in ((1000, 10), (1000, 100)):
        load = Load(series, block, args.readings if block > 10 else args.readings // 4)
        runs = []
        for _ in range(args.runs):
            with real_services() as services:
                runs.append(run(load, services, args.paced_share, args.paced_seconds))
        outcomes.append(_median(runs))
    if args.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
        return 0
    table = Table(
        "series", "readings/block", "readings/s", "wire B/reading", "CPU", "RSS", "p50", "p99", title="ingest"
    )
    for one in outcomes:
        table.add_row(
            f"{one.series:,}",
            str(one.block),
            f"{one.readings_per_s:,.0f}",
            f"{one.wire_bytes_per_reading:.2f}",
            f"{one.ingest_cpu:.0f} %",
            f"{one.ingest_rss_mb:.0f} MB",
            f"{one.p50_ms:.0f} ms",
            f"{one.p99_ms:.0f} ms",
        )
    Console(width=120).print(table)
    print(f"latency: hand-over to commit, at {args.paced_share:.0%} of the measured throughput; medians of {args.runs}")
    return 0


def _median(runs: list[Outcome]) -> Outcome:
    columns = {name: statistics.median(getattr(one, name) for one in runs) for name in Outcome.__slots__}
    return Outcome(**columns)
