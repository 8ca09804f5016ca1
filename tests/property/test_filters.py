"""The deadband filter against a plain loop over readings that says the same in other words."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common.model import ReadingFrame, StatusCode
from edge_agent.filters.deadband import BAD_HEARTBEAT_US, DeadbandFilter

SERIES = 4
numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.1, 1.25, 2.0, math.nan, math.inf, -math.inf, 5e-324, 1.7e308, -1.7e308]),
    st.floats(),
)
readings = st.tuples(
    st.integers(0, SERIES - 1),
    st.sampled_from([0, 1, 1000, 500_000, 30_000_000, 61_000_000, -1, -3_600_000_000]),
    numbers,
    st.sampled_from([0, 0, 0, int(StatusCode.UNCERTAIN), int(StatusCode.BAD), int(StatusCode.BAD_TIMEOUT)]),
)
Reading = tuple[int, int, float, int]


class Oracle:
    def __init__(self, deadband: list[float | None], heartbeat_us: list[int], interval_min_us: list[int]) -> None:
        self.deadband, self.heartbeat_us, self.interval_min_us = deadband, heartbeat_us, interval_min_us
        self.last: dict[int, tuple[int, float, int]] = {}

    def passes(self, series: int, ts: int, value: float, status: int) -> bool:  # noqa: PLR0911 - rule by rule
        if series not in self.last:
            return True
        last_ts, last_value, last_status = self.last[series]
        if status != last_status or ts < last_ts:
            return True
        heartbeat = self.heartbeat_us[series] or None
        if status < 0:  # bad: its value means nothing
            return ts - last_ts >= min(heartbeat or BAD_HEARTBEAT_US, BAD_HEARTBEAT_US)
        if heartbeat and ts - last_ts >= heartbeat:
            return True
        if ts - last_ts < self.interval_min_us[series]:
            return False
        deadband = self.deadband[series]
        if deadband is None or math.isnan(value) or math.isnan(last_value):
            return deadband is None or math.isnan(value) != math.isnan(last_value)
        return value != last_value and abs(value - last_value) > deadband

    def run(self, frame: list[Reading]) -> list[int]:
        kept = []
        for index, (series, ts, value, status) in enumerate(frame):
            if self.passes(series, ts, value, status):
                self.last[series] = (ts, value, status)
                kept.append(index)
        return kept


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(readings, max_size=25), min_size=1, max_size=8),
    st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 1.0, 1e300])), min_size=SERIES, max_size=SERIES),
    st.lists(st.sampled_from([0, 1000, 30_000_000, 600_000_000]), min_size=SERIES, max_size=SERIES),
    st.lists(st.sampled_from([0, 0, 1, 2_000, 40_000_000]), min_size=SERIES, max_size=SERIES),
)
def test_it_agrees_with_the_loop(
    frames: list[list[Reading]], deadband: list[float | None], heartbeat_us: list[int], interval_min_us: list[int]
) -> None:
    oracle = Oracle(deadband, heartbeat_us, interval_min_us)
    tested = DeadbandFilter(
        np.array([math.nan if one is None else one for one in deadband]),
        np.array(heartbeat_us, np.int64),
        np.array(interval_min_us, np.int64),
    )
    now = 1_700_000_000_000_000
    for steps in frames:
        frame: list[Reading] = []
        for series, step, value, status in steps:
            now += step
            frame.append((series, now, value, status))
        columns = ReadingFrame(
            np.array([one[0] for one in frame], np.int32),
            np.array([one[1] for one in frame], np.int64),
            np.array([one[2] for one in frame], np.float64),
            np.array([one[3] for one in frame], np.int32),
        )
        passed = tested.apply(columns)
        kept = oracle.run(frame)
        assert passed.ts_us.tolist() == [frame[index][1] for index in kept]
        assert passed.series.tolist() == [frame[index][0] for index in kept]
        assert passed.values.tobytes() == columns.values[kept].tobytes()
        assert passed.statuses.tolist() == [frame[index][3] for index in kept]


def test_a_frame_that_passes_whole_is_not_copied() -> None:
    tested = DeadbandFilter(np.full(3, np.nan), np.zeros(3, np.int64))
    frame = ReadingFrame(np.arange(3, dtype=np.int32), np.zeros(3, np.int64), np.zeros(3), np.zeros(3, np.int32))
    assert tested.apply(frame) is frame
    assert len(tested.apply(ReadingFrame.empty())) == 0
