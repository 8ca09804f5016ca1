"""Windows into their tables: a partial whose row is there already is combined with it, and the row replaced.

In: partials keyed by series id. Out: rows of windows_1m and windows_5m, `revision` counting how often each was
changed since it was first stored. Fails with the errors of cloud_ingest.store.connection; ServiceError, too, when
another transaction made one of the rows meanwhile (the flush is tried again).

Why not combine in SQL? PostgreSQL raises an error where IEEE arithmetic overflows or underflows, and a sensor's
1e-320 would then stop a partition. So SQL only moves numbers, in bulk: partials are copied to a temporary table, the
rows that exist come back by COPY, and numpy does the arithmetic.
"""

from typing import Final

import asyncpg
import numpy as np
from numpy.typing import NDArray

from cloud_ingest.operators.partials import NO_FIRST_US, NO_LAST_US, Partials, merge
from cloud_ingest.sinks.copy_binary import parse, rows, stream, timestamptz
from cloud_ingest.store.connection import EPOCH_2000_US
from common.clock import US_PER_SECOND
from common.errors import ServiceError

TABLES: Final = {60 * US_PER_SECOND: "windows_1m", 300 * US_PER_SECOND: "windows_5m"}

_STAGING: Final = """
SET LOCAL client_min_messages = warning;
CREATE TEMP TABLE IF NOT EXISTS windows_in (
    series_id int, window_start timestamptz, count bigint, bad_count bigint, mean float8, m2 float8, min float8,
    max float8, first float8, last float8, first_ts timestamptz, last_ts timestamptz, stddev float8, revision int)
    ON COMMIT DELETE ROWS;
TRUNCATE pg_temp.windows_in;
"""
# NULL cannot be said in our COPY: where count is 0, any value stands for it.
_EXISTING: Final = """
SELECT w.series_id, w.window_start, w.count, w.bad_count, coalesce(w.mean, 0), w.m2, coalesce(w.min, 'infinity'),
       coalesce(w.max, '-infinity'), coalesce(w.first, 0), coalesce(w.last, 0), coalesce(w.first_ts, w.window_start),
       coalesce(w.last_ts, w.window_start), w.revision
FROM {table} w JOIN pg_temp.windows_in n USING (series_id, window_start)
ORDER BY w.series_id, w.window_start FOR UPDATE OF w
"""
_EXISTING_TYPES: Final = (
    *(np.int32, np.int64, np.int64, np.int64, np.float64, np.float64, np.float64, np.float64),
    *(np.float64, np.float64, np.int64, np.int64, np.int32),
)
_REPLACE: Final = """
INSERT INTO {table} AS w
    (series_id, window_start, count, bad_count, mean, min, max, first, last, first_ts, last_ts, m2, stddev, revision)
SELECT series_id, window_start, count, bad_count, CASE WHEN count > 0 THEN mean END, CASE WHEN count > 0 THEN min END,
       CASE WHEN count > 0 THEN max END, CASE WHEN count > 0 THEN first END, CASE WHEN count > 0 THEN last END,
       CASE WHEN count > 0 THEN first_ts END, CASE WHEN count > 0 THEN last_ts END, m2,
       CASE WHEN count > 1 THEN stddev END, revision
FROM pg_temp.windows_in ORDER BY series_id, window_start
ON CONFLICT (series_id, window_start) DO UPDATE SET
    count = EXCLUDED.count, bad_count = EXCLUDED.bad_count, mean = EXCLUDED.mean, min = EXCLUDED.min,
    max = EXCLUDED.max, first = EXCLUDED.first, last = EXCLUDED.last,
    first_ts = EXCLUDED.first_ts, last_ts = EXCLUDED.last_ts,
    m2 = EXCLUDED.m2, stddev = EXCLUDED.stddev, revision = EXCLUDED.revision
WHERE w.revision = EXCLUDED.revision - 1
"""


async def store(connection: asyncpg.Connection, length_us: int, partials: Partials) -> None:
    """Merge partials, whose `row` is the series id here, into the table of their length; keys may repeat."""
    if not len(partials):
        return
    table = TABLES[length_us]
    partials = merge([partials])
    revision = np.zeros(len(partials), np.int32)
    await _stage(connection, length_us, partials, revision)
    older, older_revision = await _existing(connection, table, length_us)
    if len(older):
        at = _positions(partials, older)
        partials = merge([older, partials])
        revision[at] = older_revision + 1
        await _stage(connection, length_us, partials, revision)
    done = await connection.execute(_REPLACE.format(table=table))
    if int(done.rpartition(" ")[2]) != len(partials):
        raise ServiceError(f"store: another worker wrote to {table} at the same time")


async def _stage(
    connection: asyncpg.Connection,
    length_us: int,
    partials: Partials,
    revision: NDArray[np.int32],
) -> None:
    await connection.execute(_STAGING)
    some = partials.count > 0
    start = partials.window * length_us
    with np.errstate(all="ignore"):
        stddev = np.sqrt(partials.m2 / np.maximum(partials.count - 1, 1))
    data = rows(
        [
            partials.row,
            timestamptz(start),
            partials.count,
            partials.bad,
            partials.mean,
            partials.m2,
            partials.low,
            partials.high,
            partials.first,
            partials.last,
            timestamptz(np.where(some, partials.first_us, start)),
            timestamptz(np.where(some, partials.last_us, start)),
            stddev,
            revision,
        ]
    )
    await connection.copy_to_table("windows_in", schema_name="pg_temp", source=stream(data), format="binary")


async def _existing(connection: asyncpg.Connection, table: str, length_us: int) -> tuple[Partials, NDArray[np.int32]]:
    """Return the rows that are there for the staged keys, locked, and their revisions."""
    pieces: list[bytes] = []

    async def keep(data: bytes) -> None:
        pieces.append(data)

    await connection.copy_from_query(_EXISTING.format(table=table), output=keep, format="binary")
    columns = parse(b"".join(pieces), _EXISTING_TYPES)
    row, start, count, bad, mean, m2, low, high, first, last, first_us, last_us, revision = columns
    none = count == 0
    return (
        Partials(
            row,
            (start + EPOCH_2000_US) // length_us,
            count,
            bad,
            mean,
            m2,
            low,
            high,
            first,
            last,
            np.where(none, NO_FIRST_US, first_us + EPOCH_2000_US),
            np.where(none, NO_LAST_US, last_us + EPOCH_2000_US),
        ),
        revision,
    )


def _positions(all_of: Partials, some: Partials) -> NDArray[np.intp]:
    """Return where the keys of `some` are among those of `all_of`, which are sorted and include them."""
    key = np.dtype([("row", np.int32), ("window", np.int64)])
    haystack, needles = np.empty(len(all_of), key), np.empty(len(some), key)
    for table, partials in ((haystack, all_of), (needles, some)):
        table["row"], table["window"] = partials.row, partials.window
    return np.flatnonzero(np.isin(haystack, needles))
