"""Speed and ratio of the block codecs, on one core, against zstd level 3 on the same readings uncompressed.

`python bench/codec.py [FILE.parquet]`. FILE has the columns series (string), ts_ms or ts_us (int64), value (float64);
without it, the development signals beside the checkout, and without those (loudly) seeded synthetic ones. Every encoded
block is decoded and compared bit for bit before anything is timed. Ratios are against 16 bytes a reading.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import codec

DEVELOPMENT_SIGNALS = Path(__file__).resolve().parents[2] / "shared/data/signals/development.parquet"
BLOCK_READINGS = (128, 1024, 4096)
BYTES_PER_READING = 16


@dataclass(frozen=True)
class Signal:
    """The readings of one series."""

    name: str
    ts: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """What one codec did with all signals; speeds in million readings a second."""

    codec: str
    block: int
    readings: int
    ratio: float
    encode_m_per_s: float
    decode_m_per_s: float


def load_signals(path: Path) -> list[Signal]:
    """Read a signal file; source order is kept."""
    table = pq.read_table(path)
    unit = 1 if "ts_us" in table.column_names else 1000
    series = np.asarray(table["series"])
    ts = table["ts_us" if unit == 1 else "ts_ms"].to_numpy() * unit
    values = table["value"].to_numpy()
    names = dict.fromkeys(series.tolist())
    return [Signal(name, ts[series == name], values[series == name]) for name in names]


def synthetic_signals(readings: int = 20_000, seed: int = 1) -> list[Signal]:
    """Stand in for real signals: a rounded walk, noise at full precision, a counter, and a mostly constant state."""
    random = np.random.default_rng(seed)
    step = 1_000_000 + 1000 * random.integers(-3, 4, readings)
    start = 1_700_000_000_000_000
    columns = {
        "walk": np.round(70 + np.cumsum(random.normal(0, 0.05, readings)), 2),
        "noise": random.normal(0, 1, readings),
        "counter": np.arange(readings, dtype=np.float64),
        "state": np.repeat(random.integers(0, 4, readings // 500 + 1), 500)[:readings].astype(np.float64),
    }
    return [Signal(name, start + np.cumsum(step), values) for name, values in columns.items()]


def evenly_spaced(signals: Iterable[Signal]) -> list[Signal]:
    """Give every signal a constant step, so that next to nothing but its values remains to be encoded."""
    return [Signal(one.name, np.arange(len(one.ts), dtype=np.int64) * 1_000_000, one.values) for one in signals]


def seconds_median(work: Callable[[], object], runs: int) -> float:
    """Time `work`; each run lasts at least 50 ms, the first is thrown away."""
    once = -time.perf_counter()
    work()
    once += time.perf_counter()
    repeats = max(1, int(0.05 / max(once, 1e-6)))
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        times.append((time.perf_counter() - begin) / repeats)
    return statistics.median(times[1:])


def bench_kernel(name: str, codec_name: codec.CodecName, signals: list[Signal], block: int, runs: int) -> Result:
    """Encode and decode every signal, one call each."""
    inputs = [
        (one.ts, one.values, np.zeros(len(one.ts), np.int32), np.append(np.arange(0, len(one.ts), block), len(one.ts)))
        for one in signals
    ]
    encoded = [codec.encode_blocks(*columns, codec_name) for columns in inputs]
    for (ts, values, statuses, _), blocks in zip(inputs, encoded, strict=True):
        decoded = codec.decode_blocks(*blocks)
        same = np.array_equal(decoded.values.view(np.int64), values.view(np.int64))
        if not same or not np.array_equal(decoded.ts, ts) or not np.array_equal(decoded.statuses, statuses):
            sys.exit(f"{name}: a signal did not come back bit for bit")
    return _result(
        name,
        block,
        signals,
        sum(len(blocks.data) for blocks in encoded),
        seconds_median(lambda: [codec.encode_blocks(*columns, codec_name) for columns in inputs], runs),
        seconds_median(lambda: [codec.decode_blocks(*blocks) for blocks in encoded], runs),
    )


def bench_zstd(signals: list[Signal], block: int, runs: int) -> Result:
    """Compress the timestamps and values of each block as they are in memory, in one call a block."""
    zstd = pa.Codec("zstd", compression_level=3)
    raw = [
        one.ts[begin : begin + block].tobytes() + one.values[begin : begin + block].tobytes()
        for one in signals
        for begin in range(0, len(one.ts), block)
    ]
    packed = [zstd.compress(part, asbytes=True) for part in raw]
    return _result(
        "zstd level 3",
        block,
        signals,
        sum(map(len, packed)),
        seconds_median(lambda: [zstd.compress(part) for part in raw], runs),
        seconds_median(
            lambda: [zstd.decompress(part, len(whole)) for part, whole in zip(packed, raw, strict=True)], runs
        ),
    )


def _result(name: str, block: int, signals: list[Signal], size: int, encode_s: float, decode_s: float) -> Result:
    readings = sum(len(one.ts) for one in signals)
    return Result(
        name,
        block,
        readings,
        round(readings * BYTES_PER_READING / size, 3),
        round(readings / encode_s / 1e6, 1),
        round(readings / decode_s / 1e6, 1),
    )


def bench_all(signals: list[Signal], runs: int) -> list[Result]:
    """Run every codec at every block size."""
    results = []
    for block in BLOCK_READINGS:
        results += [
            bench_kernel("gorilla", "gorilla", signals, block, runs),
            bench_kernel("gorilla, values only", "gorilla", evenly_spaced(signals), block, runs),
            bench_kernel("raw", "raw", signals, block, runs),
            bench_zstd(signals, block, runs),
        ]
    return results


def bench_each(signals: list[Signal], runs: int) -> dict[str, Result]:
    """Gorilla on the values of every signal alone, in blocks of 1024."""
    return {
        one.name: bench_kernel("gorilla, values only", "gorilla", evenly_spaced([one]), 1024, runs) for one in signals
    }


def print_table(rows: Iterable[tuple[str, Result]]) -> None:
    """Print results for people."""
    print(f"{'':28} {'block':>6} {'ratio':>7} {'enc M/s':>8} {'dec M/s':>8}")
    for label, row in rows:
        print(f"{label:28} {row.block:6} {row.ratio:7.2f} {row.encode_m_per_s:8.1f} {row.decode_m_per_s:8.1f}")


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="signals to use")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of which the median is printed")
    parser.add_argument("--each", action="store_true", help="also every signal alone")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    path = options.file or DEVELOPMENT_SIGNALS
    if options.file is None and not path.exists():
        print("NO REAL SIGNALS FOUND: these figures are of seeded SYNTHETIC signals.", file=sys.stderr)
        signals = synthetic_signals()
    else:
        signals = load_signals(path)
    results = bench_all(signals, options.runs)
    each = bench_each(signals, options.runs) if options.each else {}
    if options.json:
        print(json.dumps({"pooled": [asdict(row) for row in results], "each": {k: asdict(v) for k, v in each.items()}}))
        return
    print_table([(row.codec, row) for row in results])
    if each:
        print("\ngorilla, values only")
        print_table(each.items())


if __name__ == "__main__":
    main()
