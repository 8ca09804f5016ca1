"""Each tag gets the filter its config names, and what a swinging door holds back is not forgotten at a stop."""

import numpy as np

from common.model import ReadingFrame
from edge_agent.filters.chain import TagFilters
from edge_agent.series import build_series_table
from tests.unit.edge_agent.samples import modbus_device

TAGS = [
    {"address": "holding:0", "name": "all"},
    {"address": "holding:1", "name": "deadband", "deadband_absolute": 1.5},
    {"address": "holding:2", "name": "door", "swinging_door": 0.1, "heartbeat_s": 3600},
]


def frame(second: int, value: float) -> ReadingFrame:
    ts_us = np.full(3, second * 1_000_000, np.int64)
    return ReadingFrame(np.arange(3, dtype=np.int32), ts_us, np.full(3, value), np.zeros(3, np.int32))


def test_each_tag_has_its_own_filter_and_the_end_of_a_ramp_comes_with_the_flush() -> None:
    filters = TagFilters(build_series_table([modbus_device(TAGS)]))
    passed = [filters.apply(frame(second, float(second))) for second in range(10)]
    joined = ReadingFrame.concat([*passed, filters.flush()])
    values = {row: joined.values[joined.series == row].tolist() for row in range(3)}
    assert values[0] == [float(second) for second in range(10)]
    assert values[1] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert values[2] == [0.0, 9.0], "a straight line is its two ends"


def test_without_a_door_nothing_is_held_back() -> None:
    filters = TagFilters(build_series_table([modbus_device(TAGS[:2])]))
    filters.apply(ReadingFrame(np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int32)))
    assert len(filters.flush()) == 0
