"""Swinging door: a reading passes only when a straight line from the last one passed no longer tells those between.

After Bristol, "Swinging Door Trending: Adaptive Trend Recording?", ISA 1990. What arrives in order is held back, one
reading a series; when the readings since the last one passed can no longer all be within the bound of one line from it,
the held one passes and becomes the start of the next line.

The bound truly holds: a line drawn between neighbouring passed readings is nowhere further from a reading that was
dropped than the bound. The textbook's door is only sure that *some* line within the door fits; the line to the held
reading may be outside of it. So the door is narrowed by every reading, and the held reading must itself be within the
door of those before it; if it is not, the reading before it passes instead (each candidate end is checked, none later).

A reading also passes, and what is held before it, when its status is not that of the last one, when it is NaN or
infinite or the one before was, when it is bad, when its time does not go forward, or when `max_us` since the last one
passed would be over. `flush` lets go of what is held.
"""

import numpy as np
from numpy.typing import NDArray

from common.model import ReadingFrame, is_bad
from edge_agent.filters.rounds import rounds

Floats = NDArray[np.float64]
# What is left of the bound, and of the magnitude, for the rounding of slopes and of whoever draws the lines.
_RESERVE = 1.0 - 2.0**-20
_ROUNDING = 2.0**-49


class SwingingDoorFilter:
    """Holds the last reading passed, the one held back, and the door of each series; `apply` and `flush`."""

    def __init__(self, bound: Floats, max_us: NDArray[np.int64]) -> None:
        """`bound` float64[m] (NaN or 0: everything passes) and `max_us` int64[m] (0: none), by series row."""
        rows = bound.size
        self._bound = np.where(bound > 0.0, bound, 0.0) * _RESERVE
        self._max_us = np.where(max_us > 0, max_us, np.iinfo(np.int64).max)
        self._seen = np.zeros(rows, np.bool_)
        self._holds = np.zeros(rows, np.bool_)
        self._passed_us = np.zeros(rows, np.int64)
        self._passed = np.zeros(rows, np.float64)
        self._held_us = np.zeros(rows, np.int64)
        self._held = np.zeros(rows, np.float64)
        self._status = np.zeros(rows, np.int32)
        self._low = np.full(rows, -np.inf)
        self._high = np.full(rows, np.inf)

    def apply(self, frame: ReadingFrame) -> ReadingFrame:
        """Return the readings that pass now, each series in order; what is held comes with a later call or `flush`."""
        parts = [self._pass(frame.take(positions)) for positions in rounds(frame.series)]
        return ReadingFrame.concat(parts) if len(parts) != 1 else parts[0]

    def flush(self) -> ReadingFrame:
        """Return what is held back, and start every series anew from it: before a stop, or a batch's deadline."""
        rows = np.flatnonzero(self._holds).astype(np.int32)
        return self._release(rows)

    def _pass(self, frame: ReadingFrame) -> ReadingFrame:
        """Judge a frame in which no series occurs twice."""
        row = frame.series
        plain = np.isfinite(frame.values) & np.isfinite(self._passed[row]) & ~is_bad(frame.statuses)
        plain &= self._seen[row] & (frame.statuses == self._status[row]) & (self._bound[row] > 0.0)
        latest_us = np.where(self._holds[row], self._held_us[row], self._passed_us[row])
        plain &= (frame.ts_us > latest_us) & (frame.ts_us - self._passed_us[row] < self._max_us[row])
        low, high, slope = self._door(row, frame, self._passed_us[row], self._passed[row])
        # The line to this reading must be within the door of all before it.
        fits = plain & (slope >= self._low[row]) & (slope <= self._high[row])
        released = self._release(row[~fits & self._holds[row]])
        turns = plain & ~fits & np.isin(row, released.series)
        # Where the held one has passed, this reading begins the next line's door, from there.
        low_new, high_new, _ = self._door(row, frame, self._passed_us[row], self._passed[row])
        held = fits | turns
        kept = row[held]
        self._low[kept] = np.where(fits, np.maximum(self._low[row], low), low_new)[held]
        self._high[kept] = np.where(fits, np.minimum(self._high[row], high), high_new)[held]
        self._held_us[kept], self._held[kept], self._holds[kept] = frame.ts_us[held], frame.values[held], True
        passing = frame.take(np.flatnonzero(~held))
        self._start(passing)
        return ReadingFrame.concat([released, passing])

    def _door(
        self, row: NDArray[np.int32], frame: ReadingFrame, from_us: NDArray[np.int64], start: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return the lowest and highest slope that pass a reading within its bound, and the slope to it."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            elapsed = (frame.ts_us - from_us).astype(np.float64)
            rise = frame.values - start
            # What a double cannot tell apart at these magnitudes is not the bound's to give away.
            room = self._bound[row] - _ROUNDING * (np.abs(frame.values) + np.abs(start))
            return (rise - room) / elapsed, (rise + room) / elapsed, rise / elapsed

    def _release(self, rows: NDArray[np.int32]) -> ReadingFrame:
        released = ReadingFrame(rows, self._held_us[rows], self._held[rows], self._status[rows])
        self._start(released)
        return released

    def _start(self, passed: ReadingFrame) -> None:
        """Begin a new line at each reading of a frame."""
        row = passed.series
        self._seen[row], self._holds[row] = True, False
        self._passed_us[row], self._passed[row], self._status[row] = passed.ts_us, passed.values, passed.statuses
        self._low[row], self._high[row] = -np.inf, np.inf
