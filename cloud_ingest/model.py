"""What moves through the worker: messages as received, ledger entries, dead letters, and readings by block.

Nothing here does input or output. A *poll* is what one visit to the broker brought.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloud_ingest.operators import is_sorted, sort_frame
from common.model import ReadingFrame
from common.wire import Birth, Head, TelemetryBatch


class Partition(NamedTuple):
    """A partition of a topic: the unit of ownership, of order and of operator state."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.number}"


@dataclass(frozen=True, slots=True)
class Received:
    """A Kafka message with its place; `appended_us` is the time the broker or producer stamped, 0 if none.

    `generation` counts the assignments of its partition to this worker: a message of an earlier one is void.
    """

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes | None], ...] = ()
    appended_us: int = 0
    generation: int = 0


class Reason(StrEnum):
    """Why a message is a dead letter; the words appear in the table, the headers and the metrics."""

    NOT_A_MESSAGE = "not_a_message"
    DAMAGED_BLOCK = "damaged_block"
    INCONSISTENT = "inconsistent"
    UNKNOWN_BIRTH = "unknown_birth"
    UNKNOWN_ALIAS = "unknown_alias"
    TIME_NOT_STORABLE = "time_not_storable"
    TOO_LARGE = "too_large"
    REFUSED_BY_STORE = "refused_by_store"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that cannot be stored; `detail` says in a sentence what is wrong with it."""

    message: Received
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Item:
    """A message and what it turned out to be."""

    message: Received
    content: TelemetryBatch | Birth | DeadLetter


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger: one batch or birth. Times are those of its readings, None in a birth or an empty batch."""

    message: Received
    head: Head
    kind: str
    readings: int
    first_us: int | None
    last_us: int | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Readings of several messages, sorted by partition and offset; block k has `counts[k]` readings of one series.

    Attributes:
        entries: one per message, births included.
        block_entry: int32[b], index of each block's message in `entries`, ascending.
        block_series: int32[b], series_id.
        counts: int64[b].
        ts_us, values, statuses: the readings of all blocks, one after another.
    """

    entries: Sequence[Entry]
    block_entry: NDArray[np.int32]
    block_series: NDArray[np.int32]
    counts: NDArray[np.int64]
    ts_us: NDArray[np.int64]
    values: NDArray[np.float64]
    statuses: NDArray[np.int32]

    @property
    def readings(self) -> int:
        """How many there are."""
        return self.ts_us.size

    @property
    def columns(self) -> tuple[Any, ...]:
        """Everything but the entries, in the order of the fields."""
        return (self.block_entry, self.block_series, self.counts, self.ts_us, self.values, self.statuses)

    def only(self, wanted: NDArray[np.bool_]) -> "Chunk":
        """Return the part that belongs to the entries of the mask."""
        if wanted.all():
            return self
        blocks = wanted[self.block_entry]
        readings = np.repeat(blocks, self.counts)
        renumbered = (np.cumsum(wanted) - 1).astype(np.int32)
        return Chunk(
            [entry for entry, keep in zip(self.entries, wanted.tolist(), strict=True) if keep],
            renumbered[self.block_entry[blocks]],
            self.block_series[blocks],
            self.counts[blocks],
            self.ts_us[readings],
            self.values[readings],
            self.statuses[readings],
        )

    def of_partitions(self) -> "Mapping[Partition, Chunk]":
        """Split by partition; views, nothing is copied."""
        starts = [
            k
            for k, entry in enumerate(self.entries)
            if k == 0 or entry.message.partition != self.entries[k - 1].message.partition
        ]
        if len(starts) == 1:
            return {self.entries[0].message.partition: self}
        reading_ends = np.concatenate([[0], np.cumsum(self.counts)])
        found = {}
        for begin, end in zip(starts, [*starts[1:], len(self.entries)], strict=True):
            blocks = slice(*np.searchsorted(self.block_entry, [begin, end]).tolist())
            readings = slice(int(reading_ends[blocks.start]), int(reading_ends[blocks.stop]))
            found[self.entries[begin].message.partition] = Chunk(
                self.entries[begin:end],
                self.block_entry[blocks] - np.int32(begin),
                self.block_series[blocks],
                self.counts[blocks],
                self.ts_us[readings],
                self.values[readings],
                self.statuses[readings],
            )
        return found

    def frame(self, row_of_block: NDArray[np.int32]) -> ReadingFrame:
        """Return the readings as a frame sorted by row and time, equal times in order of arrival.

        Blocks are mostly in order within: sorting blocks first leaves nothing to do for the readings.
        """
        ends = np.cumsum(self.counts)
        begins = ends - self.counts
        filled = self.counts > 0
        first_us = np.zeros(self.counts.size, np.int64)
        first_us[filled] = self.ts_us[begins[filled]]
        order = np.lexsort((first_us, row_of_block))
        counts = self.counts[order]
        series = np.repeat(row_of_block[order], counts)
        if (order == np.arange(order.size)).all():
            return sort_frame(ReadingFrame(series, self.ts_us, self.values, self.statuses))
        at = np.arange(self.ts_us.size) + np.repeat(begins[order] - (np.cumsum(counts) - counts), counts)
        frame = ReadingFrame(series, self.ts_us[at], self.values[at], self.statuses[at])
        if is_sorted(frame):
            return frame
        # Blocks of one series overlap in time: start from the order of arrival, which decides between equal times.
        series = np.repeat(row_of_block, self.counts)
        return sort_frame(ReadingFrame(series, self.ts_us, self.values, self.statuses))


NO_READINGS: Final = Chunk(
    (),
    np.empty(0, np.int32),
    np.empty(0, np.int32),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.empty(0),
    np.empty(0, np.int32),
)


@dataclass(frozen=True, slots=True)
class Position:
    """What a sink has of a partition: everything below `next_offset` of cluster `cluster_id`; None = nothing yet.

    `epoch` fences: whoever takes the partition next makes it grow, and then nothing can be written with this one.
    `flushes` counts what was committed: after a connection is lost during a commit it tells whether that took place.
    """

    next_offset: int | None
    epoch: int
    cluster_id: str
    flushes: int = 0
    watermark_us: int | None = None
