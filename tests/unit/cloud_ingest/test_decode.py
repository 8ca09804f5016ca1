import random

import numpy as np
import pytest

from cloud_ingest.decode import READINGS_PER_MESSAGE_MAX, open_envelope, to_chunk
from cloud_ingest.model import Chunk, DeadLetter, Item, Partition, Reason, Received
from common.wire import TelemetryBatch
from tests.integration.traffic import BASE_US, FakeAgent

STREAM = Partition("forebay.stream", 0)
OTHER = Partition("forebay.stream", 3)


def received(value: bytes, offset: int, partition: Partition = STREAM) -> Received:
    return Received(partition, offset, b"m", value)


def decode(*messages: Received, known: int = 1 << 30) -> tuple[Chunk, list[DeadLetter]]:
    table = np.arange(10, 10 + min(known, 100), dtype=np.int32)
    return to_chunk([open_envelope(one) for one in messages], lambda _: table if known else None)


def test_a_poll_becomes_one_chunk_in_order_of_partition_and_offset() -> None:
    first, second = FakeAgent("a"), FakeAgent("b")
    messages = [
        received(second.birth(), 7, OTHER),
        received(first.birth(), 4),
        received(second.batch(BASE_US, 3), 8, OTHER),
        received(first.batch(BASE_US, 2), 5),
        received(first.batch(BASE_US + 9, 1), 6),
    ]
    chunk, dead = decode(*messages)
    assert not dead
    assert [(e.message.partition.number, e.message.offset, e.kind, e.readings) for e in chunk.entries] == [
        (0, 4, "birth", 0), (0, 5, "batch", 4), (0, 6, "batch", 2), (3, 7, "birth", 0), (3, 8, "batch", 6),
    ]  # fmt: skip
    assert chunk.block_series.tolist() == [10, 11, 10, 11, 10, 11]
    assert chunk.counts.tolist() == [2, 2, 1, 1, 3, 3]
    assert chunk.values.tolist() == first.truth.value + second.truth.value
    assert (chunk.entries[1].first_us, chunk.entries[1].last_us) == (BASE_US, BASE_US + 100_000)
    parts = chunk.of_partitions()
    assert parts[STREAM].values.tolist() == first.truth.value
    assert parts[OTHER].ts_us.tolist() == second.truth.ts_us
    assert parts[OTHER].block_entry.tolist() == [1, 1]
    only = chunk.only(np.array([False, False, True, False, True]))
    assert [e.message.offset for e in only.entries] == [6, 8]
    assert only.values.tolist() == first.truth.value[4:] + second.truth.value
    assert only.block_entry.tolist() == [0, 0, 1, 1]


def test_frame_sorts_by_series_and_time_and_keeps_arrival_order_of_equals() -> None:
    agent = FakeAgent("a", ["x", "y"])
    late, early = agent.batch(BASE_US + 1000, 3, 10), agent.batch(BASE_US, 3, 600)
    chunk, _ = decode(received(late, 1), received(early, 2), received(late, 3))
    frame = chunk.frame(chunk.block_series)
    order = np.lexsort((chunk.ts_us, np.repeat(chunk.block_series, chunk.counts)))
    assert frame.ts_us.tolist() == chunk.ts_us[order].tolist()
    assert frame.values.tolist() == chunk.values[order].tolist()


@pytest.mark.parametrize("value", [b"", b"\xc3", b"\xc3\x01" + bytes(8), b"{}", bytes(100), None])
def test_bytes_that_are_no_message(value: bytes | None) -> None:
    agent = FakeAgent("a")
    chunk, dead = decode(received(value or b"", 1), received(agent.batch(BASE_US, 2), 2))
    assert [one.reason for one in dead] == [Reason.NOT_A_MESSAGE]
    assert chunk.readings == 4


def test_damage_anywhere_never_raises_and_spares_the_rest() -> None:
    agent = FakeAgent("a")
    rng = random.Random(3)
    good = agent.batch(BASE_US, 50)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(10, len(bad))] = rng.randrange(256)
        chunk, dead = decode(received(good, 1), received(bytes(bad), 2), received(good, 3))
        assert len(chunk.entries) + len(dead) == 3
        assert {e.message.offset for e in chunk.entries} >= {1, 3}
        assert chunk.readings == sum(e.readings for e in chunk.entries) == chunk.counts.sum()


def test_reasons() -> None:
    agent = FakeAgent("a")
    ok = agent.batch(BASE_US, 2)
    assert [d.reason for d in decode(received(ok, 1), known=0)[1]] == [Reason.UNKNOWN_BIRTH]
    assert [d.reason for d in decode(received(ok, 1), known=1)[1]] == [Reason.UNKNOWN_ALIAS]
    chunk, dead = decode(received(ok[:-1] + bytes([ok[-1] ^ 1]), 1), received(ok, 2))
    assert [d.reason for d in dead] == [Reason.DAMAGED_BLOCK]
    assert chunk.readings == 4
    offsets, status = np.array([0, 1], np.int64), np.zeros(1, np.int32)
    for ts in (-(1 << 63), -(1 << 62), (1 << 63) - 1):
        far = agent.encode(np.array([ts]), np.ones(1), status, offsets)
        assert [d.reason for d in decode(received(far, 1))[1]] == [Reason.TIME_NOT_STORABLE]


def lying(batch_readings: int, agent: FakeAgent) -> Item:
    item = open_envelope(received(agent.batch(BASE_US, 5), 1))
    assert isinstance(item.content, TelemetryBatch)
    true = item.content
    fields = {name: getattr(true, name) for name in true.__slots__} | {"readings": batch_readings}
    return Item(item.message, TelemetryBatch(**fields))


@pytest.mark.parametrize(
    ("claimed", "reason"),
    [(0, Reason.DAMAGED_BLOCK), (9, Reason.DAMAGED_BLOCK), (11, Reason.INCONSISTENT)],  # more is not even decoded
)
def test_a_batch_that_holds_another_number_of_readings_than_it_says(claimed: int, reason: Reason) -> None:
    _, dead = to_chunk([lying(claimed, FakeAgent("a"))], lambda _: np.arange(2, dtype=np.int32))
    assert [d.reason for d in dead] == [reason]


def test_too_many_readings_are_refused_before_anything_is_decoded() -> None:
    agent = FakeAgent("a", ["x"])
    n = READINGS_PER_MESSAGE_MAX + 1
    offsets = np.append(np.arange(0, n, 4096), n).astype(np.int64)
    aliases = np.zeros(offsets.size - 1, np.int32)
    message = agent.encode(np.zeros(n, np.int64), np.zeros(n), np.zeros(n, np.int32), offsets, aliases)
    item = open_envelope(received(message, 1))
    assert isinstance(item.content, DeadLetter)
    assert item.content.reason == Reason.TOO_LARGE


def test_more_blocks_than_one_call_takes() -> None:
    agent = FakeAgent("a", ["x"])
    n = 5_000
    message = agent.encode(
        np.arange(n), np.arange(n) / 7, np.zeros(n, np.int32), np.arange(n + 1), np.zeros(n, np.int32)
    )
    chunk, dead = decode(received(message, 1), received(agent.batch(BASE_US, 2), 2))
    assert not dead
    assert chunk.readings == n + 2
    assert chunk.values[:n].tolist() == (np.arange(n) / 7).tolist()


def test_an_empty_batch_is_an_entry() -> None:
    agent = FakeAgent("a")
    none = agent.encode(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int32), np.zeros(1, np.int64))
    chunk, dead = decode(received(none, 1))
    assert not dead
    assert [(e.readings, e.first_us) for e in chunk.entries] == [(0, None)]
    assert not len(chunk.frame(chunk.block_series))
