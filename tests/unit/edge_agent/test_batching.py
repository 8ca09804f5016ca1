"""Frames to drafts: decoded again they are the frame, lane by lane, and none is too large to send."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.codec import decode_blocks
from common.model import ReadingFrame, Route
from common.wire import BIRTH, Birth, Head, TelemetryBatch, decode_message, seal
from edge_agent.batching import READINGS_PER_BATCH_MAX, Batcher, DraftBatch
from edge_agent.series import SeriesTable, build_series_table
from tests.unit.edge_agent.samples import modbus_device

KAFKA_MESSAGE_BYTES_MAX = 1_000_000
Row = tuple[str, str, int, bytes, int]


def table_of(machines: dict[str, int]) -> SeriesTable:
    return build_series_table(
        [
            modbus_device([{"address": f"holding:{n}"} for n in range(tags)], name=name, route=name.split("-")[-1])
            for name, tags in machines.items()
        ]
    )


TABLE = table_of({"a-stream": 3, "b-batch": 2, "c-stream": 1})
NAMES = [(lane.machine_id, series.tag) for lane in TABLE.lanes for series in lane.series]


def message(draft: DraftBatch) -> TelemetryBatch | Birth:
    head = Head("agent", draft.machine_id, draft.route, 1, 1, 5)
    return decode_message(seal(draft.schema, head, draft.body))


def rows_of(drafts: list[DraftBatch], batcher: Batcher) -> list[Row]:
    births = {}
    for birth in map(message, batcher.births()):
        assert isinstance(birth, Birth)
        births[birth.birth_id] = birth
    rows: list[Row] = []
    for draft in drafts:
        batch = message(draft)
        assert isinstance(batch, TelemetryBatch)
        birth = births[batch.birth_id]
        assert (birth.head.machine_id, birth.head.route) == (draft.machine_id, draft.route)
        found = decode_blocks(batch.blocks, batch.sizes)
        assert batch.readings == draft.readings == found.ts.size
        assert (batch.first_us, batch.last_us) == (found.ts.min(), found.ts.max())
        tags = [birth.series[alias].tag for alias in np.repeat(batch.aliases, found.counts)]
        rows += [
            (draft.machine_id, tag, int(ts), value.tobytes(), int(status))
            for tag, ts, value, status in zip(tags, found.ts, found.values, found.statuses, strict=True)
        ]
    return rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, len(NAMES) - 1), st.integers(0, 9), st.floats(), st.integers(-3, 1))),
        max_size=6,
    ),
    st.sampled_from([1, 2, 1024]),
)
def test_the_drafts_hold_the_frames(frames: list[list[tuple[int, int, float, int]]], block_max: int) -> None:
    batcher = Batcher(TABLE, "site", "gateway", block_max)
    for frame in frames:
        columns = list(zip(*frame, strict=True)) or [(), (), (), ()]
        batcher.add(
            ReadingFrame(
                np.array(columns[0], np.int32), np.array(columns[1], np.int64),
                np.array(columns[2], np.float64), np.array(columns[3], np.int32),
            )
        )  # fmt: skip
    assert batcher.gathered == sum(map(len, frames))
    gathered = batcher.take()
    drafts = batcher.encode(gathered)
    expected: list[Row] = [
        (*NAMES[row], int(ts), value.tobytes(), int(status))
        for row, ts, value, status in zip(
            gathered.series, gathered.ts_us, gathered.values, gathered.statuses, strict=True
        )
    ]
    # In arrival order within a series.
    assert sorted(rows_of(drafts, batcher), key=lambda row: row[:2]) == sorted(expected, key=lambda row: row[:2])
    assert batcher.gathered == 0
    assert batcher.encode(batcher.take()) == []


def frame_of(series: np.ndarray, chance: np.random.Generator) -> ReadingFrame:
    """The worst for a codec: noise in time, value and status."""
    size = series.size
    return ReadingFrame(
        series.astype(np.int32),
        chance.integers(-(2**62), 2**62, size),
        chance.integers(0, 2**63, size).view(np.float64),
        chance.integers(-(2**31), 2**31, size).astype(np.int32),
    )


@pytest.mark.parametrize(
    ("tags", "polls", "block_max"), [(11_000, 5, 1024), (20_000, 1, 1), (3, 20_000, 4096), (3, 20_000, 1)]
)
def test_the_largest_batches_fit_into_a_kafka_message(tags: int, polls: int, block_max: int) -> None:
    table = table_of({f"{chr(97 + n)}-stream": tags // 2 for n in range(2)})
    batcher = Batcher(table, "site", "gateway", block_max)
    chance = np.random.default_rng(1)
    frame = frame_of(np.tile(np.arange(len(table)), polls), chance)
    drafts = batcher.encode(frame)
    assert sum(draft.readings for draft in drafts) == len(frame)
    assert max(draft.readings for draft in drafts) <= READINGS_PER_BATCH_MAX
    head = Head("a" * 200, "m" * 200, Route.STREAM, 2**62, 2**62, 2**62)
    largest = max(len(seal(draft.schema, head, draft.body)) for draft in drafts)
    assert largest < KAFKA_MESSAGE_BYTES_MAX
    births = max(len(seal(draft.schema, head, draft.body)) for draft in batcher.births())
    assert births < KAFKA_MESSAGE_BYTES_MAX


def test_no_more_drafts_than_needed() -> None:
    table = table_of({"a-stream": 1000})
    batcher = Batcher(table, "", "g", 1024)
    frame = frame_of(np.tile(np.arange(1000), 33), np.random.default_rng(2))
    assert [draft.readings for draft in batcher.encode(frame)] == [16_368, 16_368, 264]


def test_births_come_one_a_lane() -> None:
    births = Batcher(TABLE, "site", "gateway", 1024).births()
    assert [(birth.machine_id, birth.route, birth.schema) for birth in births] == [
        ("a-stream", Route.STREAM, BIRTH), ("b-batch", Route.BATCH, BIRTH), ("c-stream", Route.STREAM, BIRTH),
    ]  # fmt: skip
    again = Batcher(TABLE, "site", "gateway", 7).births()
    assert [birth.body for birth in again] == [birth.body for birth in births]
