"""One Parquet file of the archive: columns in, a finished file on disk out.

In: readings of one partition and the names of their series. Out: files by day, synced, under temporary names.
Fails with OSError (the disk).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cloud_ingest.model import Chunk, Partition
from cloud_ingest.store.upkeep import DAY_US

FOLDER: Final = "readings"
INCOMING: Final = ".incoming"
_ROWS_PER_GROUP: Final = 1_000_000


class SeriesName(NamedTuple):
    """What people call a series."""

    machine_id: str
    tag: str
    unit: str


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that is whole and on disk under its temporary name; `path` is relative to the archive's folder."""

    path: str
    temporary: str
    day: str
    rows: int
    bytes: int


def write_days(
    folder: Path,
    stem: str,
    chunks: Sequence[Chunk],
    names: Mapping[int, SeriesName],
) -> list[WrittenFile]:
    """Write the readings of `chunks` (of one partition) as one file per day, sorted by machine, tag and time."""
    ts = np.concatenate([chunk.ts_us for chunk in chunks])
    if not ts.size:
        return []
    values = np.concatenate([chunk.values for chunk in chunks])
    statuses = np.concatenate([chunk.statuses for chunk in chunks])
    series = np.concatenate([np.repeat(chunk.block_series, chunk.counts) for chunk in chunks])
    message = _messages_of_readings(chunks)
    entries = [entry for chunk in chunks for entry in chunk.entries]

    ids = np.unique(series)
    by_name = sorted(ids.tolist(), key=lambda one: names[one])
    rank_of = np.empty(ids.size, np.int32)
    rank_of[np.searchsorted(ids, np.array(by_name, ids.dtype))] = np.arange(ids.size, dtype=np.int32)
    rank = rank_of[np.searchsorted(ids, series)]
    day = ts // DAY_US
    order = np.lexsort((ts, rank, day))
    epochs = np.array([entry.head.epoch for entry in entries], np.int64)
    seqs = np.array([entry.head.seq for entry in entries], np.int64)
    agents, agent_of = np.unique([entry.head.agent_id for entry in entries], return_inverse=True)
    ordered = message[order]
    table = pa.table(
        {
            "ts": pa.array(ts[order], pa.timestamp("us", "UTC")),
            "machine_id": _text(rank[order], [names[one].machine_id for one in by_name]),
            "tag": _text(rank[order], [names[one].tag for one in by_name]),
            "unit": _text(rank[order], [names[one].unit for one in by_name]),
            "value": pa.array(values[order], pa.float64()),
            "status_code": pa.array(statuses[order], pa.int32()),
            "agent_id": _text(agent_of[ordered].astype(np.int32), agents.tolist()),
            "epoch": pa.array(epochs[ordered]),
            "seq": pa.array(seqs[ordered]),
        }
    )
    days, starts = np.unique(day[order], return_index=True)
    ends = np.append(starts[1:], ts.size)
    return [
        _write(folder, stem, str(np.datetime64(int(number), "D")), table.slice(begin, end - begin))
        for number, begin, end in zip(days.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]


def publish(folder: Path, path: str, temporary: str) -> bool:
    """Give a file its final name, lasting; False if neither name exists. Doing it again is harmless."""
    target, source = folder / path, folder / temporary
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.exists():
        source.replace(target)
        _sync_folder(target.parent)
    return target.exists()


def temporary_name(path: str) -> str:
    """Return the temporary name that belongs to a file's final path."""
    return f"{FOLDER}/{INCOMING}/{path.removeprefix(FOLDER + '/').replace('/', '~')}"


def stem(partition: Partition, epoch: int, first: int, last: int) -> str:
    """Name the messages a file is made of. The epoch keeps a topic that began anew from reusing a name."""
    return f"{partition.topic}-{partition.number}-{epoch}-{first}-{last}"


def _messages_of_readings(chunks: Sequence[Chunk]) -> NDArray[np.int64]:
    """Return for each reading the number of its message among the entries of all chunks."""
    found, before = [], 0
    for chunk in chunks:
        found.append(np.repeat(chunk.block_entry.astype(np.int64) + before, chunk.counts))
        before += len(chunk.entries)
    return np.concatenate(found)


def _text(index: NDArray[np.int32], words: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(words, pa.string()))


def _write(folder: Path, file_stem: str, day: str, table: pa.Table) -> WrittenFile:
    path = f"{FOLDER}/date={day}/{file_stem}.parquet"
    temporary = folder / temporary_name(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            row_group_size=_ROWS_PER_GROUP,
            use_dictionary=["machine_id", "tag", "unit", "agent_id", "epoch", "seq"],
            column_encoding={"ts": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT", "status_code": "PLAIN"},
            store_schema=False,  # with it, readers would get dictionaries instead of strings
        )
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    _sync_folder(temporary.parent)
    return WrittenFile(path, temporary_name(path), day, table.num_rows, size)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
