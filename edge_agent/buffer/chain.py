"""The chain of segments: files in the order of their positions, of which the last is open for appending.

In: a folder of segment files, whatever a crash or a bad disk left of them. Out: batches by position, and room for
more. A file that cannot be read is set aside under another name and leaves a hole; the rest goes on. Not
thread-safe: the buffer holds the lock. Fails with ServiceError only (the disk refuses, now).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import structlog

from edge_agent.buffer.damage import first_line, inspect, raise_unless_damaged, set_aside, unavailable
from edge_agent.buffer.segment import SUFFIX, UNFINISHED, LaneKey, Segment, StoredBatch, remove, size_on_disk

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Kept:
    """A segment file of the chain: the positions it holds, and its size."""

    path: Path
    first_position: int
    next_position: int
    readings: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Hole:
    """Positions whose segment is gone; `readings` is 0 where nobody knows how many there were."""

    first_position: int
    next_position: int
    readings: int


class SegmentChain:
    """The open files of one buffer folder.

    Attributes:
        epoch: grows whenever seqs may have been used that nobody remembers.
        next_position: where the next batch goes.
        next_seq: its seq by lane; 1 where a lane is missing.
        acknowledged_below: as far as the files knew when they were opened.
        holes: what damaged files took with them since the caller last emptied the list.
        damaged: how many files were found damaged.
    """

    def __init__(self, folder: Path, known: tuple[int, int], new_epoch: Callable[[], int]) -> None:
        """Open `folder`, recovering what can be read.

        `known` is (next position, epoch) as last noted elsewhere: when the files end before it, some are missing.
        `new_epoch` names an epoch by the clock; the one taken is always above the last.
        """
        self._folder, self._new_epoch = folder, new_epoch
        self._kept: list[Kept] = []
        self._active: Segment | None = None
        self._reader: Segment | None = None
        self.holes: list[Hole] = []
        self.damaged = 0
        self.acknowledged_below = 0
        self.next_position, self.epoch = 0, known[1]
        self.next_seq: dict[LaneKey, int] = {}
        self._recover(known[0])

    # -- reading and appending -----------------------------------------------------------------------------------

    def read(self, position: int, limit: int, bytes_max: int) -> list[StoredBatch]:
        """Return batches of one segment from `position` on, or from after the hole there; empty at the end."""
        failed: Kept | None = None
        while (kept := self._at(position)) is not None:
            try:
                return self._open(kept).read(position, limit, bytes_max)
            except duckdb.Error as error:
                self._mend(kept, error, give_up=kept is failed)
                failed = kept
        return []

    def append(self, batches: Sequence[StoredBatch], acknowledged_below: int) -> None:
        """Make `batches` safe; raises ServiceError when they are not."""
        active, kept = self._writable(acknowledged_below), self._kept[-1]
        try:
            active.append(batches, acknowledged_below)
        except duckdb.Error as error:
            if not self._landed(kept, batches[-1].position, error):
                raise unavailable(kept.path, error) from error
        kept.next_position = self.next_position = batches[-1].position + 1
        kept.size_bytes += size_on_disk(batch.body for batch in batches)
        kept.readings += sum(batch.readings for batch in batches)
        self.next_seq.update({(batch.machine_id, batch.route): batch.seq + 1 for batch in batches})

    def prepare(self, acknowledged_below: int) -> None:
        """See that a file is open for appending; after a damaged one, that begins an epoch."""
        self._writable(acknowledged_below)

    def note_progress(self, acknowledged_below: int) -> None:
        """Write down how far everything is acknowledged."""
        try:
            self._writable(acknowledged_below).note_progress(acknowledged_below)
        except duckdb.Error as error:
            raise unavailable(self._folder, error) from error

    # -- the files -----------------------------------------------------------------------------------------------

    @property
    def active_bytes(self) -> int:
        """About how large the file open for appending is."""
        return 0 if self._active is None else self._kept[-1].size_bytes

    @property
    def size_bytes(self) -> int:
        """About how large all files are."""
        return sum(kept.size_bytes for kept in self._kept)

    @property
    def closed(self) -> Sequence[Kept]:
        """The files that nothing is added to any more, oldest first."""
        return self._kept if self._active is None else self._kept[:-1]

    def __len__(self) -> int:
        return len(self._kept)

    def rotate(self, acknowledged_below: int) -> None:
        """Close the file open for appending and start the next."""
        old, done = self._writable(acknowledged_below), self._kept[-1]
        if done.first_position == done.next_position:
            return
        self._start_segment(acknowledged_below)
        try:
            old.close()
            done.size_bytes = done.path.stat().st_size
        except (duckdb.Error, OSError) as error:  # its log was not folded in; both stay, and are read when needed
            log.warning("buffer.close_failed", segment=done.path.name, why=first_line(error))

    def forget(self, kept: Kept) -> None:
        """Delete a closed file."""
        self._close_reader(kept)
        self._kept.remove(kept)
        try:
            remove(kept.path)
        except OSError as error:  # found again at the next start
            log.warning("buffer.delete_failed", segment=kept.path.name, why=error.strerror)

    def readings_from(self, kept: Kept, position: int) -> dict[int, int]:
        """Return the readings of each batch from `position` on; empty when the file cannot be read."""
        try:
            return self._open(kept).readings_from(position)
        except duckdb.Error:
            return {}

    def skip_hole(self, position: int) -> int:
        """Return `position`, or where the hole that it is in ends."""
        kept = self._at(position)
        return self.next_position if kept is None else max(position, kept.first_position)

    def close(self) -> None:
        """Let go of every file."""
        self._close_reader()
        if self._active is not None:
            try:
                self._active.close()
            except duckdb.Error as error:
                log.warning("buffer.close_failed", segment=self._active.path.name, why=first_line(error))

    # -- recovery ------------------------------------------------------------------------------------------------

    def _recover(self, known_position: int) -> None:
        for leftover in self._folder.glob(f"*{SUFFIX}{UNFINISHED}*"):
            leftover.unlink(missing_ok=True)
        complete = False
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            found, complete = inspect(path)
            self.damaged += not complete
            if found is not None:
                self._kept.append(
                    Kept(path, found.first_position, found.next_position, found.readings, found.size_bytes)
                )
                self.acknowledged_below = max(self.acknowledged_below, found.acknowledged_below)
                self.next_position, self.next_seq = found.next_position, dict(found.next_seq)
                self.epoch = max(self.epoch, found.epoch)
        if self._kept:
            self._note_hole(self.acknowledged_below, self._kept[0].first_position)
        for before, after in pairwise(self._kept):
            self._note_hole(before.next_position, after.first_position)
        self._note_hole(self.next_position, known_position)
        if complete and known_position <= self.next_position:
            self._open_active()
        else:
            self.next_position = max(self.next_position, known_position)
            self._start_epoch(self.acknowledged_below)

    def _mend(self, kept: Kept, error: duckdb.Error, *, give_up: bool = False) -> None:
        """Open a file anew that failed while in use; one that is damaged leaves a hole."""
        raise_unless_damaged(kept.path, error)
        is_active = self._is_active(kept)
        self._close_reader(kept)
        if is_active and self._active is not None:
            _close_quietly(self._active)
            self._active = None
        found = None
        if give_up:
            set_aside(kept.path, error)
        else:
            found, complete = inspect(kept.path)
        if found is not None and complete and found.next_position == kept.next_position:
            if is_active:
                self._open_active()
            return
        self.damaged += 1
        if found is None:
            self._kept.remove(kept)
            self._note_hole(kept.first_position, kept.next_position, kept.readings)
        else:
            self._note_hole(found.next_position, kept.next_position, kept.readings - found.readings)
            kept.next_position, kept.readings = found.next_position, found.readings

    def _landed(self, kept: Kept, position: int, error: duckdb.Error) -> bool:
        """Tell, after a failed append, whether the batches are there after all; mends the file if need be."""
        try:
            if self._active is not None:
                return self._active.holds(position)
        except duckdb.Error:
            self._mend(kept, error)
        return self._is_active(kept) and self._landed(kept, position, error)

    def _note_hole(self, first_position: int, next_position: int, readings: int = 0) -> None:
        if first_position < next_position:
            self.holes.append(Hole(first_position, next_position, readings))

    def _writable(self, acknowledged_below: int) -> Segment:
        """Return the file open for appending; makes one, in a new epoch, where the last was damaged."""
        return self._active or self._start_epoch(acknowledged_below)

    def _start_epoch(self, acknowledged_below: int) -> Segment:
        """Number afresh: there is no segment, or seqs may have been used that nobody remembers."""
        self.epoch = max(self._new_epoch(), self.epoch + 1)
        self.next_seq = {}
        return self._start_segment(acknowledged_below)

    def _start_segment(self, acknowledged_below: int) -> Segment:
        path = self._folder / f"{self.next_position:016d}{SUFFIX}"
        if path.exists():  # an empty one of the epoch before
            self._kept = [kept for kept in self._kept if kept.path != path]
            remove(path)
        try:
            active = Segment.create(path, self.next_position, self.epoch, acknowledged_below, self.next_seq)
        except (duckdb.Error, OSError) as error:
            raise unavailable(path, error) from error
        self._active = active
        self._kept.append(Kept(path, self.next_position, self.next_position, 0, 0))
        return active

    # -- finding -------------------------------------------------------------------------------------------------

    def _is_active(self, kept: Kept) -> bool:
        return self._active is not None and kept is self._kept[-1]

    def _at(self, position: int) -> Kept | None:
        """Return the file that holds `position`, or the next after it."""
        return next((kept for kept in self._kept if kept.next_position > position), None)

    def _open(self, kept: Kept) -> Segment:
        if self._active is not None and kept is self._kept[-1]:
            return self._active
        if self._reader is None or self._reader.path != kept.path:
            self._close_reader()
            self._reader = Segment(kept.path)
        return self._reader

    def _open_active(self) -> None:
        path = self._kept[-1].path
        try:
            self._active = Segment(path)
        except duckdb.Error as error:
            raise unavailable(path, error) from error

    def _close_reader(self, kept: Kept | None = None) -> None:
        if self._reader is not None and (kept is None or self._reader.path == kept.path):
            _close_quietly(self._reader)
            self._reader = None


def _close_quietly(segment: Segment) -> None:
    try:
        segment.close()
    except duckdb.Error as error:
        log.debug("buffer.close_failed", segment=segment.path.name, why=first_line(error))
