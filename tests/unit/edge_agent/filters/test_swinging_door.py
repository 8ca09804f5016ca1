"""The swinging door: what passes, what is held back, and that its bound holds for every reading it drops."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.model import ReadingFrame
from edge_agent.filters.swinging_door import SwingingDoorFilter

BAD = -(2**31)


def frame(rows: list[int], ts_us: list[int], values: list[float], statuses: list[int] | None = None) -> ReadingFrame:
    return ReadingFrame(
        np.array(rows, np.int32),
        np.array(ts_us, np.int64),
        np.array(values, np.float64),
        np.array(statuses or [0] * len(rows), np.int32),
    )


def door(bound: float, rows: int = 1, max_us: int = 0) -> SwingingDoorFilter:
    return SwingingDoorFilter(np.full(rows, bound), np.full(rows, max_us, np.int64))


def run(values: list[float], bound: float, ts_us: list[int] | None = None, **options: int) -> ReadingFrame:
    filter_ = door(bound, **options)
    times = ts_us or list(range(len(values)))
    return ReadingFrame.concat([filter_.apply(frame([0] * len(values), times, values)), filter_.flush()])


def test_a_straight_line_is_its_two_ends() -> None:
    passed = run([2.0 * k for k in range(100)], 0.1)
    assert passed.ts_us.tolist() == [0, 99]


def test_a_corner_passes() -> None:
    passed = run([float(min(k, 50)) for k in range(100)], 0.01)
    assert passed.ts_us.tolist() == [0, 50, 99]


def test_readings_may_come_one_by_one() -> None:
    values = [float(np.sin(k / 5)) for k in range(200)]
    whole = run(values, 0.05)
    filter_ = door(0.05)
    parts = [filter_.apply(frame([0], [k], [value])) for k, value in enumerate(values)]
    pieces = ReadingFrame.concat([*parts, filter_.flush()])
    assert pieces.ts_us.tolist() == whole.ts_us.tolist()
    assert len(whole) < 70


def test_what_is_not_a_number_or_bad_passes_and_so_does_what_was_held() -> None:
    filter_ = door(1.0)
    passed = filter_.apply(
        frame([0] * 7, list(range(7)), [1.0, 1.1, 1.2, np.nan, 1.0, 1.1, 1.2], [0, 0, 0, 0, 0, 0, BAD])
    )
    assert passed.ts_us.tolist() == [0, 2, 3, 4, 5, 6]


def test_time_that_does_not_go_forward_passes() -> None:
    assert run([1.0, 1.0, 1.0, 1.0], 1.0, [0, 10, 10, 5]).ts_us.tolist() == [0, 10, 10, 5]


def test_no_longer_than_the_maximum_without_a_reading() -> None:
    passed = run([1.0] * 100, 1.0, max_us=10)
    assert np.diff(passed.ts_us).max() <= 10


def test_without_a_bound_everything_passes() -> None:
    for bound in (0.0, np.nan):
        assert len(run([1.0] * 10, bound)) == 10


def test_series_do_not_disturb_each_other() -> None:
    filter_ = door(0.1, rows=2)
    passed = filter_.apply(frame([0, 1] * 20, [k // 2 for k in range(40)], [float(k % 2) * k for k in range(40)]))
    rest = filter_.flush()
    assert passed.series.tolist() == [0, 1]
    assert rest.series.tolist() == [0, 1]
    assert rest.ts_us.tolist() == [19, 19]


VALUES = st.one_of(
    st.floats(-100, 100),
    st.integers(-20, 20).map(lambda k: k / 10),
    st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 1e300, 1e9, 1e9 + 0.1, 5e-324]),
)


@given(
    values=st.lists(VALUES, min_size=1, max_size=60),
    steps=st.lists(st.integers(1, 1000), min_size=60, max_size=60),
    bound=st.sampled_from([1e-6, 0.05, 0.1, 1.0, 30.0]),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_the_bound_holds(values: list[float], steps: list[int], bound: float, cuts: list[int]) -> None:
    ts_us = np.cumsum(steps[: len(values)])
    filter_ = door(bound)
    column = np.array(values)
    edges = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    parts = [
        filter_.apply(frame([0] * (end - begin), ts_us[begin:end].tolist(), column[begin:end].tolist()))
        for begin, end in itertools.pairwise(edges)
    ]
    passed = ReadingFrame.concat([*parts, filter_.flush()])
    assert passed.ts_us.tolist() == sorted(passed.ts_us.tolist())
    assert_within(ts_us, column, passed, bound)


def assert_within(ts_us: NDArray[np.int64], values: NDArray[np.float64], passed: ReadingFrame, bound: float) -> None:
    at = np.searchsorted(ts_us, passed.ts_us)
    assert (values[at].view(np.int64) == passed.values.view(np.int64)).all()
    assert at[0] == 0
    assert at[-1] == len(values) - 1
    for begin, end in itertools.pairwise(at):
        between = slice(begin + 1, end)
        share = (ts_us[between] - ts_us[begin]) / (ts_us[end] - ts_us[begin])
        line = values[begin] + share * (values[end] - values[begin]) if end > begin + 1 else values[between]
        assert (np.abs(line - values[between]) <= bound).all()
