"""The proof: what the plant served, what the buffer accepted, and what the store and the archive hold, compared.

Nothing of the code under test is used here, only the files and tables it left: the plant's truth (Parquet), the
buffer's segments (DuckDB), the tables (SQL) and the archive (Parquet).

A stored good reading is matched with the last response that the plant delivered for its series before the reading's
time. It is *wrong* when the values differ in any bit, *duplicated* when two readings match one response. A delivered
value that was not stored is *lost*, unless the deadband explains it: it lay within the deadband of the last stored
value, and the heartbeat was not over. Values served in the last moments before a kill -9 of the agent were read but
not accepted yet; they are counted apart, as *in hand*.
"""

import asyncio
import math
import struct
import tomllib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import duckdb

Key = tuple[str, str]
RAW_BYTES = 16
FLOOR_US = 2_000
"""A reading's time is floored to 1 ms, and requests of one poll less than 1 ms apart share one time."""
LATE_US = 5_000_000
PROBLEMS_KEPT = 8
OPEN_FOR = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Deadband:
    """When a tag may stay silent: absolute deadband (None: never) and heartbeat in microseconds (0: for ever)."""

    absolute: float | None
    heartbeat_us: int


@dataclass(slots=True)
class Reconciliation:
    """The closing numbers; `problems` holds the first few things that are not as they should be."""

    read: int = 0
    never_delivered: int = 0
    deadbanded: int = 0
    status_readings: int = 0
    accepted: int = 0
    batches: int = 0
    dropped: int = 0
    sent: int = 0
    stored: int = 0
    archived: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    in_hand: int = 0
    repeats_refused: int = 0
    dead_letters: int = 0
    windows: int = 0
    windows_differing: int = 0
    windows_open: int = 0
    wire_bytes: int = 0
    delays_ms: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def bytes_per_reading(self) -> float:
        """Whole Kafka payload, births included, over stored readings."""
        return self.wire_bytes / self.stored if self.stored else math.nan

    @property
    def good(self) -> bool:
        """Whether nothing was lost, stored twice, or changed on its way, anywhere."""
        faults = self.lost + self.duplicated + self.wrong + self.windows_differing + self.dropped
        return faults == 0 and self.stored > 0 and self.stored == self.accepted == self.archived

    def note(self, problem: str) -> None:
        """Keep the first few problems for people."""
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(problem)


def reconcile(
    truth: Path,
    edge_config: Path,
    dsn: str,
    archive: Path | None,
    kills_us: Sequence[int] = (),
    in_hand_us: int = 3_000_000,
) -> Reconciliation:
    """Compare everything; `kills_us`: when the agent was killed -9, `in_hand_us`: how far back its hands reach."""
    config = tomllib.loads(edge_config.read_text())
    result = Reconciliation()
    deadbands = _deadbands(config)
    stored = asyncio.run(_read_store(dsn, result))
    served = _served(truth, result)
    for key in sorted(served.keys() | stored.keys()):
        if key not in deadbands:
            result.note(f"{key[0]}/{key[1]} is not in the agent's config")
            continue
        _compare(key, served.get(key, []), stored.get(key, []), deadbands[key], (kills_us, in_hand_us), result)
    result.accepted, result.batches, result.dropped = _buffer_totals(Path(config["agent"]["data_dir"]) / "buffer")
    if result.accepted != result.stored:
        result.note(f"the buffer accepted {result.accepted} readings but {result.stored} are stored")
    result.archived = result.stored if archive is None else _archived(archive, stored, result)
    return result


def _deadbands(config: dict[str, Any]) -> dict[Key, Deadband]:
    found = {}
    for device in config["devices"]:
        for tag in device["tags"]:
            absolute = tag.get("deadband_absolute")
            if "deadband_percent" in tag:
                low, high = tag["range"]
                absolute = tag["deadband_percent"] / 100.0 * (high - low)
            machine = tag.get("machine_id") or device.get("machine_id") or device["name"]
            found[machine, tag["name"]] = Deadband(absolute, round(tag.get("heartbeat_s", 0) * 1_000_000))
    return found


def _served(truth: Path, result: Reconciliation) -> dict[Key, list[tuple[int, float]]]:
    """Return per series (served_us, value) of every delivered response, in order of time."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT machine_id, tag, served_us, value, delivered FROM read_parquet(?) ORDER BY served_us", [str(truth)]
        ).fetchall()
    found: dict[Key, list[tuple[int, float]]] = defaultdict(list)
    for machine, tag, served_us, value, delivered in rows:
        if delivered:
            found[machine, tag].append((served_us, value))
            result.read += 1
        else:
            result.never_delivered += 1
    return found


async def _read_store(dsn: str, result: Reconciliation) -> dict[Key, list[tuple[int, float, int]]]:
    """Read the tables; returns per series (ts_us, value, status_code) in order of time."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT s.machine_id, s.tag, (extract(epoch FROM r.ts) * 1000000)::bigint AS us, r.value, r.status_code "
            "FROM readings r JOIN series s USING (series_id) ORDER BY r.ts"
        )
        found: dict[Key, list[tuple[int, float, int]]] = defaultdict(list)
        for row in rows:
            found[row[0], row[1]].append((row[2], row[3], row[4]))
        result.stored = len(rows)
        await _read_ledger(connection, result)
        await _compare_windows(connection, result)
    finally:
        await connection.close()
    return found


async def _read_ledger(connection: asyncpg.Connection, result: Reconciliation) -> None:
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE kind = 'batch'), coalesce(sum(readings), 0), coalesce(sum(wire_bytes), 0) "
        "FROM batch_ledger"
    )
    _, result.sent, result.wire_bytes = (int(value) for value in row)
    result.dead_letters = await connection.fetchval("SELECT count(*) FROM dead_letters")
    result.repeats_refused = int(await connection.fetchval("SELECT coalesce(sum(repeated), 0) FROM lanes") or 0)
    percentiles = await connection.fetchrow(
        "SELECT percentile_cont(array[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM stored_at - first_ts)) w, "
        "percentile_cont(array[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM stored_at - sent_at)) b "
        "FROM batch_ledger WHERE kind = 'batch' AND NOT replayed"
    )
    for name, pair in (("poll to table", percentiles["w"]), ("sent to table", percentiles["b"])):
        if pair is not None:
            result.delays_ms[f"{name} p50"], result.delays_ms[f"{name} p99"] = (float(x) * 1000.0 for x in pair)


async def _compare_windows(connection: asyncpg.Connection, result: Reconciliation) -> None:
    """Recompute every one-minute window from the raw table, in SQL.

    A window of the last minutes that is not stored yet is open: its partition's watermark has not passed its end.
    """
    rows = await connection.fetch(
        """
        WITH raw AS (
            SELECT series_id, date_trunc('minute', ts) AS window_start, value, ts,
                   status_code >= 0 AND value <> 'NaN' AS counts
            FROM readings),
        direct AS (
            SELECT series_id, window_start, count(*) FILTER (WHERE counts) AS count,
                   count(*) FILTER (WHERE NOT counts) AS bad_count, avg(value) FILTER (WHERE counts) AS mean,
                   min(value) FILTER (WHERE counts) AS min, max(value) FILTER (WHERE counts) AS max
            FROM raw GROUP BY series_id, window_start),
        now_at AS (SELECT max(stored_at) AS stored_at FROM batch_ledger)
        SELECT series_id, window_start, w.count IS NULL AND window_start > stored_at - $1::interval AS open,
               w.count IS NOT DISTINCT FROM d.count
               AND w.bad_count IS NOT DISTINCT FROM d.bad_count
               AND w.min IS NOT DISTINCT FROM d.min AND w.max IS NOT DISTINCT FROM d.max
               AND (w.mean IS NOT DISTINCT FROM d.mean OR abs(w.mean - d.mean) <= 1e-12 * greatest(abs(d.mean), 1e-300))
               AS same
        FROM windows_1m w FULL JOIN direct d USING (series_id, window_start) CROSS JOIN now_at
        """,
        OPEN_FOR,
    )
    result.windows = len(rows)
    for row in rows:
        if row["open"]:
            result.windows_open += 1
        elif not row["same"]:
            result.windows_differing += 1
            result.note(f"the window of series {row['series_id']} at {row['window_start']} differs from its readings")


def _compare(
    key: Key,
    served: list[tuple[int, float]],
    stored: list[tuple[int, float, int]],
    deadband: Deadband,
    kills: tuple[Sequence[int], int],
    result: Reconciliation,
) -> None:
    """Compare one series; see the module's words."""
    times = [served_us for served_us, _ in served]
    matched: dict[int, float] = {}
    for ts_us, value, status in stored:
        if status < 0:
            result.status_readings += 1
            continue
        index = bisect_right(times, ts_us + FLOOR_US - 1) - 1
        if index < 0 or ts_us - times[index] > LATE_US or not _same(served[index][1], value):
            result.wrong += 1
            seen = served[index] if index >= 0 else None
            result.note(f"{key[0]}/{key[1]}: stored {value!r} at {ts_us}, the plant served {seen}")
        elif index in matched:
            result.duplicated += 1
            result.note(f"{key[0]}/{key[1]}: the response of {times[index]} is stored twice")
        else:
            matched[index] = value
    last: tuple[int, float] | None = None
    for index, (served_us, value) in enumerate(served):
        if index in matched:
            last = (served_us, value)
        elif _was_in_hand(served_us, kills):
            result.in_hand += 1
        elif last is not None and _may_be_silent(last, (served_us, value), deadband):
            result.deadbanded += 1
        else:
            result.lost += 1
            result.note(f"{key[0]}/{key[1]}: {value!r}, served at {served_us}, is not stored (last stored: {last})")


def _was_in_hand(served_us: int, kills: tuple[Sequence[int], int]) -> bool:
    kills_us, reach_us = kills
    return any(kill_us - reach_us <= served_us <= kill_us + FLOOR_US for kill_us in kills_us)


def _may_be_silent(last: tuple[int, float], now: tuple[int, float], deadband: Deadband) -> bool:
    """Whether a correct filter may hold `now` back after passing `last`; times are known to a few milliseconds."""
    if deadband.absolute is None:
        return False
    slack_us = 250_000
    if deadband.heartbeat_us and now[0] - last[0] > deadband.heartbeat_us + slack_us:
        return False
    if math.isnan(now[1]) or math.isnan(last[1]):
        return math.isnan(now[1]) and math.isnan(last[1])
    return now[1] == last[1] or abs(now[1] - last[1]) <= deadband.absolute


def _same(a: float, b: float) -> bool:
    return struct.pack("<d", a) == struct.pack("<d", b)


def _buffer_totals(folder: Path) -> tuple[int, int, int]:
    """Return readings and batches ever accepted and still on this disk, and segments set aside as damaged."""
    readings = batches = 0
    for path in sorted(folder.glob("*.duckdb")):
        with duckdb.connect(str(path), read_only=True) as connection:
            row = connection.execute(
                "SELECT coalesce(sum(readings), 0), count(*) FILTER (WHERE readings > 0) FROM batches"
            ).fetchone()
        readings, batches = readings + int(row[0]), batches + int(row[1])
    return readings, batches, len(list(folder.glob("*.damaged")))


def _archived(folder: Path, stored: dict[Key, list[tuple[int, float, int]]], result: Reconciliation) -> int:
    """Count the archive's rows and compare them with the table's, bit for bit."""
    files = [str(path) for path in folder.rglob("*.parquet")]
    if not files:
        result.note(f"no archive files below {folder}")
        return 0
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT machine_id, tag, epoch_us(ts), value, status_code FROM read_parquet(?) ORDER BY ALL", [files]
        ).fetchall()
    expected = sorted(_bits(key, reading) for key, readings in stored.items() for reading in readings)
    if sorted(_bits((row[0], row[1]), row[2:]) for row in rows) != expected:
        result.wrong += 1
        result.note("the archive's readings differ from the table's")
    return len(rows)


def _bits(key: Key, reading: Iterable[Any]) -> tuple[str, str, int, bytes, int]:
    ts_us, value, status = reading
    return (*key, ts_us, struct.pack("<d", value), status)
