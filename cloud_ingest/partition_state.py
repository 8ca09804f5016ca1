"""What a worker keeps in memory of one partition it owns: row numbers of its series, open windows, the watermark.

In: chunks of the partition, the wall clock. Out: what is to be stored, and a step to take once it is. Nothing fails.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cloud_ingest.model import Chunk, Partition
from cloud_ingest.operators import sort_frame
from cloud_ingest.operators.partials import Partials
from cloud_ingest.operators.watermark import NEVER_US, WatermarkSettings, after_readings, after_silence
from cloud_ingest.operators.windows import LengthUpdate, TumblingWindows, WindowsState
from common.model import ReadingFrame


class SeriesRows:
    """Series ids to rows: dense numbers in order of appearance, found by binary search, once per block."""

    def __init__(self) -> None:
        self.series_ids = np.empty(0, np.int32)
        self.announced = np.empty(0, np.bool_)
        """Whether the store knows that this partition brings the series."""
        self._sorted = np.empty(0, np.int32)
        self._rows = np.empty(0, np.int32)

    def rows(self, series_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the rows of series, numbering those that are new."""
        new = np.setdiff1d(series_ids, self._sorted)
        if new.size:
            self.series_ids = np.concatenate([self.series_ids, new])
            self.announced = np.concatenate([self.announced, np.zeros(new.size, np.bool_)])
            self._rows = np.argsort(self.series_ids, kind="stable").astype(np.int32)
            self._sorted = self.series_ids[self._rows]
        found: NDArray[np.int32] = self._rows[np.searchsorted(self._sorted, series_ids)]
        return found


@dataclass(frozen=True, slots=True)
class PartitionStep:
    """What a chunk, or the passing of time, leads to: windows (with series ids) to store, and the change of state."""

    watermark_us: int
    windows: Mapping[int, Partials]
    new_series: NDArray[np.int32]
    update: tuple[LengthUpdate, ...]
    new_rows: NDArray[np.int32]
    late_readings: int = 0


@dataclass(slots=True)
class PartitionState:
    """State of one partition; changed by `apply` only."""

    operator: TumblingWindows
    settings: WatermarkSettings
    generation: int
    quiet_since_us: int
    watermark_us: int = NEVER_US
    series: SeriesRows = field(default_factory=SeriesRows)
    windows: WindowsState = field(init=False)

    def __post_init__(self) -> None:
        self.windows = self.operator.start(self.watermark_us)

    def rebuild(self, stored: ReadingFrame, watermark_us: int) -> None:
        """Take up where the former owner was: `stored` has series ids, from `operator.rebuild_from_us` on."""
        rows = self.series.rows(stored.series) if len(stored) else stored.series
        self.series.announced[:] = True
        frame = sort_frame(ReadingFrame(rows, stored.ts_us, stored.values, stored.statuses))
        self.watermark_us = watermark_us
        self.windows = self.operator.rebuild(frame, watermark_us)

    def after_chunk(self, chunk: Chunk, now_us: int) -> PartitionStep:
        """Work out what a chunk with readings leads to."""
        row_of_block = self.series.rows(chunk.block_series)
        latest_us = int(chunk.ts_us.max())
        watermark_us = after_readings(self.settings, self.watermark_us, latest_us, now_us)
        rows = np.unique(row_of_block)
        return self._step(chunk.frame(row_of_block), watermark_us, rows[~self.series.announced[rows]])

    def after_silence(self, now_us: int) -> PartitionStep | None:
        """Work out what the passing of time leads to; None if it closes no window."""
        watermark_us = after_silence(self.settings, self.watermark_us, self.quiet_since_us, now_us)
        if watermark_us <= self.watermark_us:
            return None
        closes_at_us = self.operator.closes_at_us(self.windows)
        if closes_at_us is None or closes_at_us > watermark_us:
            return None
        return self._step(ReadingFrame.empty(), watermark_us, np.empty(0, np.int32))

    def apply(self, step: PartitionStep, now_us: int | None) -> None:
        """Take a committed step; `now_us` is None when it was one of silence."""
        self.operator.apply(self.windows, step.update)
        self.series.announced[step.new_rows] = True
        self.watermark_us = step.watermark_us
        if now_us is not None:
            self.quiet_since_us = now_us

    def _step(self, frame: ReadingFrame, watermark_us: int, new_rows: NDArray[np.int32]) -> PartitionStep:
        step = self.operator.step(self.windows, frame, watermark_us)
        named = {
            length_us: partials.with_key(self.series.series_ids[partials.row], partials.window)
            for length_us, partials in step.outputs.items()
        }
        shortest = step.outputs[self.operator.lengths_us[0]]
        late = shortest.window < self.windows.lengths[0].floor
        late_readings = int((shortest.count + shortest.bad)[late].sum())
        return PartitionStep(
            watermark_us, named, self.series.series_ids[new_rows], step.update, new_rows, late_readings
        )


def steps_after_chunk(
    states: Mapping[Partition, PartitionState], chunk: Chunk, now_us: int
) -> dict[Partition, PartitionStep]:
    """Work out what a chunk leads to in each partition of which it has readings."""
    parts = chunk.of_partitions() if chunk.entries else {}
    return {
        partition: states[partition].after_chunk(part, now_us) for partition, part in parts.items() if part.readings
    }


def steps_after_silence(states: Mapping[Partition, PartitionState], now_us: int) -> dict[Partition, PartitionStep]:
    """Work out what the passing of time leads to, in the partitions in which it closes a window."""
    steps = {partition: state.after_silence(now_us) for partition, state in states.items()}
    return {partition: step for partition, step in steps.items() if step is not None}
