"""What computes on readings: pure, vectorised, the same in the worker, in batch jobs and in a distributed engine.

In: the state of one partition, a frame of its readings and the partition's watermark. Out: what is to be emitted and
what is to change in the state. Nothing here does input or output, knows Kafka or a database, or asks the time.

A frame's `series` column is the *row* of the series: dense numbers, from 0, private to the partition; state is a
struct of arrays indexed by it. Frames are sorted by row and time (`sort_frame`), equal times in order of arrival.

The two halves of a step are apart because the database may refuse a flush: `step` looks at the state and leaves it as
it is; the caller stores the outputs and, only once they are committed, calls `apply`. A step may be thrown away and
made again any number of times.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from common.model import ReadingFrame

StateT = TypeVar("StateT")
UpdateT = TypeVar("UpdateT")
OutputT_co = TypeVar("OutputT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Step(Generic[UpdateT, OutputT_co]):
    """What a step found: `outputs` to store, `update` to apply to the state after they are committed."""

    outputs: OutputT_co
    update: UpdateT


class Operator(Protocol[StateT, UpdateT, OutputT_co]):
    """The contract of every operator; instances hold settings only, never state."""

    def start(self, watermark_us: int) -> StateT:
        """Return the state of a partition of which nothing is open at `watermark_us`."""
        ...

    def step(self, state: StateT, frame: ReadingFrame, watermark_us: int) -> Step[UpdateT, OutputT_co]:
        """Work out what `frame` and the new watermark (never below the last) lead to; `state` stays as it is."""
        ...

    def apply(self, state: StateT, update: UpdateT) -> None:
        """Take over a committed step's update."""
        ...


def is_sorted(frame: ReadingFrame) -> bool:
    """Tell whether a frame is sorted by row and time."""
    series, ts = frame.series, frame.ts_us
    same = series[1:] == series[:-1]
    return bool(((series[1:] > series[:-1]) | (same & (ts[1:] >= ts[:-1]))).all())


def sort_frame(frame: ReadingFrame) -> ReadingFrame:
    """Return the frame sorted by row and time, equal times in the order they had; a scan if it is sorted already."""
    return frame if is_sorted(frame) else frame.take(np.lexsort((frame.ts_us, frame.series)))
