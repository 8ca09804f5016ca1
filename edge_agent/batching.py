"""From readings to batches: per-series blocks, gathered per lane, compressed in one call.

In: frames whose `series` column holds rows of the series table. Out: draft batches, complete but for the seq that
the buffer gives them. Pure but for what it gathers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.codec import CodecName, Sticky, encode_blocks
from common.model import ReadingFrame, Route
from common.wire import BIRTH, TELEMETRY_BATCH, encode_batch_body, encode_birth_body
from edge_agent.series import SeriesTable

READINGS_PER_BATCH_MAX = 16_384
"""Keeps the largest possible batch (raw, one reading a block) below Kafka's default limit of 1 MB a message."""


@dataclass(frozen=True, slots=True)
class DraftBatch:
    """What the buffer accepts: a lane's message without its seq. `schema` tells batch from birth."""

    schema: str
    machine_id: str
    route: Route
    first_us: int
    last_us: int
    readings: int
    body: bytes


class Batcher:
    """Gathers frames until `take`; `births` are the definitions that the batches refer to."""

    def __init__(
        self,
        table: SeriesTable,
        site: str,
        gateway_id: str,
        readings_per_block_max: int,
        codec: CodecName = "balanced",
    ) -> None:
        """Encode the birth of each lane once."""
        self._table = table
        self._block_max = readings_per_block_max
        self._codec: CodecName = codec
        self._sticky = Sticky(len(table))
        self._frames: list[ReadingFrame] = []
        self._births = [encode_birth_body(site, gateway_id, lane.series) for lane in table.lanes]
        self.gathered = 0

    def births(self) -> list[DraftBatch]:
        """Return a birth for every lane, to be accepted before the lane's batches."""
        return [
            DraftBatch(BIRTH, lane.machine_id, lane.route, 0, 0, 0, body)
            for lane, (_, body) in zip(self._table.lanes, self._births, strict=True)
        ]

    def add(self, frame: ReadingFrame) -> None:
        """Gather a frame."""
        if len(frame):
            self._frames.append(frame)
            self.gathered += len(frame)

    def take(self) -> ReadingFrame:
        """Hand over everything gathered, to be given to `encode`, perhaps in another thread."""
        frames, self._frames = self._frames, []
        self.gathered = 0
        return ReadingFrame.concat(frames)

    def encode(self, frame: ReadingFrame) -> list[DraftBatch]:
        """Compress a frame; at least one draft for each lane that has readings in it."""
        if not len(frame):
            return []
        frame = frame.take(np.argsort(frame.series, kind="stable"))
        cuts = self._cuts(frame.series)
        runs = list(self._runs(frame.series, cuts))
        rows = frame.series[cuts[:-1]].astype(np.int64)
        data, sizes = encode_blocks(
            frame.ts_us,
            frame.values,
            frame.statuses,
            cuts,
            self._codec,
            groups=np.array([0] + [last for _, _, last in runs], np.int64),
            sticky=self._sticky,
            series=rows,
            max_error=self._table.max_error[rows],
            resolution=self._table.resolution[rows],
        )
        ends = np.append(0, np.cumsum(sizes))
        return [
            self._draft(lane, frame, cuts[first : last + 1], (data[ends[first] : ends[last]], sizes[first:last]))
            for lane, first, last in runs
        ]

    def _runs(self, series: NDArray[np.int32], cuts: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Yield (lane index, first block, block after the last) of each batch, together covering every block."""
        bounds = np.searchsorted(series, self._table.lane_starts)
        for lane, (low, high) in enumerate(pairwise(bounds)):
            for first, last in self._block_runs(cuts, int(low), int(high)):
                yield lane, first, last

    def _cuts(self, series: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return int64[blocks + 1]: where each block of the sorted column begins, then its end."""
        starts = np.flatnonzero(np.r_[True, series[1:] != series[:-1]])
        ends = np.r_[starts[1:], series.size]
        if np.all(ends - starts <= self._block_max):
            return np.append(starts, series.size).astype(np.int64)
        pieces = [np.arange(start, end, self._block_max) for start, end in zip(starts, ends, strict=True)]
        return np.concatenate([*pieces, [series.size]]).astype(np.int64)

    @staticmethod
    def _block_runs(cuts: NDArray[np.int64], low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield block ranges covering readings low..high, each of at most READINGS_PER_BATCH_MAX readings."""
        first, end = (int(index) for index in np.searchsorted(cuts, [low, high]))
        while first < end:
            last = int(np.searchsorted(cuts, cuts[first] + READINGS_PER_BATCH_MAX, side="right")) - 1
            last = min(max(last, first + 1), end)
            yield first, last
            first = last

    def _draft(
        self, index: int, frame: ReadingFrame, cuts: NDArray[np.int64], blocks: tuple[bytes, NDArray[np.int64]]
    ) -> DraftBatch:
        lane, birth_id = self._table.lanes[index], self._births[index][0]
        ts_us = frame.ts_us[cuts[0] : cuts[-1]]
        aliases = frame.series[cuts[:-1]] - np.int32(lane.first)
        first_us, last_us = int(ts_us.min()), int(ts_us.max())
        body = encode_batch_body(birth_id, (first_us, last_us), ts_us.size, aliases, blocks)
        return DraftBatch(TELEMETRY_BATCH, lane.machine_id, lane.route, first_us, last_us, ts_us.size, body)
