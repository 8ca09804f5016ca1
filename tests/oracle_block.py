"""A decoder of blocks in plain Python, written from docs/wire-format.md; it shares no code with the kernel.

Slow and obvious on purpose. `decode` returns what the block holds, or raises OracleError where the page says that a
reader refuses the block.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

COUNT_MAX = 4096
Decoder = Callable[[bytes, int], list[int]]
# Prefix of ones (ended by a zero, but for the last) and width of the number.
TIMESTAMP_BUCKETS = ((0, 0), (1, 6), (2, 12), (3, 16), (4, 22), (5, 32), (6, 64))


class OracleError(Exception):
    """The bytes are not a valid block."""


@dataclass(frozen=True)
class Block:
    """What a block holds; values as their 64 bits, since NaN is not equal to itself."""

    codecs: tuple[int, int, int]
    timestamps: list[int]
    statuses: list[int]
    value_bits: list[int]


def require(condition: bool, why: str) -> None:
    if not condition:
        raise OracleError(why)


def crc32c(data: bytes) -> int:
    """Bit by bit, as in the definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def signed(number: int, bits: int) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if bits and number >> (bits - 1) else number


class Bits:
    """A bit stream as one big number."""

    def __init__(self, section: bytes) -> None:
        self.number = int.from_bytes(section, "little")
        self.left = 8 * len(section)

    def take(self, width: int) -> int:
        require(width <= self.left, "a section ends early")
        taken = self.number & ((1 << width) - 1)
        self.number >>= width
        self.left -= width
        return taken

    def finish(self) -> None:
        require(self.left < 8, "a section goes on")
        require(self.number == 0, "unused bits are not zero")


def take_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index in range(5):
        require(at + index < len(data), "a varint ends early")
        byte = data[at + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            require(byte != 0 or index == 0, "a varint is too long")
            require(number < 1 << 32, "a varint is too large")
            return number, at + index + 1
    raise OracleError("a varint does not end")


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


def statuses_runs(section: bytes, count: int) -> list[int]:
    require(len(section) <= 4 * count, "more than raw")
    statuses: list[int] = []
    at = 0
    while at < len(section):
        run, at = take_varint(section, at)
        folded, at = take_varint(section, at)
        require(1 <= run <= count - len(statuses), "a run is empty or too long")
        statuses += [(folded >> 1) ^ -(folded & 1)] * run
    require(len(statuses) == count, "a status is missing")
    return statuses


def raw(section: bytes, count: int, letter: str) -> list[int]:
    require(len(section) == count * struct.calcsize("<" + letter), "wrong size")
    return list(struct.unpack(f"<{count}{letter}", section))


def statuses_good(section: bytes, count: int) -> list[int]:
    require(section == b"", "good statuses have no bytes")
    return [0] * count


def decode(block: bytes) -> Block:
    require(len(block) >= 10, "too few bytes")
    require(block[0] == 1, "unknown version")
    data, checksum = block[:-4], struct.unpack("<I", block[-4:])[0]
    require(crc32c(data) == checksum, "wrong checksum")
    codecs = (data[1] & 15, data[1] >> 4, data[2])
    count, at = take_varint(data, 3)
    timestamp_size, at = take_varint(data, at)
    status_size, at = take_varint(data, at)
    require(count <= COUNT_MAX, "too many readings")
    values_at = at + timestamp_size + status_size
    require(values_at <= len(data), "the sections do not fit")
    timestamp_decoders: dict[int, Decoder] = {0: lambda section, n: raw(section, n, "q"), 1: timestamps_delta_of_delta}
    status_decoders: dict[int, Decoder] = {
        0: statuses_good,
        1: statuses_runs,
        2: lambda section, n: raw(section, n, "i"),
    }
    value_decoders: dict[int, Decoder] = {0: lambda section, n: raw(section, n, "Q"), 1: values_gorilla}
    require(codecs[0] in timestamp_decoders, "unknown timestamp codec")
    require(codecs[1] in status_decoders, "unknown status codec")
    require(codecs[2] in value_decoders, "unknown value codec")
    return Block(
        codecs,
        timestamp_decoders[codecs[0]](data[at : at + timestamp_size], count),
        status_decoders[codecs[1]](data[at + timestamp_size : values_at], count),
        value_decoders[codecs[2]](data[values_at:], count),
    )
