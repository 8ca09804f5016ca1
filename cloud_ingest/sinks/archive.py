"""The archive as a sink: Parquet files by day, published atomically, never at odds with their checkpoint.

In: what a flush stored (add), and now and then the word to write (flush). Out: files
`readings/date=YYYY-MM-DD/<topic>-<partition>-<epoch>-<first>-<last>.parquet`. Fails with ServiceError (database or
disk: try again), FencedPartitionsError (drop those partitions).

A file comes to be in five steps; wherever a worker is killed, the next owner of the partition can tell what to do:
    1. write it under a temporary name and sync it                 killed here: no row, removed
    2. one transaction: rows in archive_files as 'pending', checkpoint advanced, fenced
    3. rename it to its final name                                 killed before: row pending, the next owner renames it
    4. mark the row 'published'                                    killed before: row pending, the next owner marks it
    5. forget the rows that were buffered in memory
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import structlog

from cloud_ingest.config import ArchiveSettings
from cloud_ingest.model import Chunk, Partition, Position
from cloud_ingest.sinks import archive_file
from cloud_ingest.sinks.archive_file import SeriesName, WrittenFile
from cloud_ingest.sinks.checkpoints import Advance, Checkpoints
from cloud_ingest.store.connection import Store, fetch_all
from common.errors import ServiceError

log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    """What is buffered of one partition."""

    first_offset: int
    next_offset: int
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Writing:
    """Files that are on disk under temporary names, and the checkpoints that go with them."""

    files: Mapping[Partition, Sequence[WrittenFile]]
    held: Mapping[Partition, _Held]
    to: Mapping[Partition, Advance]


class ArchiveSink:
    """The archive of this worker's partitions; see `Sink`."""

    def __init__(self, store: Store, folder: Path, consumer_group: str, settings: ArchiveSettings) -> None:
        self._store = store
        self._folder = folder
        self._settings = settings
        self._checkpoints = Checkpoints(consumer_group)
        self._held: dict[Partition, _Held] = {}
        self._writing: _Writing | None = None
        self._unpublished: list[WrittenFile] = []
        """Committed, but not yet known to be renamed and marked; doing both again is harmless."""
        self._rows = 0
        self._bytes = 0
        self._oldest: float | None = None
        self.files_total = 0

    async def adopt(self, partition: Partition, cluster_id: str) -> Position:
        """See `Sink.adopt`; also finishes or removes what the former owner left half done."""
        async with self._store.connection() as connection:
            position = await self._checkpoints.adopt(connection, partition, cluster_id)
        try:
            await self._recover(partition)
        except OSError as error:
            raise ServiceError(f"archive: {error}") from error
        return position

    def forget(self, partitions: Iterable[Partition]) -> None:
        """See `Sink.forget`."""
        gone = set(partitions)
        self._checkpoints.forget(gone)
        if self._writing is not None:  # whether its files were committed is for the next owner to find out
            kept = {partition: step for partition, step in self._writing.to.items() if partition not in gone}
            self._writing = replace(self._writing, to=kept)
        for partition in gone & self._held.keys():
            del self._held[partition]
        self._count()

    def position(self, partition: Partition) -> Position | None:
        """See `Sink.position`."""
        return self._checkpoints.owned.get(partition)

    def add(self, chunk: Chunk, ends: Mapping[Partition, int | None], at: float) -> None:
        """Buffer what was stored up to `ends`, but for what the archive has already. `at` is monotonic time."""
        wanted = np.fromiter(
            (self._lacks(entry.message.partition, entry.message.offset) for entry in chunk.entries),
            np.bool_,
            len(chunk.entries),
        )
        chunk = chunk.only(wanted)
        parts = chunk.of_partitions() if chunk.entries else {}
        for partition, end in ends.items():
            position = self._checkpoints.owned.get(partition)
            if position is None or end is None:
                continue
            known = self._next(partition)
            part = parts.get(partition)
            if known is not None and end <= known:
                continue
            first = known if known is not None else (part.entries[0].message.offset if part else end - 1)
            held = self._held.setdefault(partition, _Held(first, end))
            held.next_offset = end
            if part is not None:
                held.chunks.append(part)
                self._rows += part.readings
                self._bytes += sum(len(entry.message.value) for entry in part.entries)
            if self._oldest is None:
                self._oldest = at

    def due(self, at: float) -> bool:
        """Tell whether it is time for `flush`."""
        if self._writing is not None or self._unpublished:
            return True
        if self._oldest is None:
            return False
        waited = at - self._oldest >= self._settings.interval_s
        return waited or self._rows >= self._settings.rows_max or self._bytes >= self._settings.bytes_max

    @property
    def pending(self) -> bool:
        """Whether anything is buffered."""
        return bool(self._held or self._unpublished) or self._writing is not None

    async def flush(self) -> None:
        """Store what is buffered; after an error, the next call goes on where this one stopped."""
        try:
            await self._publish()  # what an error left
            if self._writing is None and self._held:
                self._writing = await self._write()  # 1
            if self._writing is not None:
                await self._finish(self._writing)
        except OSError as error:
            raise ServiceError(f"archive: {error}") from error

    async def _write(self) -> _Writing:
        held = dict(self._held)
        names = await self._names(chunk for one in held.values() for chunk in one.chunks)
        files: dict[Partition, Sequence[WrittenFile]] = {}
        for partition, one in held.items():
            epoch = self._checkpoints.owned[partition].epoch
            stem = archive_file.stem(partition, epoch, one.first_offset, one.next_offset - 1)
            if one.chunks:
                files[partition] = await asyncio.to_thread(
                    archive_file.write_days, self._folder, stem, one.chunks, names
                )
        self._held = {}
        self._count()
        return _Writing(files, held, {partition: Advance(one.next_offset) for partition, one in held.items()})

    async def _finish(self, writing: _Writing) -> None:
        to = writing.to
        files = [one for partition in to for one in writing.files.get(partition, ())]
        if to:
            await self._commit(writing, to)  # 2
            self._checkpoints.committed(to)
        self._writing = None
        self._unpublished += files
        await self._publish()

    async def _publish(self) -> None:
        files = self._unpublished
        if not files:
            return
        for one in files:
            await asyncio.to_thread(archive_file.publish, self._folder, one.path, one.temporary)  # 3
        await self._mark_published([one.path for one in files])  # 4
        self._unpublished = []
        self.files_total += len(files)

    async def _commit(self, writing: _Writing, to: Mapping[Partition, Advance]) -> None:
        rows = []
        for partition in to:
            held, epoch = writing.held[partition], self._checkpoints.owned[partition].epoch
            offsets = (held.first_offset, held.next_offset - 1)
            rows += [
                (one.path, one.day, *partition, epoch, *offsets, one.rows, one.bytes)
                for one in writing.files.get(partition, ())
            ]
        async with self._store.connection() as connection, connection.transaction():
            if not await self._checkpoints.lock(connection, to):
                return  # an earlier attempt committed, although its connection was lost
            await connection.executemany(
                'INSERT INTO archive_files (path, state, day, topic, "partition", epoch, first_offset, last_offset,'
                " row_count, bytes) VALUES ($1, 'pending', $2, $3, $4, $5, $6, $7, $8, $9)",
                rows,
            )
            await self._checkpoints.advance(connection, to)

    async def _mark_published(self, paths: Sequence[str]) -> None:
        if paths:
            await fetch_all(
                self._store,
                "UPDATE archive_files SET state = 'published', published_at = clock_timestamp()"
                " WHERE path = ANY($1::text[])",
                paths,
            )

    async def _recover(self, partition: Partition) -> None:
        rows = await fetch_all(
            self._store,
            "SELECT path FROM archive_files WHERE state = 'pending' AND topic = $1 AND \"partition\" = $2",
            *partition,
        )
        finished = []
        for row in rows:
            path = row["path"]
            if await asyncio.to_thread(archive_file.publish, self._folder, path, archive_file.temporary_name(path)):
                finished.append(path)
            else:
                log.error("archive.file_missing", path=path, folder=str(self._folder))
        await self._mark_published(finished)
        incoming = self._folder / archive_file.FOLDER / archive_file.INCOMING
        pending = {archive_file.temporary_name(row["path"]) for row in rows}
        for file in await asyncio.to_thread(lambda: list(incoming.glob(f"*~{partition.topic}-{partition.number}-*"))):
            if str(file.relative_to(self._folder)) not in pending:
                file.unlink(missing_ok=True)

    async def _names(self, chunks: Iterable[Chunk]) -> dict[int, SeriesName]:
        ids: set[int] = set()
        for chunk in chunks:
            ids.update(np.unique(chunk.block_series).tolist())
        if not ids:
            return {}
        rows = await fetch_all(
            self._store,
            "SELECT series_id, machine_id, tag, unit FROM series WHERE series_id = ANY($1::int[])",
            list(ids),
        )
        return {row["series_id"]: SeriesName(row["machine_id"], row["tag"], row["unit"]) for row in rows}

    def _next(self, partition: Partition) -> int | None:
        if partition in self._held:
            return self._held[partition].next_offset
        if self._writing is not None and partition in self._writing.to:
            return self._writing.to[partition].next_offset
        position = self._checkpoints.owned.get(partition)
        return None if position is None else position.next_offset

    def _lacks(self, partition: Partition, offset: int) -> bool:
        if partition not in self._checkpoints.owned:
            return False
        known = self._next(partition)
        return known is None or offset >= known

    def _count(self) -> None:
        chunks = [chunk for one in self._held.values() for chunk in one.chunks]
        self._rows = sum(chunk.readings for chunk in chunks)
        self._bytes = sum(len(entry.message.value) for chunk in chunks for entry in chunk.entries)
        if not self._held:
            self._oldest = None
