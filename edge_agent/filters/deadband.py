"""Absolute deadband with a heartbeat: a reading passes only when it says something new.

A reading of a series passes when it is the series' first, when its status code or NaN-ness changed, when its value
differs from the last one *passed* by more than the deadband and the minimum interval since that one is over, when the
heartbeat since the last one passed is over, or when its time went back (a clock jump). Percent deadbands have become
absolute ones by the config's range (the reading of OPC 10000-8, 6.2: percent of the engineering-unit range). A NaN
deadband lets every good reading pass.
Bad readings that repeat themselves pass once a heartbeat, at the latest every minute.
"""

import numpy as np
from numpy.typing import NDArray

from common.clock import US_PER_SECOND
from common.model import ReadingFrame, is_bad
from edge_agent.filters.rounds import rounds

BAD_HEARTBEAT_US = 60 * US_PER_SECOND


class DeadbandFilter:
    """Holds the last reading passed of each series; `apply` is the whole interface."""

    def __init__(
        self,
        deadband: NDArray[np.float64],
        heartbeat_us: NDArray[np.int64],
        interval_min_us: NDArray[np.int64] | None = None,
    ) -> None:
        """By series row: `deadband` float64[m] (NaN: everything passes), `heartbeat_us` int64[m] (0: none).

        A value that moved passes no sooner than `interval_min_us` int64[m] after the last (0 or None: at once).
        """
        rows = deadband.size
        self._deadband = deadband
        self._interval_min_us = np.zeros(rows, np.int64) if interval_min_us is None else interval_min_us
        self._heartbeat_us = np.where(heartbeat_us > 0, heartbeat_us, np.iinfo(np.int64).max)
        self._bad_heartbeat_us = np.minimum(self._heartbeat_us, BAD_HEARTBEAT_US)
        self._seen = np.zeros(rows, np.bool_)
        self._value = np.zeros(rows, np.float64)
        self._ts_us = np.zeros(rows, np.int64)
        self._status = np.zeros(rows, np.int32)

    def apply(self, frame: ReadingFrame) -> ReadingFrame:
        """Return the readings of `frame` that pass, in order, and remember them."""
        keep = np.zeros(len(frame), np.bool_)
        for round_ in rounds(frame.series):
            keep[round_] = self._pass(frame.take(round_))
        return frame if keep.all() else frame.take(keep)

    def _pass(self, frame: ReadingFrame) -> NDArray[np.bool_]:
        """Judge a frame in which no series occurs twice."""
        row = frame.series
        last = self._value[row]
        bad = is_bad(frame.statuses)
        age_us = frame.ts_us - self._ts_us[row]
        deadband = self._deadband[row]
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: both sides the same, nothing moved
            moved = np.isnan(deadband) | (np.abs(frame.values - last) > deadband)
        moved |= np.isnan(frame.values) != np.isnan(last)
        heartbeat_us = np.where(bad, self._bad_heartbeat_us[row], self._heartbeat_us[row])
        keep: NDArray[np.bool_] = (
            ~self._seen[row]
            | (frame.statuses != self._status[row])
            | (moved & ~bad & (age_us >= self._interval_min_us[row]))
            | (age_us >= heartbeat_us)
            | (age_us < 0)
        )
        passed = row[keep]
        self._seen[passed] = True
        self._value[passed] = frame.values[keep]
        self._ts_us[passed] = frame.ts_us[keep]
        self._status[passed] = frame.statuses[keep]
        return keep
