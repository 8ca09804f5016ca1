"""One DuckDB file of the buffer: an append-only run of batches with consecutive positions.

A segment also notes, at its start, what the buffer knew before it (next seq of each lane), so that older segments
may be deleted without forgetting. Every append is one transaction: after a crash it is wholly there or not at all.
Fails with duckdb.Error (disk full, damaged file); the chain of segments decides what follows.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

import duckdb

from common.model import Route

SUFFIX: Final = ".duckdb"
UNFINISHED: Final = ".new"
WAL: Final = ".wal"
BATCH_BYTES_EXTRA: Final = 192
"""About what a batch takes on disk besides its body."""
_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "threads": 1,
    "memory_limit": "96MB",
    "checkpoint_threshold": "4MB",  # what only the write-ahead log holds is in memory too
    "default_block_size": "16384",  # a segment that holds little takes little
}
_SCHEMA: Final = """
CREATE TABLE batches (
    position BIGINT NOT NULL, message_schema VARCHAR NOT NULL, machine_id VARCHAR NOT NULL, route VARCHAR NOT NULL,
    epoch BIGINT NOT NULL, seq BIGINT NOT NULL, first_us BIGINT NOT NULL, last_us BIGINT NOT NULL,
    readings INTEGER NOT NULL, created_us BIGINT NOT NULL, body BLOB NOT NULL);
CREATE TABLE lanes (machine_id VARCHAR NOT NULL, route VARCHAR NOT NULL, next_seq BIGINT NOT NULL);
CREATE TABLE start (first_position BIGINT NOT NULL, epoch BIGINT NOT NULL);
CREATE TABLE progress (acknowledged_below BIGINT NOT NULL);
"""
_COLUMNS: Final = (
    "position, message_schema, machine_id, route, epoch, seq, first_us, last_us, readings, created_us, body"
)
_TYPES: Final = ("BIGINT", "VARCHAR", "VARCHAR", "VARCHAR", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "INTEGER", "BIGINT")
_APPEND: Final = f"INSERT INTO batches ({_COLUMNS}) SELECT " + ", ".join(
    f"unnest(${number}::{kind}[])" for number, kind in enumerate((*_TYPES, "BLOB"), start=1)
)

LaneKey = tuple[str, Route]


class StoredBatch(NamedTuple):
    """A batch or birth with its place in the buffer; `body` waits for its head (common.wire.seal)."""

    position: int
    schema: str
    machine_id: str
    route: Route
    epoch: int
    seq: int
    first_us: int
    last_us: int
    readings: int
    created_us: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What a segment holds, as found when it is opened."""

    first_position: int
    next_position: int
    epoch: int
    readings: int
    size_bytes: int
    acknowledged_below: int
    next_seq: Mapping[LaneKey, int]


def size_on_disk(bodies: Iterable[bytes]) -> int:
    """Return about what batches with these bodies take on disk."""
    return sum(len(body) + BATCH_BYTES_EXTRA for body in bodies)


class Segment:
    """An open segment file."""

    def __init__(self, path: Path) -> None:
        """Open a file, replaying its write-ahead log if a crash left one."""
        self.path = path
        self._connection = duckdb.connect(str(path), config=_SETTINGS)
        # A body is compressed already; trying again costs a checkpoint 30 times as long and gains nothing.
        self._connection.execute("SET force_compression = 'uncompressed'")

    @classmethod
    def create(
        cls, path: Path, first_position: int, epoch: int, acknowledged_below: int, next_seq: Mapping[LaneKey, int]
    ) -> "Segment":
        """Make a new file that carries on at `first_position`; it gets its name only once it is whole."""
        unfinished = path.with_name(path.name + UNFINISHED)
        remove(unfinished)
        try:
            segment = cls(unfinished)
            try:
                segment._begin(first_position, epoch, acknowledged_below, next_seq)
            finally:
                segment.close()
            unfinished.rename(path)
        except BaseException:
            remove(unfinished)
            raise
        _sync_folder(path.parent)
        return cls(path)

    def _begin(self, first_position: int, epoch: int, acknowledged_below: int, next_seq: Mapping[LaneKey, int]) -> None:
        with self._transaction():
            self._connection.execute(_SCHEMA)
            self._connection.execute("INSERT INTO start VALUES (?, ?)", [first_position, epoch])
            self._connection.execute("INSERT INTO progress VALUES (?)", [acknowledged_below])
            if next_seq:
                machines, routes = zip(*next_seq, strict=True)
                self._connection.execute(
                    "INSERT INTO lanes SELECT unnest($1::VARCHAR[]), unnest($2::VARCHAR[]), unnest($3::BIGINT[])",
                    [list(machines), [route.value for route in routes], list(next_seq.values())],
                )

    def contents(self) -> Contents:
        """Read everything, and tell what is here; an unreadable or foreign file is a duckdb.Error."""
        query = self._connection.execute
        first, epoch = _one(query("SELECT first_position, epoch FROM start").fetchone())
        end, readings, size = _one(
            query(
                "SELECT coalesce(max(position) + 1, ?), coalesce(sum(readings), 0), "
                "coalesce(sum(octet_length(body) + ?), 0) FROM batches",
                [first, BATCH_BYTES_EXTRA],
            ).fetchone()
        )
        (acknowledged_below,) = _one(query("SELECT max(acknowledged_below) FROM progress").fetchone())
        next_seq = {
            (machine, Route(route)): seq
            for machine, route, seq in query(
                "SELECT machine_id, route, max(next_seq) FROM (SELECT machine_id, route, next_seq FROM lanes UNION ALL "
                "SELECT machine_id, route, seq + 1 FROM batches) GROUP BY ALL"
            ).fetchall()
        }
        return Contents(first, end, epoch, int(readings), int(size), acknowledged_below, next_seq)

    def append(self, batches: Sequence[StoredBatch], acknowledged_below: int) -> None:
        """Make `batches` safe, and the progress of acknowledgement with them, in one transaction."""
        columns = [list(column) for column in zip(*batches, strict=True)]
        columns[3] = [route.value for route in columns[3]]
        with self._transaction():
            self._connection.execute(_APPEND, columns)
            self._connection.execute("INSERT INTO progress VALUES (?)", [acknowledged_below])

    def note_progress(self, acknowledged_below: int) -> None:
        """Make the progress of acknowledgement safe by itself."""
        self._connection.execute("INSERT INTO progress VALUES (?)", [acknowledged_below])

    def holds(self, position: int) -> bool:
        """Tell whether the batch at `position` is here."""
        found = self._connection.execute("SELECT 1 FROM batches WHERE position = ?", [position]).fetchone()
        return found is not None

    def read(self, position: int, limit: int, bytes_max: int) -> list[StoredBatch]:
        """Return batches from `position` on, in order: at most `limit`, and after the first at most `bytes_max`."""
        query = self._connection.execute
        sizes = query(
            "SELECT octet_length(body) FROM batches WHERE position >= ? ORDER BY position LIMIT ?", [position, limit]
        ).fetchall()
        fitting = sum(total <= bytes_max for total in accumulate(size for (size,) in sizes))
        rows = query(
            f"SELECT {_COLUMNS} FROM batches WHERE position >= ? ORDER BY position LIMIT ?",  # noqa: S608 - constant
            [position, max(fitting, 1)],
        ).fetchall()
        return [StoredBatch._make((*row[:3], Route(row[3]), *row[4:])) for row in rows]

    def readings_from(self, position: int) -> dict[int, int]:
        """Return the number of readings of each batch from `position` on, by position."""
        query = "SELECT position, readings FROM batches WHERE position >= ?"
        return dict(self._connection.execute(query, [position]).fetchall())

    def close(self) -> None:
        """Fold the write-ahead log into the file and let go of it."""
        self._connection.close()

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._connection)


class _Transaction:
    """BEGIN, then COMMIT, or ROLLBACK when the body raised."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.begin()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._connection.commit()
        else:
            try:
                self._connection.rollback()
            except duckdb.Error:
                return  # the first error says more than the failure to roll back


def wal_of(path: Path) -> Path:
    """Return where DuckDB keeps the write-ahead log of `path`."""
    return path.with_name(path.name + WAL)


def remove(path: Path) -> None:
    """Delete a segment's files, those that exist."""
    path.unlink(missing_ok=True)
    wal_of(path).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _one(row: tuple[int, ...] | None) -> tuple[int, ...]:
    if row is None or None in row:
        raise duckdb.InvalidInputException("segment lacks its start row")
    return row
