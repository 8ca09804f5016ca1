"""The buffer: ordered positions, one writer, acknowledged from the front, bounded in bytes.

    accept      drafts get their seq and become safe in one transaction; then they count
    claim       the next batches to send, in order
    acknowledge the broker has them; a prefix of acknowledged batches becomes history
    release     forget what was claimed but not acknowledged: it will be claimed again, marked replayed

After a crash everything accepted is there; what was acknowledged after the last accept is sent again under the same
seq. Thread-safe: every public method takes the one lock. Fails with InUseError, BufferFullError, ServiceError.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from common.clock import US_PER_MS, Clock
from common.errors import BufferFullError, ServiceError
from edge_agent.batching import DraftBatch
from edge_agent.buffer.chain import Kept, SegmentChain
from edge_agent.buffer.folder import OwnedFolder
from edge_agent.buffer.segment import LaneKey, StoredBatch, size_on_disk

log = structlog.get_logger()

_MB = 1_000_000
_SEGMENTS_MIN = 4
"""A buffer is at least so many segments long, so that dropping the oldest does not drop most of it."""


@dataclass(frozen=True, slots=True)
class BufferLimits:
    """How much the buffer may keep: all of it, and of that acknowledged history; how large one file grows."""

    size_mb_max: float = 1024.0
    history_mb_max: float = 128.0
    segment_mb: float = 16.0
    drop_oldest: bool = True

    @property
    def segment_bytes(self) -> float:
        """When a file is large enough to start the next."""
        return min(self.segment_mb, self.size_mb_max / _SEGMENTS_MIN) * _MB


@dataclass(frozen=True, slots=True)
class BufferStatus:
    """The buffer in numbers; `oldest_us` is when the oldest batch that still waits was accepted."""

    epoch: int
    accepted_position: int
    waiting_batches: int
    oldest_us: int | None
    size_bytes: int
    segments: int
    dropped_batches: int
    dropped_readings: int
    damaged_segments: int


class Buffer:
    """An open buffer folder; one process at a time."""

    def __init__(self, folder: Path, limits: BufferLimits, clock: Clock) -> None:
        """Open or create `folder`, recover what a crash left, set aside segments that cannot be read."""
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._acknowledged: set[int] = set()
        self._oldest: tuple[int, int] | None = None
        self._dropped_batches = self._dropped_readings = 0
        self._folder = OwnedFolder(folder)
        try:
            self._chain = SegmentChain(folder, self._folder.read_note(), lambda: clock.now_us() // US_PER_MS)
        except BaseException:
            self._folder.close()
            raise
        self._acknowledged_below = self._noted_below = self._chain.acknowledged_below
        self._advance()
        self._claimed_to = self._acknowledged_below
        self._replay_below = self._chain.next_position

    # -- the four verbs ------------------------------------------------------------------------------------------

    def accept(self, drafts: Sequence[DraftBatch]) -> list[StoredBatch]:
        """Make `drafts` safe, in order; returns them with their seq.

        Raises BufferFullError (policy drop_newest, nothing was kept) or ServiceError (the disk failed, nothing was
        kept; trying again later may work).
        """
        if not drafts:
            return []
        with self._open_lock():
            self._chain.prepare(self._acknowledged_below)
            if self._chain.active_bytes >= self._limits.segment_bytes:
                self._chain.rotate(self._acknowledged_below)
                self._trim_history()
            self._make_room(size_on_disk(draft.body for draft in drafts))
            batches = self._numbered(drafts)
            try:
                self._chain.append(batches, self._acknowledged_below)
            except ServiceError:
                self._trim_history(segments_min=1)  # if the disk is full, that helps the next try
                raise
            finally:
                self._advance()
            self._noted_below = self._acknowledged_below
            self._folder.write_note(self._chain.next_position, self._chain.epoch)
            return batches

    def claim(self, limit: int, bytes_max: int) -> list[StoredBatch]:
        """Return the next batches not claimed yet, in order: up to `limit`, and after the first up to `bytes_max`.

        Empty when there are none.
        """
        with self._open_lock():
            while self._claimed_to < self._chain.next_position:
                batches = self._chain.read(self._claimed_to, limit, bytes_max)
                self._advance()
                self._claimed_to = batches[-1].position + 1 if batches else self._chain.next_position
                wanted = [batch for batch in batches if self._waits(batch.position)]
                if wanted:
                    return wanted
            return []

    def is_replay(self, batch: StoredBatch) -> bool:
        """Tell whether `batch` may have been sent before, or waited through a restart."""
        return batch.position < self._replay_below

    def acknowledge(self, positions: Iterable[int]) -> None:
        """Note that the batches at `positions` are safe elsewhere, in any order; unknown ones are ignored."""
        with self._open_lock():
            end = self._chain.next_position
            self._acknowledged.update(position for position in positions if position < end and self._waits(position))
            self._advance()
            self._trim_history()

    def release(self) -> None:
        """Forget claims that were not acknowledged: the same batches will be claimed again."""
        with self._lock:
            self._replay_below = max(self._replay_below, self._claimed_to)
            self._claimed_to = self._acknowledged_below

    # -- the rest of the interface ---------------------------------------------------------------------------------

    def settle_epoch(self) -> int:
        """Return the epoch of the next batch: it grows when a damaged file makes numbering start afresh.

        Raises ServiceError when there is no file to append to, nor can one be made.
        """
        with self._open_lock():
            self._chain.prepare(self._acknowledged_below)
            return self._chain.epoch

    def status(self) -> BufferStatus:
        """Return the buffer in numbers."""
        with self._open_lock():
            waiting = self._chain.next_position - self._acknowledged_below - len(self._acknowledged)
            return BufferStatus(
                epoch=self._chain.epoch,
                accepted_position=self._chain.next_position,
                waiting_batches=waiting,
                oldest_us=self._oldest_us() if waiting else None,
                size_bytes=self._chain.size_bytes,
                segments=len(self._chain),
                dropped_batches=self._dropped_batches,
                dropped_readings=self._dropped_readings,
                damaged_segments=self._chain.damaged,
            )

    def close(self) -> None:
        """Note the progress, fold every log into its file, free the folder. Harmless when closed already."""
        with self._lock:
            if not self._folder.is_open:
                return
            if self._noted_below != self._acknowledged_below:
                with contextlib.suppress(ServiceError):  # then some batches are sent again, under the same seq
                    self._chain.note_progress(self._acknowledged_below)
            self._chain.close()
            self._folder.close()

    # -- numbering and progress --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open_lock(self) -> Iterator[None]:
        """Hold the lock of a buffer that is open."""
        with self._lock:
            if not self._folder.is_open:
                raise ServiceError("buffer: already closed")
            yield

    def _numbered(self, drafts: Sequence[DraftBatch]) -> list[StoredBatch]:
        created_us = self._clock.now_us()
        next_seq = dict(self._chain.next_seq)
        batches = []
        for position, draft in enumerate(drafts, start=self._chain.next_position):
            key: LaneKey = (draft.machine_id, draft.route)
            seq = next_seq.get(key, 1)
            next_seq[key] = seq + 1
            times = (draft.first_us, draft.last_us)
            numbers = (self._chain.epoch, seq, *times, draft.readings, created_us)
            batches.append(StoredBatch(position, draft.schema, *key, *numbers, draft.body))
        return batches

    def _waits(self, position: int) -> bool:
        return position >= self._acknowledged_below and position not in self._acknowledged

    def _advance(self) -> None:
        """Count what damaged segments took with them; move the front past it and past what is acknowledged."""
        for hole in self._chain.holes:
            first = max(hole.first_position, self._acknowledged_below)
            known = sum(first <= position < hole.next_position for position in self._acknowledged)
            lost = max(0, hole.next_position - first - known)
            self._dropped_batches += lost
            self._dropped_readings += hole.readings * lost // (hole.next_position - hole.first_position)
        self._chain.holes.clear()
        while self._acknowledged_below < self._chain.next_position:
            after_hole = self._chain.skip_hole(self._acknowledged_below)
            if after_hole > self._acknowledged_below:
                self._move_front(after_hole)
            elif self._acknowledged_below in self._acknowledged:
                self._acknowledged.remove(self._acknowledged_below)
                self._acknowledged_below += 1
            else:
                break

    def _move_front(self, position: int) -> None:
        self._acknowledged_below = max(self._acknowledged_below, position)
        self._acknowledged = {one for one in self._acknowledged if one >= self._acknowledged_below}

    def _oldest_us(self) -> int | None:
        """Return when the batch at the front was accepted, reading it once."""
        front = self._acknowledged_below
        if self._oldest is None or self._oldest[0] != front:
            try:
                first = self._chain.read(front, 1, 0)
            except ServiceError:
                return None
            self._oldest = (front, first[0].created_us) if first else None
        return self._oldest[1] if self._oldest else None

    # -- room --------------------------------------------------------------------------------------------------------

    def _make_room(self, size_bytes: int) -> None:
        limit = self._limits.size_mb_max * _MB
        while self._chain.size_bytes + size_bytes > limit and self._chain.closed:
            oldest = self._chain.closed[0]
            unsent = self._unsent_readings(oldest)
            if unsent and not self._limits.drop_oldest:
                break
            self._move_front(oldest.next_position)
            self._forget(oldest)
            self._claimed_to = max(self._claimed_to, self._acknowledged_below)
            if unsent:
                lost = sum(unsent)
                self._dropped_batches += len(unsent)
                self._dropped_readings += lost
                log.error("buffer.dropped_oldest", batches=len(unsent), readings=lost, limit_mb=limit / _MB)
        self._advance()
        if self._chain.size_bytes + size_bytes > limit and not self._limits.drop_oldest:
            raise BufferFullError(f"buffer is full: {self._chain.size_bytes} bytes of {limit:.0f}, policy drop_newest")

    def _unsent_readings(self, kept: Kept) -> list[int]:
        """Return the readings of each batch of `kept` that still waits."""
        front = max(self._acknowledged_below, kept.first_position)
        if front >= kept.next_position:
            return []
        readings = self._chain.readings_from(kept, front)
        return [readings[position] for position in readings if self._waits(position)]

    def _trim_history(self, segments_min: int = 0) -> None:
        """Delete whole acknowledged segments, oldest first: down to the history limit, and at least so many."""
        history = [kept for kept in self._chain.closed if kept.next_position <= self._acknowledged_below]
        excess = sum(kept.size_bytes for kept in history) - self._limits.history_mb_max * _MB
        for number, kept in enumerate(history):
            if excess <= 0 and number >= segments_min:
                break
            self._forget(kept)
            excess -= kept.size_bytes

    def _forget(self, kept: Kept) -> None:
        """Delete a segment, but first note that it is not missing."""
        if kept.next_position > self._noted_below:
            with contextlib.suppress(ServiceError):
                self._chain.note_progress(self._acknowledged_below)
                self._noted_below = self._acknowledged_below
        self._chain.forget(kept)
