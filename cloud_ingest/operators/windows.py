"""Tumbling windows: count, mean, extremes, first, last and deviation of each series, per minute and per five.

In: partition state, a sorted frame, the watermark. Out: partials to be stored, one per row and window, in which

- a window is emitted once the watermark has passed its end, with all its readings so far;
- readings that come later than that are emitted at once, as a partial that the store merges into the row it has.

So at any watermark W: every reading of a window that ends at or before W has been emitted, and no other has. That is
what makes state rebuildable: it is what `start(W)` becomes by one `step` over the stored readings from W's oldest open
window on, whose outputs are thrown away (`rebuild_from_us` says where that begins).

Lengths form a chain (1 minute, then 5): what one length emits is what the next takes in, so readings are visited once.

Why is this fast? Windows are numbered floor(time / length). Only windows from floor(W / length) on are open, nearly
always the first few: those live in dense arrays, slot = window modulo slots, 64 bytes a row and slot. A step costs a
few passes over the readings and one gather and one scatter per row touched; emitting costs a scan of the rows, once
per window. Windows further ahead (clocks in the future) live in a small sorted side table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud_ingest.operators import Step
from cloud_ingest.operators.partials import NO_FIRST_US, NO_LAST_US, VALUES, Partials, combine, group, merge
from common.model import ReadingFrame

SLOTS_MAX: Final = 8
LENGTH_US_MAX: Final = 3_600_000_000
"""Times within a window are kept as uint32 microseconds; 0xFFFF_FFFF is free to mean none."""
_NO_TIME: Final = 0xFFFF_FFFF
_DTYPES: Final = {
    "count": np.int32,
    "bad": np.int32,
    "first_us": np.uint32,
    "last_us": np.uint32,
    **dict.fromkeys(("mean", "m2", "low", "high", "first", "last"), np.float64),
}


@dataclass(slots=True)
class LengthState:
    """Open windows of one length: `columns[name][row * slots + window % slots]`, and those far ahead."""

    floor: int
    slots: int
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    ahead: Partials = field(default_factory=Partials.empty)
    rows: int = 0

    def __post_init__(self) -> None:
        self.columns = {name: np.zeros(0, dtype) for name, dtype in _DTYPES.items()}

    def reserve(self, rows: int) -> None:
        """Make room for rows 0 to rows - 1; what is there stays."""
        if rows <= self.rows:
            return
        self.rows = max(rows, self.rows * 5 // 4, 64)
        for name, column in self.columns.items():
            grown = np.zeros(self.rows * self.slots, column.dtype)
            grown[: column.size] = column
            self.columns[name] = grown

    @property
    def bytes_per_row(self) -> int:
        """What one series costs."""
        return self.slots * sum(np.dtype(dtype).itemsize for dtype in _DTYPES.values())


@dataclass(frozen=True, slots=True)
class LengthUpdate:
    """The change of one length: clear the slots below `floor`, write `dense`, replace the side table."""

    floor: int
    dense: Partials
    ahead: Partials


class Tumbling:
    """Windows of one length over incoming partials; see the module."""

    def __init__(self, length_us: int, slots: int) -> None:
        """`slots`: how many windows are usually open at a time."""
        if not 0 < length_us <= LENGTH_US_MAX:
            raise ValueError(f"window length {length_us} us is not within 1 us to 1 hour")
        self.length_us = length_us
        self.slots = min(slots, SLOTS_MAX)

    def start(self, watermark_us: int) -> LengthState:
        """Return a state with nothing open."""
        return LengthState(watermark_us // self.length_us, self.slots)

    def step(self, state: LengthState, incoming: Partials, watermark_us: int) -> Step[LengthUpdate, Partials]:
        """Merge `incoming` (unique keys) with what is open and split it into emitted and still open."""
        floor = max(state.floor, watermark_us // self.length_us)
        if len(incoming):
            state.reserve(int(incoming.row.max()) + 1)
        ahead = state.ahead
        if len(ahead) and (floor > state.floor or bool((incoming.window >= floor + self.slots).any())):
            incoming, ahead = merge([ahead, incoming]), Partials.empty()
        late = incoming.window < state.floor
        emitted = [incoming.take(late)] if late.any() else []
        if emitted:
            incoming = incoming.take(~late)
        known = incoming.window < state.floor + self.slots
        if known.all():
            open_now = combine(self._gather(state, incoming), incoming)
        else:
            near = incoming.take(known)
            open_now = Partials.concat([combine(self._gather(state, near), near), incoming.take(~known)])
        if floor > state.floor:
            emitted.append(self._untouched(state, open_now, floor))
            closing = open_now.window < floor
            emitted.append(open_now.take(closing))
            open_now = open_now.take(~closing)
        far = open_now.window >= floor + self.slots
        if far.any():
            ahead, open_now = Partials.concat([ahead, open_now.take(far)]), open_now.take(~far)
        return Step(Partials.concat(emitted), LengthUpdate(floor, open_now, ahead))

    def apply(self, state: LengthState, update: LengthUpdate) -> None:
        """Take over a step; costs what the step touched, and a sweep of a slot when a window has closed."""
        for window in self._closing_windows(state, update.floor):
            for name in ("count", "bad"):
                state.columns[name][window % self.slots :: self.slots] = 0
        dense = update.dense
        if len(dense):
            at = dense.row * np.int64(self.slots) + dense.window % self.slots
            begin = dense.window * self.length_us
            none = dense.count == 0
            for name in VALUES:
                column = getattr(dense, name)
                if name in {"first_us", "last_us"}:
                    with np.errstate(over="ignore"):
                        column = np.where(none, _NO_TIME, column - begin)
                state.columns[name][at] = column.astype(_DTYPES[name])
        state.floor, state.ahead = update.floor, update.ahead

    def earliest_open(self, state: LengthState) -> int | None:
        """Return the number of the oldest open window; None when nothing is open."""
        for window in range(state.floor, state.floor + self.slots):
            if self._occupied(state, window).any():
                return window
        return int(state.ahead.window.min()) if len(state.ahead) else None

    def _closing_windows(self, state: LengthState, floor: int) -> range:
        return range(state.floor, min(floor, state.floor + self.slots))

    def _occupied(self, state: LengthState, window: int) -> NDArray[np.bool_]:
        slot = slice(window % self.slots, None, self.slots)
        occupied: NDArray[np.bool_] = (state.columns["count"][slot] > 0) | (state.columns["bad"][slot] > 0)
        return occupied

    def _gather(self, state: LengthState, keys: Partials) -> Partials:
        """Return what the state holds of the keys, neutral where that is nothing."""
        at = keys.row * np.int64(self.slots) + keys.window % self.slots
        found = {name: column[at] for name, column in state.columns.items()}
        count = found["count"].astype(np.int64)
        none = count == 0
        begin = keys.window * self.length_us
        some_none = bool(none.any())

        def value(name: str, neutral: float) -> NDArray[np.float64]:
            column: NDArray[np.float64] = found[name]
            return np.where(none, neutral, column) if some_none else column

        first_us, last_us = begin + found["first_us"], begin + found["last_us"]
        if some_none:
            first_us, last_us = np.where(none, NO_FIRST_US, first_us), np.where(none, NO_LAST_US, last_us)
        return Partials(
            keys.row,
            keys.window,
            count,
            found["bad"].astype(np.int64),
            value("mean", 0.0),
            value("m2", 0.0),
            value("low", np.inf),
            value("high", -np.inf),
            value("first", 0.0),
            value("last", 0.0),
            first_us.astype(np.int64),
            last_us.astype(np.int64),
        )

    def _untouched(self, state: LengthState, touched: Partials, floor: int) -> Partials:
        """Return what is open in the state, closes now and got nothing from this frame."""
        found = []
        for window in self._closing_windows(state, floor):
            occupied = self._occupied(state, window)
            occupied[touched.row[touched.window == window]] = False
            rows = np.flatnonzero(occupied).astype(np.int32)
            if rows.size:
                keys = Partials.neutral(rows, np.full(rows.size, window, np.int64))
                found.append(self._gather(state, keys))
        return Partials.concat(found)


@dataclass(slots=True)
class WindowsState:
    """One LengthState per length of the chain."""

    lengths: tuple[LengthState, ...]


class TumblingWindows:
    """The chain of window lengths; an `Operator` whose outputs are `{length_us: Partials}`."""

    def __init__(self, lengths_us: Sequence[int], allowed_lateness_us: int) -> None:
        """Each length must be a multiple of the one before."""
        for shorter, longer in pairwise(lengths_us):
            if longer % shorter:
                raise ValueError(f"window lengths must be multiples of each other, not {shorter} and {longer} us")
        # In time order, readings lie between the watermark and the watermark + lateness.
        first_slots = -(-allowed_lateness_us // lengths_us[0]) + 1
        self._chain = tuple(
            Tumbling(length_us, first_slots if position == 0 else 1) for position, length_us in enumerate(lengths_us)
        )

    @property
    def lengths_us(self) -> tuple[int, ...]:
        """The lengths, shortest first."""
        return tuple(one.length_us for one in self._chain)

    def start(self, watermark_us: int) -> WindowsState:
        """Return a state with nothing open."""
        return WindowsState(tuple(one.start(watermark_us) for one in self._chain))

    def rebuild_from_us(self, watermark_us: int) -> int:
        """Return from which time on stored readings are needed to rebuild the state at `watermark_us`."""
        longest = self._chain[-1].length_us
        return watermark_us // longest * longest

    def rebuild(self, frame: ReadingFrame, watermark_us: int) -> WindowsState:
        """Return the state at `watermark_us` from the stored readings since `rebuild_from_us(watermark_us)`."""
        state = self.start(self.rebuild_from_us(watermark_us))
        self.apply(state, self.step(state, frame, watermark_us).update)
        return state

    def step(
        self, state: WindowsState, frame: ReadingFrame, watermark_us: int
    ) -> Step[tuple[LengthUpdate, ...], Mapping[int, Partials]]:
        """See `Operator.step`; the frame is sorted by row and time."""
        incoming = group(frame, self._chain[0].length_us)
        outputs, updates = {}, []
        for position, (one, length_state) in enumerate(zip(self._chain, state.lengths, strict=True)):
            if position:
                shorter = self._chain[position - 1]
                per = one.length_us // shorter.length_us
                incoming = merge([incoming.with_key(incoming.row, incoming.window // per)])
            step = one.step(length_state, incoming, watermark_us)
            outputs[one.length_us] = incoming = step.outputs
            updates.append(step.update)
        return Step(outputs, tuple(updates))

    def apply(self, state: WindowsState, update: tuple[LengthUpdate, ...]) -> None:
        """See `Operator.apply`."""
        for one, length_state, length_update in zip(self._chain, state.lengths, update, strict=True):
            one.apply(length_state, length_update)

    def closes_at_us(self, state: WindowsState) -> int | None:
        """Return the watermark at which the next open window is emitted; None when nothing is open."""
        ends = [
            (window + 1) * one.length_us
            for one, length_state in zip(self._chain, state.lengths, strict=True)
            if (window := one.earliest_open(length_state)) is not None
        ]
        return min(ends, default=None)
