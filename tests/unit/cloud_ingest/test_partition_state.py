import numpy as np

from cloud_ingest.decode import open_envelope, to_chunk
from cloud_ingest.model import Chunk, Partition, Received
from cloud_ingest.operators.watermark import WatermarkSettings
from cloud_ingest.operators.windows import TumblingWindows
from cloud_ingest.partition_state import PartitionState, SeriesRows
from common.model import ReadingFrame
from tests.integration.traffic import BASE_US, FakeAgent

MINUTE = 60_000_000


def state() -> PartitionState:
    return PartitionState(TumblingWindows([MINUTE, 5 * MINUTE], 0), WatermarkSettings(0, 1_000_000), 1, BASE_US)


def chunk_of(agent: FakeAgent, from_us: int, count: int) -> Chunk:
    message = Received(Partition("t", 0), 1, None, agent.batch(from_us, count, 1_000_000))
    return to_chunk([open_envelope(message)], lambda _: np.array([900, 30], np.int32))[0]


def test_rows_are_dense_and_stable() -> None:
    rows = SeriesRows()
    assert rows.rows(np.array([50, 7, 50], np.int32)).tolist() == [1, 0, 1]
    assert rows.rows(np.array([9, 50, 7], np.int32)).tolist() == [2, 1, 0]
    assert rows.series_ids.tolist() == [7, 50, 9]


def test_a_step_changes_nothing_until_it_is_applied() -> None:
    one, agent = state(), FakeAgent("m")
    chunk = chunk_of(agent, BASE_US, 90)
    first = one.after_chunk(chunk, BASE_US + 90_000_000)
    second = one.after_chunk(chunk, BASE_US + 90_000_000)
    assert one.watermark_us < first.watermark_us == second.watermark_us == BASE_US + 89_000_000
    assert sorted(first.new_series.tolist()) == [30, 900] == sorted(second.new_series.tolist())
    assert first.windows[MINUTE].row.tolist() == second.windows[MINUTE].row.tolist()
    assert sorted(first.windows[MINUTE].row.tolist()) == [30, 900]
    assert first.windows[MINUTE].count.tolist() == [60, 60]
    one.apply(second, BASE_US)
    assert not one.after_chunk(chunk_of(agent, BASE_US + 90_000_000, 1), BASE_US).new_series.size
    late = one.after_chunk(chunk_of(agent, BASE_US, 2), BASE_US)
    assert late.late_readings == 4


def test_silence_closes_what_is_open_once() -> None:
    one = state()
    one.apply(one.after_chunk(chunk_of(FakeAgent("m"), BASE_US, 5), BASE_US), BASE_US)
    assert one.after_silence(BASE_US + 900_000) is None
    assert one.after_silence(BASE_US + 30_000_000) is None  # silent, but the minute is not over
    step = one.after_silence(BASE_US + MINUTE)
    assert step is not None
    assert step.windows[MINUTE].count.tolist() == [5, 5]
    one.apply(step, None)
    assert one.after_silence(BASE_US + MINUTE + 1) is None
    step = one.after_silence(BASE_US + 5 * MINUTE)
    assert step is not None
    assert step.windows[5 * MINUTE].count.tolist() == [5, 5]
    one.apply(step, None)
    assert one.after_silence(BASE_US + 50 * MINUTE) is None


def test_a_rebuilt_state_goes_on_as_the_old_one_would() -> None:
    agent, now = FakeAgent("m"), BASE_US + 3_600_000_000
    old = state()
    chunks = [chunk_of(agent, BASE_US + k * 50_000_000, 40) for k in range(6)]
    for chunk in chunks:
        old.apply(old.after_chunk(chunk, now), now)
    new = state()
    series = np.concatenate([np.repeat(chunk.block_series, chunk.counts) for chunk in chunks])
    stored = ReadingFrame(
        series, *(np.concatenate([getattr(c, n) for c in chunks]) for n in ("ts_us", "values", "statuses"))
    )
    begin = new.operator.rebuild_from_us(old.watermark_us)
    new.rebuild(stored.take(stored.ts_us >= begin), old.watermark_us)
    one, two = old.after_silence(now + 2_000_000), new.after_silence(now + 2_000_000)
    assert one is not None
    assert two is not None
    for length in (MINUTE, 5 * MINUTE):
        left = sorted(zip(one.windows[length].row.tolist(), one.windows[length].count.tolist(), strict=True))
        right = sorted(zip(two.windows[length].row.tolist(), two.windows[length].count.tolist(), strict=True))
        assert left == right
        assert left
