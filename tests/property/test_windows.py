"""Any split of a stream into frames, any order, any restart: the stored windows equal a direct recomputation.

The oracle is plain Python over single readings and shares no code with what it checks.
"""

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_ingest.operators import sort_frame
from cloud_ingest.operators.partials import Partials, combine, merge
from cloud_ingest.operators.watermark import NEVER_US, WatermarkSettings, after_readings, after_silence
from cloud_ingest.operators.windows import TumblingWindows
from common.model import ReadingFrame

MINUTE = 60_000_000
LATENESS = 10_000_000
BASE = 1_767_225_600_000_000
NOW = BASE + 3_600_000_000
BAD = -2_147_483_648


class Reading(NamedTuple):
    row: int
    ts: int
    value: float
    status: int


readings = st.builds(
    Reading,
    st.integers(0, 3),
    # Seconds over twelve minutes, with many ties; now and then a clock that is days off.
    st.one_of(
        st.integers(0, 720).map(lambda s: BASE + s * 1_000_000),
        st.integers(0, 720_000).map(lambda ms: BASE + ms * 1_000),
        st.sampled_from([BASE - 86_400_000_000, BASE + 86_400_000_000, -MINUTE * 7 - 1]),
    ),
    st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, 0.0, -0.0, 5e-324, 1e6])),
    st.sampled_from([0, 0, 0, 0, 0x4000_0000, BAD]),
)


def frame_of(some: list[Reading]) -> ReadingFrame:
    return ReadingFrame(
        np.array([r.row for r in some], np.int32),
        np.array([r.ts for r in some], np.int64),
        np.array([r.value for r in some], np.float64),
        np.array([r.status for r in some], np.int32),
    )


def oracle(stream: list[Reading], length: int) -> dict[tuple[int, int], tuple]:
    groups: dict[tuple[int, int], list[Reading]] = defaultdict(list)
    for r in stream:
        groups[r.row, math.floor(r.ts / length) if abs(r.ts) < 2**52 else r.ts // length].append(r)
    out = {}
    for key, members in groups.items():
        good = [r for r in members if r.status >= 0 and not math.isnan(r.value)]
        if not good:
            out[key] = (0, len(members), None, None, None, None, None, None)
            continue
        values = [r.value for r in good]
        mean = math.fsum(values) / len(values)
        m2 = math.fsum((v - mean) ** 2 for v in values)
        first = min(good, key=lambda r: r.ts)  # min and max keep the first of equals
        last = max(reversed(good), key=lambda r: r.ts)
        out[key] = (
            len(good), len(members) - len(good), mean, m2, min(values), max(values), first.value, last.value,
        )  # fmt: skip
    return out


class Table:
    """What the store does with partials, in plain Python: merge each into the row that is there."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Partials] = {}
        self.emissions: dict[tuple[int, int], int] = defaultdict(int)

    def take(self, partials: Partials) -> None:
        keys = list(zip(partials.row.tolist(), partials.window.tolist(), strict=True))
        assert len(set(keys)) == len(keys), "a key twice in one emission"
        for k, key in enumerate(keys):
            one = partials.take(np.array([k]))
            self.rows[key] = combine(self.rows[key], one) if key in self.rows else one
            self.emissions[key] += 1


def check(table: Table, stream: list[Reading], length: int) -> None:
    expected = oracle(stream, length)
    assert table.rows.keys() == expected.keys()
    for key, (count, bad, mean, m2, low, high, first, last) in expected.items():
        got = table.rows[key]
        assert (got.count[0], got.bad[0]) == (count, bad), key
        if not count:
            continue
        assert (got.low[0], got.high[0]) == (low, high)
        assert np.array([got.first[0], got.last[0]]).tobytes() == np.array([first, last]).tobytes(), key
        scale = max(abs(low), abs(high), 1e-300)
        assert got.mean[0] == pytest.approx(mean, rel=1e-12, abs=1e-12 * scale)
        assert got.m2[0] == pytest.approx(m2, rel=1e-9, abs=1e-9 * scale * scale)


frames = st.lists(st.lists(readings, max_size=25), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(frames, st.sampled_from([0, LATENESS, 150_000_000]), st.integers(0, 12), st.booleans())
def test_any_split_and_order_equals_recomputation(
    stream: list[list[Reading]], lateness: int, restart_at: int, use_silence: bool
) -> None:
    operator = TumblingWindows([MINUTE, 5 * MINUTE], lateness)
    times = WatermarkSettings(lateness, 1_000_000)
    state, watermark = operator.start(NEVER_US), NEVER_US
    tables = {MINUTE: Table(), 5 * MINUTE: Table()}
    seen: list[Reading] = []
    for number, some in enumerate(stream):
        if number == restart_at and watermark > NEVER_US:
            # A new owner: the state is made anew from what is stored, in whatever order the store returns equals.
            begin = operator.rebuild_from_us(watermark)
            state = operator.rebuild(sort_frame(frame_of([r for r in seen if r.ts >= begin])), watermark)
        if some:
            watermark = after_readings(times, watermark, max(r.ts for r in some), NOW)
        frame = sort_frame(frame_of(some))
        step = operator.step(state, frame, watermark)
        again = operator.step(state, frame, watermark)  # a step may be made twice: the first may have failed to commit
        for length, partials in step.outputs.items():
            assert len(again.outputs[length]) == len(partials)
            tables[length].take(partials)
        operator.apply(state, step.update)
        seen += some
        # The invariant that rebuilding relies on: emitted is exactly what lies below the watermark.
        for length, table in tables.items():
            below = {(r.row, r.ts // length) for r in seen if r.ts // length < watermark // length}
            assert table.rows.keys() == below
    end = after_silence(times, watermark, NOW - 10_000_000, NOW) if use_silence else NOW
    step = operator.step(state, ReadingFrame.empty(), max(end, BASE + 2 * 86_400_000_000))
    for length, partials in step.outputs.items():
        tables[length].take(partials)
    for length, table in tables.items():
        check(table, seen, length)


@settings(max_examples=100, deadline=None)
@given(st.lists(readings, max_size=80))
def test_one_frame_emits_each_window_once(stream: list[Reading]) -> None:
    operator = TumblingWindows([MINUTE, 5 * MINUTE], LATENESS)
    state = operator.start(NEVER_US)
    step = operator.step(state, sort_frame(frame_of(stream)), BASE + 10 * 86_400_000_000)
    for length, partials in step.outputs.items():
        table = Table()
        table.take(partials)
        check(table, stream, length)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(readings, max_size=20), max_size=6))
def test_merge_equals_pairwise_combination(parts: list[list[Reading]]) -> None:
    from cloud_ingest.operators.partials import group  # noqa: PLC0415

    merged = merge([group(sort_frame(frame_of(part)), MINUTE) for part in parts])
    table = Table()
    table.take(merged)
    check(table, [r for part in parts for r in part], MINUTE)


def test_closes_at_names_the_next_emission() -> None:
    operator = TumblingWindows([MINUTE, 5 * MINUTE], LATENESS)
    state = operator.start(NEVER_US)
    assert operator.closes_at_us(state) is None
    step = operator.step(state, frame_of([Reading(0, BASE + 1, 1.0, 0)]), BASE)
    operator.apply(state, step.update)
    assert operator.closes_at_us(state) == BASE + MINUTE
    step = operator.step(state, ReadingFrame.empty(), BASE + MINUTE)
    operator.apply(state, step.update)
    assert operator.closes_at_us(state) == BASE + 5 * MINUTE
    step = operator.step(state, ReadingFrame.empty(), BASE + 5 * MINUTE)
    operator.apply(state, step.update)
    assert operator.closes_at_us(state) is None


def test_state_stays_below_the_budget() -> None:
    operator = TumblingWindows([MINUTE, 5 * MINUTE], LATENESS)
    assert sum(one.bytes_per_row for one in operator.start(NEVER_US).lengths) <= 200
