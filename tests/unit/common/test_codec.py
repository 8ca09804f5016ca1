"""common.codec: what it takes, what it refuses, and in which words."""

import struct
import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import codec
from common.errors import CodecError
from tests import oracle_block

CODECS: tuple[codec.CodecName, ...] = ("gorilla", "raw", "fast", "balanced", "small")
LEVELS: tuple[codec.CodecName, ...] = ("fast", "balanced", "small")
BAD = np.uint32(0x8000_0000).view(np.int32)


def readings(count: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
    """Count readings of a slow wave at 1 Hz, with a bad one now and then."""
    k = np.arange(count)
    ts = 1_700_000_000_000_000 + k * 1_000_000 + 1000 * (k % 3)
    statuses = np.where(k % 50 == 49, BAD, 0).astype(np.int32)
    return ts, np.round(20 + np.sin(k / 9), 2), statuses


def one_block(count: int, name: codec.CodecName = "gorilla") -> bytes:
    return codec.encode_blocks(*readings(count), np.array([0, count]), name).data


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", [0, 1, 2, 33, 1024, codec.MAX_READINGS])
def test_one_block_comes_back(name: codec.CodecName, count: int) -> None:
    ts, values, statuses = readings(count)
    blocks = codec.encode_blocks(ts, values, statuses, np.array([0, count]), name)
    decoded = codec.decode_blocks(*blocks)
    assert blocks.sizes.tolist() == [len(blocks.data)]
    assert decoded.counts.tolist() == [count]
    np.testing.assert_array_equal(decoded.ts, ts)
    np.testing.assert_array_equal(decoded.values, values)
    np.testing.assert_array_equal(decoded.statuses, statuses)


def test_the_arrays_have_the_promised_types() -> None:
    blocks = codec.encode_blocks(*readings(10), np.array([0, 10]))
    decoded = codec.decode_blocks(*blocks)
    assert isinstance(blocks.data, bytes)
    dtypes = [blocks.sizes.dtype, decoded.ts.dtype, decoded.values.dtype, decoded.statuses.dtype, decoded.counts.dtype]
    assert dtypes == [np.int64, np.int64, np.float64, np.int32, np.int64]
    decoded.values[0] = 1.0  # the arrays belong to the caller


def test_a_thousand_blocks_a_call_some_of_them_empty() -> None:
    counts = np.arange(1000) % 7
    offsets = np.concatenate([[0], np.cumsum(counts)])
    ts, values, statuses = readings(int(offsets[-1]))
    blocks = codec.encode_blocks(ts, values, statuses, offsets)
    decoded = codec.decode_blocks(*blocks)
    np.testing.assert_array_equal(decoded.counts, counts)
    np.testing.assert_array_equal(decoded.ts, ts)
    np.testing.assert_array_equal(decoded.values, values)
    np.testing.assert_array_equal(decoded.statuses, statuses)


def test_no_blocks_at_all() -> None:
    ts, values, statuses = readings(0)
    blocks = codec.encode_blocks(ts, values, statuses, np.array([0]))
    assert blocks.data == b""
    assert blocks.sizes.tolist() == []
    assert [column.tolist() for column in codec.decode_blocks(*blocks)] == [[], [], [], []]


def test_blocks_of_different_codecs_may_be_mixed() -> None:
    parts = [one_block(5, "raw"), one_block(7, "gorilla"), one_block(0, "gorilla"), one_block(3, "raw")]
    decoded = codec.decode_blocks(b"".join(parts), np.array([len(part) for part in parts]))
    assert decoded.counts.tolist() == [5, 7, 0, 3]
    np.testing.assert_array_equal(decoded.ts, np.concatenate([readings(n)[0] for n in (5, 7, 3)]))


@pytest.mark.parametrize("make", [bytearray, memoryview, lambda data: memoryview(bytearray(data * 2))[: len(data)]])
def test_any_buffer_of_bytes_is_read(make: Any) -> None:
    data = one_block(20)
    decoded = codec.decode_blocks(make(data), np.array([len(data)]))
    assert decoded.counts.tolist() == [20]
    assert codec.describe_block(make(data))["count"] == 20


def test_slices_with_a_step_are_read() -> None:
    ts, values, statuses = readings(20)
    blocks = codec.encode_blocks(ts[::2], values[::-2], statuses[1::2], np.array([0, 9, 0, 9, 10])[[0, 1, 4]])
    decoded = codec.decode_blocks(*blocks)
    np.testing.assert_array_equal(decoded.ts, ts[::2])
    np.testing.assert_array_equal(decoded.values, values[::-2])


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        (0, np.zeros(4, np.int32)),
        (0, np.zeros(4, np.float64)),
        (0, np.zeros(4, ">i8")),
        (1, np.zeros(4, np.float32)),
        (2, np.zeros(4, np.int64)),
        (3, np.array([0, 4], np.int32)),
        (0, np.zeros((2, 2), np.int64)),
        (0, [1, 2, 3, 4]),
    ],
)
def test_other_types_are_refused_and_never_cast(index: int, wrong: Any) -> None:
    arguments: list[Any] = [*readings(4), np.array([0, 4])]
    arguments[index] = wrong
    with pytest.raises(TypeError, match=("ts", "values", "statuses", "offsets")[index]):
        codec.encode_blocks(*arguments)


@pytest.mark.parametrize("offsets", [[], [0], [0, 3], [1, 4], [0, 5], [0, 3, 2, 4], [0, -1, 4], [0, 2**62, 4]])
def test_offsets_that_do_not_describe_the_readings_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        codec.encode_blocks(*readings(4), np.array(offsets, np.int64))


def test_more_readings_than_a_block_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="block 1: 4097 readings, at most 4096"):
        codec.encode_blocks(*readings(4100), np.array([0, 3, 4100]))


def test_columns_of_different_length_are_refused() -> None:
    ts, values, statuses = readings(4)
    with pytest.raises(ValueError, match="4 timestamps, 3 values and 4 statuses"):
        codec.encode_blocks(ts, values[:3], statuses, np.array([0, 4]))


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match='"zip" is not known'):
        codec.encode_blocks(*readings(4), np.array([0, 4]), "zip")  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [[], [10], [-1], [2**62], [0], [10**6]])
def test_sizes_that_do_not_add_up_are_a_codec_error(sizes: list[int]) -> None:
    with pytest.raises(CodecError):
        codec.decode_blocks(one_block(20), np.array(sizes, np.int64))


def test_what_is_not_bytes_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        codec.decode_blocks("text", np.array([4]))  # type: ignore[arg-type]


def test_an_error_names_the_block_and_what_is_wrong() -> None:
    good = one_block(20)
    damaged = bytearray(good)
    damaged[15] ^= 1
    sizes = np.full(3, len(good))
    with pytest.raises(CodecError, match="block 1: the checksum does not match"):
        codec.decode_blocks(good + bytes(damaged) + good, sizes)
    newer = b"\x02" + good[1:]
    with pytest.raises(CodecError, match="block 2: version 2 is not known, this kernel reads version 1"):
        codec.decode_blocks(good + good + newer, sizes)


@pytest.mark.parametrize("name", CODECS)
def test_every_flipped_bit_is_found(name: codec.CodecName) -> None:
    block = one_block(60, name)
    for bit in range(8 * len(block)):
        flipped = bytearray(block)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CodecError):
            codec.decode_blocks(bytes(flipped), np.array([len(block)]))


@pytest.mark.parametrize("name", CODECS)
def test_every_truncation_is_found(name: codec.CodecName) -> None:
    block = one_block(60, name)
    for size in range(len(block)):
        with pytest.raises(CodecError):
            codec.decode_blocks(block[:size], np.array([size]))
        with pytest.raises(CodecError):
            codec.describe_block(block[:size])


def test_a_truncated_section_with_a_right_checksum_is_found() -> None:
    block = one_block(60)[:-4]
    for size in range(4, len(block)):
        cut = block[:size] + struct.pack("<I", oracle_block.crc32c(block[:size]))
        with pytest.raises(CodecError):
            codec.decode_blocks(cut, np.array([len(cut)]))


def test_a_hostile_count_takes_no_memory() -> None:
    """A thousand blocks that claim 4096 readings each, in no bytes."""
    frame = bytes([1, 1, 1, 0x80, 0x20, 0])
    block = frame + struct.pack("<I", oracle_block.crc32c(frame))
    with pytest.raises(CodecError, match="block 0: its sections cannot hold 4096 readings"):
        codec.decode_blocks(block * 1000, np.full(1000, len(block)))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", [0, 1, 2, 128, 4096])
def test_noise_is_never_much_larger_than_raw(name: codec.CodecName, count: int) -> None:
    random = np.random.default_rng(count)
    ts = random.integers(-(2**63), 2**63 - 1, count)
    values = random.integers(-(2**63), 2**63 - 1, count).view(np.float64)
    offsets = np.array([0, count])
    good = np.zeros(count, np.int32)
    assert len(codec.encode_blocks(ts, values, good, offsets, name).data) <= 16 * count + 16
    statuses = random.integers(-(2**31), 2**31 - 1, count).astype(np.int32)
    assert len(codec.encode_blocks(ts, values, statuses, offsets, name).data) <= 20 * count + 16


def test_a_steady_signal_is_small() -> None:
    ts = np.arange(1024, dtype=np.int64) * 1_000_000
    blocks = codec.encode_blocks(ts, np.full(1024, 21.5), np.zeros(1024, np.int32), np.array([0, 1024]))
    assert len(blocks.data) < 150


def test_a_single_reading_takes_little_more_than_itself() -> None:
    columns = readings(1)
    assert len(codec.encode_blocks(*columns, np.array([0, 1])).data) == 3 + 5 + 8 + 4


def test_shared_timestamps_are_stored_once_in_a_group() -> None:
    ts, values, statuses = readings(30)
    columns = (np.tile(ts, 4), np.tile(values, 4), np.tile(statuses, 4), np.arange(0, 121, 30))
    alone = codec.encode_blocks(*columns)
    shared = codec.encode_blocks(*columns, groups=np.array([0, 2, 4]))
    assert (shared.sizes < alone.sizes).tolist() == [False, True, False, True]
    decoded = codec.decode_blocks(shared.data * 2, np.tile(shared.sizes, 2))
    np.testing.assert_array_equal(decoded.ts, np.tile(ts, 8))
    np.testing.assert_array_equal(decoded.values, np.tile(values, 8))
    second = shared.data[shared.sizes[0] : shared.sizes[:2].sum()]
    assert codec.describe_block(second)["timestamp_codec"] == "shared"
    assert [block.timestamps for block in oracle_block.decode_all(shared.data, shared.sizes.tolist())] == [
        ts.tolist()
    ] * 4


def test_a_reference_to_a_block_that_cannot_be_meant_is_refused() -> None:
    ts, values, statuses = readings(30)
    columns = (np.tile(ts, 3), np.tile(values, 3), np.tile(statuses, 3), np.arange(0, 91, 30))
    blocks = codec.encode_blocks(*columns, groups=np.array([0, 3]))
    first, second, third = np.split(np.frombuffer(blocks.data, np.uint8), np.cumsum(blocks.sizes)[:-1])
    other = np.frombuffer(one_block(31), np.uint8)
    for parts, why in (
        ([second], "block 0: it shares the timestamps of a block that is not there"),
        ([first, third], "block 1: .* not there"),
        ([first, second, second], "block 2: .* none of its own"),
        ([other, second], "block 1: .* another number of readings"),
    ):
        with pytest.raises(CodecError, match=why):
            codec.decode_blocks(b"".join(part.tobytes() for part in parts), np.array([part.size for part in parts]))


def test_groups_that_do_not_describe_the_blocks_are_refused() -> None:
    for groups in ([], [0], [0, 3], [1, 2], [0, 2, 1, 2]):
        with pytest.raises(ValueError, match="groups"):
            codec.encode_blocks(*readings(4), np.array([0, 2, 4]), groups=np.array(groups, np.int64))


def test_the_readings_of_a_call_are_limited() -> None:
    ts = np.arange(4096, dtype=np.int64)
    blocks = codec.encode_blocks(ts, np.zeros(4096), np.zeros(4096, np.int32), np.array([0, 4096]))
    assert codec.decode_blocks(*blocks, readings_max=4096).counts.tolist() == [4096]
    with pytest.raises(CodecError, match="4096 readings, at most 4095 are allowed"):
        codec.decode_blocks(*blocks, readings_max=4095)
    many = codec.READINGS_PER_CALL_MAX // 4096 + 1
    with pytest.raises(CodecError, match="are allowed"):
        codec.decode_blocks(blocks.data * many, np.tile(blocks.sizes, many))


def test_a_block_describes_itself() -> None:
    block = one_block(60)
    description = codec.describe_block(block)
    sections = [description["timestamp_bytes"], description["status_bytes"], description["value_bytes"]]
    assert description["version"] == codec.BLOCK_VERSION == 1
    assert description["count"] == 60
    assert description["timestamp_codec"] == "delta_of_delta"
    assert description["status_codec"] == "runs"
    assert description["value_codec"] == "gorilla"
    assert description["total_bytes"] == len(block) == 3 + 1 + 1 + sum(sections) + 4
    assert codec.describe_block(one_block(60, "raw"))["value_codec"] == "raw"
    with pytest.raises(CodecError, match="checksum"):
        codec.describe_block(block + b"\0")


def cut(count: int, block: int) -> NDArray[np.int64]:
    return np.append(np.arange(0, count, block), count)


@pytest.mark.parametrize("level", LEVELS)
def test_what_suited_a_series_is_remembered_and_a_change_is_noticed(level: codec.CodecName) -> None:
    k = np.arange(6000)
    values = np.concatenate([np.round(20 + np.sin(k / 9), 2), np.sin(k / 9), np.full(6000, np.nan), k * 0.1])
    ts = np.arange(values.size) * 1_000_000
    offsets = cut(values.size, 500)
    sticky = codec.Sticky(3)
    assert len(sticky) == 3
    rows = np.full(offsets.size - 1, 1)
    for _ in range(2):
        good = np.zeros(values.size, np.int32)
        blocks = codec.encode_blocks(ts, values, good, offsets, level, sticky=sticky, series=rows)
        decoded = codec.decode_blocks(*blocks)
        np.testing.assert_array_equal(decoded.values.view(np.int64), values.view(np.int64))
        np.testing.assert_array_equal(decoded.ts, ts)


def test_series_without_a_row_are_refused() -> None:
    columns = (*readings(4), np.array([0, 2, 4]), "fast")
    sticky = codec.Sticky(2)
    for series in ([0, 2], [-1, 0], [0], [0, 1, 1]):
        with pytest.raises(ValueError, match="series"):
            codec.encode_blocks(*columns, sticky=sticky, series=np.array(series))
    with pytest.raises(ValueError, match="together"):
        codec.encode_blocks(*columns, sticky=sticky)
    with pytest.raises(ValueError, match="together"):
        codec.encode_blocks(*columns, series=np.array([0, 0]))


@pytest.mark.parametrize("level", LEVELS)
def test_each_block_is_rounded_as_declared(level: codec.CodecName) -> None:
    ts = np.arange(3000) * 1_000_000
    values = 50 * np.sin(ts / 7e7)
    offsets = cut(3000, 1000)
    good = np.zeros(3000, np.int32)
    max_error, resolution = np.array([0.1, 0.0, np.nan]), np.array([0.0, np.nan, 0.5])
    blocks = codec.encode_blocks(ts, values, good, offsets, level, max_error=max_error, resolution=resolution)
    decoded = codec.decode_blocks(*blocks).values
    error = np.abs(decoded - values).reshape(3, 1000).max(axis=1)
    assert 0.05 < error[0] <= 0.1
    assert error[1] == 0.0
    assert 0.2 < error[2] <= 0.25
    assert (decoded[2000:] % 0.5 == 0).all()
    ends = np.cumsum(blocks.sizes).tolist()
    described = [codec.describe_block(blocks.data[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    assert [one["value_codec"] == "rounded" for one in described] == [True, False, True]
    assert [one["max_error"] for one in described] == pytest.approx([0.1, 0.0, 0.25])


def test_impossible_bounds_are_refused() -> None:
    columns = (*readings(4), np.array([0, 4]), "fast")
    for options in (
        {"max_error": np.array([-1.0])},
        {"max_error": np.array([np.inf])},
        {"resolution": np.array([-0.5])},
        {"max_error": np.array([0.1, 0.1])},
        {"max_error": np.array([0.1]), "resolution": np.array([0.1])},
        {"max_error": np.array([0.1]), "resolution": np.array([0.1, 0.2])},
    ):
        with pytest.raises(ValueError, match=r"max_error|resolution|precisions"):
            codec.encode_blocks(*columns, **options)


def test_small_blocks_are_small() -> None:
    ts, _, statuses = readings(200)
    one = np.arange(201)
    values = np.round(20 + np.arange(200) / 10, 1)
    blocks = codec.encode_blocks(np.tile(ts[:1], 200), values, statuses * 0, one, "balanced", groups=np.array([0, 200]))
    # Version, codecs, value codec, distance, form, two of the number, checksum.
    assert blocks.sizes[1:].max() <= 12
    assert len(codec.encode_blocks(ts[:10], values[:10], statuses[:10], np.array([0, 10]), "balanced").data) < 40


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_other_threads_run_while_the_kernel_works(direction: str) -> None:
    count = 2_000_000
    k = np.arange(count)
    columns = (k, np.sin(k), np.zeros(count, np.int32), np.append(np.arange(0, count, 4096), count))
    blocks = codec.encode_blocks(*columns)
    done = threading.Event()

    def work() -> None:
        if direction == "encode":
            codec.encode_blocks(*columns)
        else:
            codec.decode_blocks(*blocks)
        done.set()

    worker = threading.Thread(target=work)
    turns = 0
    worker.start()
    while not done.is_set():
        time.sleep(0)
        turns += 1
    worker.join()
    # Were the GIL held, this thread would have its turns only before and after the call, a few in all.
    assert turns > 20


@pytest.mark.parametrize(
    ("status_codec", "count", "section"),
    [
        (0, 2, [0]),  # good takes no bytes
        (1, 2, []),  # no status
        (1, 2, [1, 0]),  # one too few
        (1, 2, [3, 0]),  # one too many
        (1, 2, [2, 0, 1, 0]),  # a run too many
        (1, 2, [2, 0, 0, 0]),  # an empty run
        (1, 2, [0, 0, 2, 0]),
        (1, 2, [0x82, 0, 0]),  # a varint longer than it must be
        (1, 2, [2, 0x80]),  # one that does not end
        (1, 1, [1, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]),  # more than raw
        (2, 2, [0] * 7),
        (2, 2, [0] * 9),
        (3, 2, [0] * 8),  # no such codec
    ],
)
def test_impossible_statuses_are_refused(status_codec: int, count: int, section: list[int]) -> None:
    def block(codec_number: int, statuses: list[int]) -> bytes:
        head = [1, codec_number << 4 | 0x40, 0] if count == 1 else [1, codec_number << 4, 0, count]
        frame = bytes([*head, *[0] * (8 * count), *statuses]) + bytes(8 * count)
        return frame + struct.pack("<I", oracle_block.crc32c(frame))

    good = block(1, [count, 14])
    assert codec.decode_blocks(good, np.array([len(good)])).statuses.tolist() == [7] * count
    wrong = block(status_codec, section)
    with pytest.raises(CodecError):
        codec.decode_blocks(wrong, np.array([len(wrong)]))
    with pytest.raises(oracle_block.OracleError):
        oracle_block.decode(wrong)
