"""A decoder of blocks in plain Python, written from docs/wire-format.md; it shares no code with the kernel.

Slow and obvious on purpose. `decode` returns what the block holds, or raises OracleError where the page says that a
reader refuses the block.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from tests.oracle_values import Bits, OracleError, dictionary, integers, numbers, require, signed

COUNT_MAX = 4096
Decoder = Callable[[bytes, int], list[int]]
# Timestamp codecs of a constant step, and the microseconds of its unit.
UNITS = {2: 1, 3: 1000, 4: 1_000_000}
SHARED = 5
STEPS = 6
# Prefix of ones (ended by a zero, but for the last) and width of the number.
TIMESTAMP_BUCKETS = ((0, 0), (1, 6), (2, 12), (3, 16), (4, 22), (5, 32), (6, 64))


@dataclass(frozen=True)
class Block:
    """What a block holds; values as their 64 bits, since NaN is not equal to itself."""

    codecs: tuple[int, int, int]
    timestamps: list[int]
    statuses: list[int]
    value_bits: list[int]


def crc32c(data: bytes) -> int:
    """Bit by bit, as in the definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def take_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index in range(10):
        require(at + index < len(data), "a varint ends early")
        byte = data[at + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            require(byte != 0 or index == 0, "a varint is too long")
            require(number < 1 << 64, "a varint is too large")
            return number, at + index + 1
    raise OracleError("a varint does not end")


def take_signed(data: bytes, at: int) -> tuple[int, int]:
    folded, at = take_varint(data, at)
    return (folded >> 1) ^ -(folded & 1), at


def take_timestamps(data: bytes, at: int, codec: int, count: int, earlier: list[Block]) -> tuple[list[int], int]:
    """The timestamps that begin at `at`, and where they end; `earlier` are the blocks before this one."""
    if codec == 0:
        require(at + 8 * count <= len(data), "the sections do not fit")
        return raw(data[at : at + 8 * count], count, "q"), at + 8 * count
    if codec == 1:
        size, at = take_varint(data, at)
        require(at + size <= len(data), "the sections do not fit")
        return timestamps_delta_of_delta(data[at : at + size], count), at + size
    if codec in UNITS:
        unit = UNITS[codec]
        numbers = [0, 0]
        for index in range(min(count, 2)):
            number, at = take_signed(data, at)
            numbers[index] = number * unit
            require(signed(numbers[index], 64) == numbers[index], "a timestamp is too large")
        return [signed(numbers[0] + k * numbers[1], 64) for k in range(count)], at
    if codec == STEPS:
        size, at = take_varint(data, at)
        require(at + size <= len(data), "the sections do not fit")
        return timestamps_steps(data[at : at + size], count), at + size
    require(codec == SHARED, "unknown timestamp codec")
    distance, at = take_varint(data, at)
    require(1 <= distance <= len(earlier), "there is no such block")
    owner = earlier[-distance]
    require(owner.codecs[0] != SHARED, "a chain")
    require(len(owner.timestamps) == count, "another count")
    return owner.timestamps, at


def timestamps_steps(section: bytes, count: int) -> list[int]:
    require(count > 1, "no steps")
    unit, at = take_varint(section, 0)
    require(0 < unit < 1 << 63, "an impossible unit")
    first, at = take_signed(section, at)
    timestamps = [signed(first * unit, 64)]
    for step in integers(section[at:], count - 1):
        timestamps.append(signed(timestamps[-1] + step * unit, 64))
    return timestamps


def timestamps_delta_of_delta(section: bytes, count: int) -> list[int]:
    bits = Bits(section)
    timestamps: list[int] = []
    step = 0
    for index in range(count):
        if index == 0:
            timestamps.append(signed(bits.take(64), 64))
            continue
        ones = 0
        while ones < len(TIMESTAMP_BUCKETS) - 1 and bits.take(1):
            ones += 1
        width = TIMESTAMP_BUCKETS[ones][1]
        step += signed(bits.take(width), width)
        timestamps.append(signed(timestamps[-1] + step, 64))
    bits.finish()
    return timestamps


def values_gorilla(section: bytes, count: int) -> list[int]:
    bits = Bits(section)
    values: list[int] = []
    leading, length = 0, 64
    for index in range(count):
        if index == 0:
            values.append(bits.take(64))
        elif bits.take(1) == 0:
            values.append(values[-1])
        else:
            if bits.take(1) == 1:
                leading = bits.take(5)
                length = bits.take(6) + 1
                require(leading + length <= 64, "a window reaches beyond 64 bits")
            values.append(values[-1] ^ (bits.take(length) << (64 - leading - length)))
    bits.finish()
    return values


def take_statuses(data: bytes, at: int, codec: int, count: int) -> tuple[list[int], int]:
    if codec == 0:
        return [0] * count, at
    if codec == 1:
        statuses: list[int] = []
        begin = at
        while len(statuses) < count:
            run, at = take_varint(data, at)
            status, at = take_signed(data, at)
            require(1 <= run <= count - len(statuses), "a run is empty or too long")
            require(-(1 << 31) <= status < 1 << 31, "a status is too large")
            statuses += [status] * run
        require(at - begin <= 4 * count, "more than raw")
        return statuses, at
    require(codec == 2, "unknown status codec")
    require(at + 4 * count <= len(data), "the sections do not fit")
    return raw(data[at : at + 4 * count], count, "i"), at + 4 * count


def raw(section: bytes, count: int, letter: str) -> list[int]:
    require(len(section) == count * struct.calcsize("<" + letter), "wrong size")
    return list(struct.unpack(f"<{count}{letter}", section))


def take_count(data: bytes) -> tuple[int, int]:
    require(data[1] & 0x80 == 0, "a reserved bit")
    if data[1] & 0x40:
        return 1, 3
    count, at = take_varint(data, 3)
    require(count != 1, "one reading is a mark")
    require(count <= COUNT_MAX, "too many readings")
    return count, at


def decode(block: bytes, earlier: list[Block] | None = None) -> Block:
    """Decode one block; `earlier` are those before it in its buffer, whose timestamps it may share."""
    require(len(block) >= 8, "too few bytes")
    require(block[0] == 1, "unknown version")
    data, checksum = block[:-4], struct.unpack("<I", block[-4:])[0]
    require(crc32c(data) == checksum, "wrong checksum")
    codecs = (data[1] & 15, data[1] >> 4 & 3, data[2])
    count, at = take_count(data)
    timestamps, at = take_timestamps(data, at, codecs[0], count, earlier or [])
    statuses, at = take_statuses(data, at, codecs[1], count)
    return Block(codecs, timestamps, statuses, take_values(data[at:], codecs[2], count))


def take_values(section: bytes, codec: int, count: int, *, rounded: bool = False) -> list[int]:
    if codec == 5 and not rounded:
        require(len(section) > 5, "a section ends early")
        (bound,) = struct.unpack("<f", section[:4])
        require(0 <= bound < float("inf"), "an impossible bound")
        return take_values(section[5:], section[4], count, rounded=True)
    decoders: dict[int, Decoder] = {
        0: lambda section, n: raw(section, n, "Q"),
        1: values_gorilla,
        2: lambda section, n: raw(section, 1, "Q") * n,
        3: numbers,
        4: dictionary,
    }
    require(codec in decoders, "unknown value codec")
    require(codec < 2 or count > 0, "no values")
    return decoders[codec](section, count)


def decode_all(data: bytes, sizes: list[int]) -> list[Block]:
    """Decode blocks that follow one another."""
    blocks: list[Block] = []
    at = 0
    for size in sizes:
        blocks.append(decode(data[at : at + size], blocks))
        at += size
    require(at == len(data), "bytes are left")
    return blocks
