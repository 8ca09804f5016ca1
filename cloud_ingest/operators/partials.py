"""Partial aggregates: what is known of one window of one series from some of its readings, and how they combine.

In: sorted readings, or partials. Out: partials. Nothing fails: NaN and infinities give what SQL's aggregates give.

Definitions: a reading takes part when its status is not bad and its value is not NaN. `count` counts those, `bad`
the others; everything else is over those that took part. `m2` is the sum of squared deviations from the mean, combined
after Chan, Golub and LeVeque (1979). First and last go by time, then by order of arrival.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.model import ReadingFrame, is_bad

NO_FIRST_US: Final = np.iinfo(np.int64).max
NO_LAST_US: Final = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Partials:
    """Columns of equal length; key = (row, window), window = floor(time / window length).

    Where count is 0: mean = m2 = first = last = 0, low = inf, high = -inf, first_us = NO_FIRST_US and
    last_us = NO_LAST_US, which makes such an entry neutral in every combination.
    """

    row: NDArray[np.int32]
    window: NDArray[np.int64]
    count: NDArray[np.int64]
    bad: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    first: NDArray[np.float64]
    last: NDArray[np.float64]
    first_us: NDArray[np.int64]
    last_us: NDArray[np.int64]

    def __len__(self) -> int:
        return self.row.size

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "Partials":
        """Return the entries that `index` (positions or a mask) names."""
        return Partials(*(getattr(self, name)[index] for name in COLUMNS))

    def with_key(self, row: NDArray[np.int32], window: NDArray[np.int64]) -> "Partials":
        """Return the same aggregates under other keys."""
        return Partials(row, window, *(getattr(self, name) for name in VALUES))

    @staticmethod
    def neutral(row: NDArray[np.int32], window: NDArray[np.int64]) -> "Partials":
        """Return entries of no readings at all."""
        n = row.size
        return Partials(
            row,
            window,
            count=np.zeros(n, np.int64),
            bad=np.zeros(n, np.int64),
            mean=np.zeros(n),
            m2=np.zeros(n),
            low=np.full(n, np.inf),
            high=np.full(n, -np.inf),
            first=np.zeros(n),
            last=np.zeros(n),
            first_us=np.full(n, NO_FIRST_US),
            last_us=np.full(n, NO_LAST_US),
        )

    @staticmethod
    def empty() -> "Partials":
        """Return no entries."""
        return Partials.neutral(np.empty(0, np.int32), np.empty(0, np.int64))

    @staticmethod
    def concat(parts: "Sequence[Partials]") -> "Partials":
        """Join entries in the order given, equal keys staying apart."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return Partials.empty()
        if len(parts) == 1:
            return parts[0]
        return Partials(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))


COLUMNS: Final = tuple(field.name for field in fields(Partials))
VALUES: Final = COLUMNS[2:]


def group(frame: ReadingFrame, length_us: int) -> Partials:
    """Aggregate a frame sorted by row and time into one partial per row and window of `length_us`."""
    n = len(frame)
    if n == 0:
        return Partials.empty()
    window = frame.ts_us // length_us
    starts = _starts(frame.series, window)
    sizes = np.diff(starts, append=n)
    row, window = frame.series[starts], window[starts]
    good = ~(is_bad(frame.statuses) | np.isnan(frame.values))
    if good.all():
        count, values, ts_us = sizes, frame.values, frame.ts_us
    else:
        count = np.add.reduceat(good, starts, dtype=np.int64)
        values, ts_us = frame.values[good], frame.ts_us[good]
    some = count > 0
    if some.all():
        return Partials(row, window, count, sizes - count, *_aggregate(values, ts_us, count))
    found = Partials.neutral(row, window)
    for name, column in zip(VALUES[2:], _aggregate(values, ts_us, count[some]), strict=True):
        getattr(found, name)[some] = column
    return Partials(row, window, count, sizes - count, *(getattr(found, name) for name in VALUES[2:]))


def _aggregate(
    values: NDArray[np.float64], ts_us: NDArray[np.int64], count: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """Return mean, m2, low, high, first, last, first_us, last_us of consecutive groups of `count` > 0 values."""
    if not count.size:
        none, no_time = np.empty(0), np.empty(0, np.int64)
        return (none, none.copy(), none.copy(), none.copy(), none.copy(), none.copy(), no_time, no_time.copy())
    ends = np.cumsum(count)
    starts = ends - count
    first, last = values[starts], values[ends - 1]
    if count.max() == 1:
        return first, np.zeros(count.size), first, first, first, last, ts_us[starts], ts_us[ends - 1]
    with np.errstate(all="ignore"):
        # Around the first value: sums of small numbers lose less than sums of large ones.
        mean = first + np.add.reduceat(values - np.repeat(first, count), starts) / count
        if not np.isfinite(mean).all():  # infinities, or an overflow on the way
            mean = np.where(np.isfinite(mean), mean, np.add.reduceat(values / np.repeat(count, count), starts))
        m2 = np.add.reduceat(np.square(values - np.repeat(mean, count)), starts)
        m2[count == 1] = 0.0
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return mean, m2, low, high, first, last, ts_us[starts], ts_us[ends - 1]


def combine(older: Partials, newer: Partials) -> Partials:
    """Combine entry by entry two sets of partials with the same keys; `newer` arrived later."""
    count = older.count + newer.count
    parts = np.maximum(count, 1)
    with np.errstate(all="ignore"):
        delta = newer.mean - older.mean
        share = newer.count / parts
        mean = older.mean + delta * share
        m2 = older.m2 + newer.m2 + np.square(delta) * older.count * share
    one_sided = (older.count == 0) | (newer.count == 0)
    if one_sided.any():
        mean = np.where(one_sided, np.where(newer.count > 0, newer.mean, older.mean), mean)
        m2 = np.where(one_sided, older.m2 + newer.m2, m2)
    if not np.isfinite(mean).all():
        with np.errstate(all="ignore"):
            plain = older.mean * (older.count / parts) + newer.mean * (newer.count / parts)
        mean = np.where(np.isfinite(mean) | one_sided, mean, plain)
    return Partials(
        newer.row,
        newer.window,
        count,
        older.bad + newer.bad,
        mean,
        m2,
        np.minimum(older.low, newer.low),
        np.maximum(older.high, newer.high),
        np.where(newer.first_us < older.first_us, newer.first, older.first),
        np.where(newer.last_us >= older.last_us, newer.last, older.last),
        np.minimum(older.first_us, newer.first_us),
        np.maximum(older.last_us, newer.last_us),
    )


def merge(parts: Sequence[Partials]) -> Partials:
    """Combine partials with any keys into one per key, sorted by row and window; earlier parts arrived earlier."""
    joined = Partials.concat(parts)
    if len(joined) < 2:  # noqa: PLR2004 - one entry is merged
        return joined
    joined = joined.take(np.lexsort((joined.window, joined.row)))
    starts = _starts(joined.row, joined.window)
    sizes = np.diff(starts, append=len(joined))
    merged = joined.take(starts)
    # Entry k of every group that has one, in order of arrival; groups are short (a few flushes' worth at most).
    for k in range(1, int(sizes.max())):
        longer = np.flatnonzero(sizes > k)
        sums = combine(merged.take(longer), joined.take(starts[longer] + k))
        merged = _replaced(merged, longer, sums)
    return merged


def _replaced(target: Partials, index: NDArray[np.intp], source: Partials) -> Partials:
    columns = {name: getattr(target, name).copy() for name in COLUMNS}
    for name, column in columns.items():
        column[index] = getattr(source, name)
    return Partials(**columns)


def _starts(row: NDArray[np.int32], window: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return where a new (row, window) begins in sorted columns."""
    new = np.ones(row.size, np.bool_)
    np.not_equal(row[1:], row[:-1], out=new[1:])
    new[1:] |= window[1:] != window[:-1]
    return np.flatnonzero(new)
