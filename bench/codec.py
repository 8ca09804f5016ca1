"""Ratio and speed of the block codecs beside their peers, on one core, in one run.

`python -m bench codec [FILE.parquet]`. FILE has the columns series (string), ts_ms or ts_us (int64), value (float64);
without it, the development signals beside the checkout, and without those (loudly) seeded synthetic ones. Ratios are
against 16 bytes a reading, timestamps and headers included; every codec compresses blocks of the same readings alone,
except Parquet, which gets a file per series with row groups of that size, and DuckDB, which gets one table with row
groups of its own. What a codec makes is decoded and compared before it is timed.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.codec_picture import draw
from common import codec

DEVELOPMENT_SIGNALS = Path(__file__).resolve().parents[2] / "shared/data/signals/development.parquet"
BLOCK_READINGS = (128, 1024, 4096)
BYTES_PER_READING = 16
# Of a series' span; the row is named for it.
LOSSY_SPAN = 0.001


@dataclass(frozen=True)
class Signal:
    """The readings of one series."""

    name: str
    ts: NDArray[np.int64]
    values: NDArray[np.float64]

    def blocks(self, size: int) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Timestamps and values, cut."""
        cuts = range(0, len(self.ts), size)
        return [(self.ts[cut : cut + size], self.values[cut : cut + size]) for cut in cuts]


@dataclass(frozen=True)
class Result:
    """What one codec did with all signals; speeds in million readings a second, 0 where there is none to tell."""

    codec: str
    block: int
    readings: int
    ratio: float
    encode_m_per_s: float
    decode_m_per_s: float


@dataclass(frozen=True)
class Work:
    """A codec put to work on all signals: the bytes it makes, and calls to time."""

    size: int
    encode: Callable[[], object]
    decode: Callable[[], object]


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


def check(name: str, signal: Signal, ts: NDArray[np.int64], values: NDArray[np.float64], bound: float = 0.0) -> None:
    """Stop the benchmark if a signal has not come back."""
    same = values.view(np.int64) == signal.values.view(np.int64)
    if bound:
        same |= np.abs(values - signal.values) <= bound
    if not same.all() or not np.array_equal(ts, signal.ts):
        sys.exit(f"{name}: {signal.name} did not come back")


def kernel(level: codec.CodecName, signals: list[Signal], block: int, span: float = 0.0) -> Work:
    """Ours: one call a signal, with its own memory of what suited."""
    inputs = []
    for one in signals:
        offsets = np.append(np.arange(0, len(one.ts), block), len(one.ts))
        finite = one.values[np.isfinite(one.values)]
        bound = float(np.ptp(finite)) * span if span else 0.0
        inputs.append((one, offsets, np.zeros(len(one.ts), np.int32), np.full(len(offsets) - 1, bound)))

    def encode() -> list[codec.Blocks]:
        return [
            codec.encode_blocks(
                one.ts,
                one.values,
                statuses,
                offsets,
                level,
                sticky=codec.Sticky(1),
                series=np.zeros(len(offsets) - 1, np.int64),
                max_error=bounds if span else None,
            )
            for one, offsets, statuses, bounds in inputs
        ]

    encoded = encode()
    for (one, _, _, bounds), blocks in zip(inputs, encoded, strict=True):
        decoded = codec.decode_blocks(*blocks)
        check(level, one, decoded.ts, decoded.values, float(bounds[0]))
    size = sum(len(blocks.data) for blocks in encoded)
    return Work(size, encode, lambda: [codec.decode_blocks(*blocks) for blocks in encoded])


def zstd(signals: list[Signal], block: int) -> Work:
    """Zstandard level 3 on the timestamps and values of each block as they are in memory."""
    packer = pa.Codec("zstd", compression_level=3)
    raw = [ts.tobytes() + values.tobytes() for one in signals for ts, values in one.blocks(block)]
    packed = [packer.compress(part, asbytes=True) for part in raw]
    pairs = list(zip(packed, map(len, raw), strict=True))
    if any(
        packer.decompress(part, size, asbytes=True) != whole for (part, size), whole in zip(pairs, raw, strict=True)
    ):
        sys.exit("zstd: a block did not come back")
    return Work(
        sum(map(len, packed)),
        lambda: [packer.compress(part) for part in raw],
        lambda: [packer.decompress(part, size) for part, size in pairs],
    )


def pcodec(signals: list[Signal], block: int) -> Work:
    """Pcodec at its default level, the two columns of each block apart."""
    from pcodec import ChunkConfig, standalone  # noqa: PLC0415 - the peer may not be installed

    config = ChunkConfig()
    columns = [column for one in signals for pair in one.blocks(block) for column in pair]
    packed = [standalone.simple_compress(column, config) for column in columns]
    for column, part in zip(columns, packed, strict=True):
        if standalone.simple_decompress(part).tobytes() != column.tobytes():
            sys.exit("pcodec: a block did not come back")
    return Work(
        sum(map(len, packed)),
        lambda: [standalone.simple_compress(column, config) for column in columns],
        lambda: [standalone.simple_decompress(part) for part in packed],
    )


def parquet(signals: list[Signal], block: int) -> Work:
    """A file a series, in the encoding of values that makes it smallest; row groups of `block` readings."""

    def write(one: Signal, encoding: str) -> bytes:
        sink = io.BytesIO()
        dictionary = ["value"] if encoding == "DICTIONARY" else False
        encodings = {"ts": "DELTA_BINARY_PACKED"} | ({} if dictionary else {"value": encoding})
        pq.write_table(
            pa.table({"ts": one.ts, "value": one.values}),
            sink,
            row_group_size=block,
            compression="zstd",
            use_dictionary=dictionary,
            column_encoding=encodings,
            write_statistics=False,
        )
        return sink.getvalue()

    best = []
    for one in signals:
        files = {encoding: write(one, encoding) for encoding in ("BYTE_STREAM_SPLIT", "DICTIONARY", "PLAIN")}
        best.append(min(files, key=lambda encoding: len(files[encoding])))
    written = [write(one, encoding) for one, encoding in zip(signals, best, strict=True)]
    for one, file in zip(signals, written, strict=True):
        table = pq.read_table(io.BytesIO(file))
        check("parquet", one, table["ts"].to_numpy(), table["value"].to_numpy())
    return Work(
        sum(map(len, written)),
        lambda: [write(one, encoding) for one, encoding in zip(signals, best, strict=True)],
        lambda: [pq.read_table(io.BytesIO(file), use_threads=False) for file in written],
    )


@contextlib.contextmanager
def duckdb_work(signals: list[Signal]) -> Iterator[Work]:
    """One DuckDB table, one series after another (a table takes at least 256 KiB a column); the size is the file's."""
    table = pa.table(
        {
            "series": np.repeat(np.arange(len(signals), dtype=np.int32), [len(one.ts) for one in signals]),
            "ts": np.concatenate([one.ts for one in signals]),
            "value": np.concatenate([one.values for one in signals]),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signals.duckdb"

        def write() -> None:
            path.unlink(missing_ok=True)
            with duckdb.connect(str(path), config={"threads": 1}) as connection:
                connection.register("readings", table)
                connection.execute("create table signals as select * from readings")
                connection.execute("checkpoint")

        def read() -> dict[str, NDArray[np.float64]]:
            with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as connection:
                return connection.execute("select ts, value from signals").fetchnumpy()

        write()
        columns = read()
        everything = Signal("all", table["ts"].to_numpy(), table["value"].to_numpy())
        check("duckdb", everything, columns["ts"].astype(np.int64), columns["value"])
        yield Work(path.stat().st_size, write, read)


def seconds_median(work: Callable[[], object], runs: int) -> float:
    """Time `work`; each run lasts at least 50 ms, the first is thrown away."""
    begin = time.perf_counter()
    work()
    repeats = max(1, int(0.05 / max(time.perf_counter() - begin, 1e-6)))
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        times.append((time.perf_counter() - begin) / repeats)
    return statistics.median(times)


def result(name: str, block: int, signals: list[Signal], work: Work, runs: int) -> Result:
    """Time a codec's work."""
    readings = sum(len(one.ts) for one in signals)
    encode_s = seconds_median(work.encode, runs)
    decode_s = seconds_median(work.decode, runs)
    return Result(
        name,
        block,
        readings,
        round(readings * BYTES_PER_READING / work.size, 3),
        round(readings / encode_s / 1e6, 1),
        round(readings / decode_s / 1e6, 1),
    )


def evenly_spaced(signals: list[Signal]) -> list[Signal]:
    """Give every signal a constant step, so that next to nothing but its values remains to be encoded."""
    return [Signal(one.name, np.arange(len(one.ts), dtype=np.int64) * 1_000_000, one.values) for one in signals]


def bench_all(signals: list[Signal], runs: int, blocks: list[int]) -> list[Result]:
    """Run every codec at every block size."""
    levels: tuple[codec.CodecName, ...] = ("gorilla", "fast", "balanced", "small")
    results = []
    for block in blocks:
        works: list[tuple[str, Callable[[list[Signal], int], Work]]] = [
            *((f"forebay {level}", partial(kernel, level)) for level in levels),
            (f"forebay small, {LOSSY_SPAN:.1%} of span", partial(kernel, "small", span=LOSSY_SPAN)),
            ("pcodec", pcodec),
            ("zstd level 3", zstd),
            ("Parquet, best encoding + zstd", parquet),
        ]
        even = evenly_spaced(signals)
        results.append(result("forebay gorilla, values only", block, even, kernel("gorilla", even, block), runs))
        for name, prepare in works:
            try:
                work = prepare(signals, block)
            except ImportError as error:
                print(f"SKIPPED {name}: {error.name} is not installed", file=sys.stderr)
                continue
            results.append(result(name, block, signals, work, min(runs, 3) if name.startswith("Parquet") else runs))
    with duckdb_work(signals) as work:
        results.append(result("DuckDB table (its own groups)", 0, signals, work, min(runs, 3)))
    return results


def print_table(results: list[Result]) -> None:
    """Print results for people."""
    print(f"{'':31} {'block':>6} {'ratio':>7} {'enc M/s':>8} {'dec M/s':>8}")
    for row in results:
        block = str(row.block or "-")
        print(f"{row.codec:31} {block:>6} {row.ratio:7.2f} {row.encode_m_per_s:8.1f} {row.decode_m_per_s:8.1f}")


def main(arguments: list[str]) -> int:
    """Run the suite with these command line arguments; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench codec", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", nargs="?", type=Path, help="signals to use")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of which the median is printed")
    parser.add_argument("--block", type=int, action="append", help="readings a block (default: 128, 1024 and 4096)")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw ratio over speed, at blocks of 1024")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    path = options.file or DEVELOPMENT_SIGNALS
    if options.file is None and not path.exists():
        print("NO REAL SIGNALS FOUND: these figures are of seeded SYNTHETIC signals.", file=sys.stderr)
        signals = synthetic_signals()
    else:
        signals = load_signals(path)
    results = bench_all(signals, options.runs, options.block or list(BLOCK_READINGS))
    if options.picture:
        drawn = [row for row in results if row.block in {0, 1024} and "values only" not in row.codec]
        options.picture.write_text(draw([(row.codec, row.encode_m_per_s, row.ratio) for row in drawn]), "utf-8")
    if options.json:
        print(json.dumps({"suite": "codec", "results": [asdict(row) for row in results]}))
    else:
        print_table(results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
