"""`python -m bench wire`: bytes on the wire per reading, everything included, for batches as real agents make them.

Each case runs the agent's own batching on simulated sensors (quantised random walks, one machine of so many tags) for
ten minutes of plant time, with its births; bytes are those of the whole Kafka payloads, heads and all, and once more
as the producer's zstd leaves them. The peer is the same readings as JSON objects in arrays, one message a flush, as
gateways that speak JSON send them, plain and zstd.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from common.codec import CodecName
from common.model import ReadingFrame, Route
from common.wire import Head, seal
from edge_agent.adapters.modbus.config import ModbusDevice
from edge_agent.batching import Batcher
from edge_agent.filters.chain import TagFilters
from edge_agent.series import build_series_table

SECONDS: Final = 600
START_US: Final = 1_767_225_600_000_000
BIRTH_EVERY_S: Final = 600


@dataclass(frozen=True, slots=True)
class Case:
    """So many tags, polled every so often, flushed every so often; by exception if `deadband` says so."""

    name: str
    tags: int
    interval_us: int
    flush_s: int
    deadband: float | None = None
    seconds: int = SECONDS


CASES: Final = (
    Case("200 tags at 1 Hz, flush 1 s", 200, 1_000_000, 1),
    Case("200 tags at 1 Hz, flush 10 s", 200, 1_000_000, 10),
    Case("200 tags at 1 Hz, flush 60 s", 200, 1_000_000, 60),
    Case("20 tags at 1 kHz, flush 1 s", 20, 1_000, 1, seconds=20),
    Case("1,000 tags by exception, 1 Hz polls, flush 10 s", 1000, 1_000_000, 10, deadband=0.35),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Bytes per reading that was sent."""

    case: str
    codec: str
    readings: int
    bytes_per_reading: float
    ratio: float
    zstd_bytes_per_reading: float
    json_bytes_per_reading: float
    json_zstd_bytes_per_reading: float


def polls(case: Case) -> Iterator[ReadingFrame]:
    """Yield the frames of one poll each: steps of 0.1 around a level, gateway time with some ms of jitter."""
    random = np.random.default_rng(7)
    rows = np.arange(case.tags, dtype=np.int32)
    level = random.uniform(20, 80, case.tags).round(1)
    for poll in range(case.seconds * 1_000_000 // case.interval_us):
        level = (level + random.integers(-1, 2, case.tags) * 0.1).round(1)
        jitter_us = int(random.integers(0, 4)) * 1000 if case.interval_us > 10_000 else 0
        ts_us = np.full(case.tags, START_US + poll * case.interval_us + jitter_us, np.int64)
        yield ReadingFrame(rows, ts_us, level, np.zeros(case.tags, np.int32))


def measure(case: Case, codec: CodecName) -> Outcome:
    """Send a case through filters and batching."""
    tags = [
        {
            "name": f"sensor_{number}",
            "address": f"holding:{number}",
            "unit": "degC",
            "sensor_type": "temperature",
            **({} if case.deadband is None else {"deadband_absolute": case.deadband}),
        }
        for number in range(case.tags)
    ]
    device = {"name": "press-1", "address": "192.0.2.1:502", "poll_interval_s": max(0.01, case.interval_us / 1e6)}
    table = build_series_table([ModbusDevice.model_validate({**device, "tags": tags})])
    filters, batcher = TagFilters(table), Batcher(table, "plant-1", "gw-1", 1024, codec)
    payloads = [seal(birth.schema, _head(1), birth.body) for birth in batcher.births()]
    payloads *= 1 + (case.seconds - 1) // BIRTH_EVERY_S
    readings = json_bytes = zstd_bytes = 0
    polls_per_flush = case.flush_s * 1_000_000 // case.interval_us
    for number, frame in enumerate(polls(case), start=1):
        batcher.add(filters.apply(frame))
        if number % polls_per_flush == 0 and batcher.gathered:
            gathered = batcher.take()
            readings += len(gathered)
            payloads += [seal(draft.schema, _head(number), draft.body) for draft in batcher.encode(gathered)]
            text = _as_json(gathered)
            json_bytes += len(text)
            zstd_bytes += len(pa.compress(text, "zstd", asbytes=True))
    mean = sum(map(len, payloads)) / readings
    packed = sum(min(len(payload), len(pa.compress(payload, "zstd", asbytes=True))) for payload in payloads) / readings
    peers = (json_bytes / readings, zstd_bytes / readings)
    return Outcome(case.name, codec, readings, mean, 16 / mean, packed, *peers)


def _head(seq: int) -> Head:
    return Head("gw-1", "press-1", Route.STREAM, START_US // 1000, seq, START_US)


def _as_json(frame: ReadingFrame) -> bytes:
    columns = zip(frame.series.tolist(), frame.ts_us.tolist(), frame.values.tolist(), strict=True)
    points = [{"tag": f"sensor_{row}", "ts": ts // 1000, "value": value, "quality": 0} for row, ts, value in columns]
    return json.dumps({"machine": "press-1", "points": points}, separators=(",", ":")).encode()


def main(arguments: list[str]) -> int:
    """Print every case at two levels."""
    parser = argparse.ArgumentParser(prog="python -m bench wire")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    levels: tuple[CodecName, ...] = ("balanced", "small")
    outcomes = [measure(case, codec) for case in CASES for codec in levels]
    if args.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
        return 0
    table = Table(
        "case", "codec", "readings", "B/reading", "ratio to 16 B", "with zstd", "JSON B", "JSON + zstd B", title="wire"
    )
    for one in outcomes:
        ours = (one.bytes_per_reading, one.ratio, one.zstd_bytes_per_reading)
        numbers = (*ours, one.json_bytes_per_reading, one.json_zstd_bytes_per_reading)
        table.add_row(one.case, one.codec, f"{one.readings:,}", *(f"{number:.2f}" for number in numbers))
    Console(width=140).print(table)
    return 0
