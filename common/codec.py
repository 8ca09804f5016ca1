"""Blocks: readings of one series, compressed (docs/wire-format.md specifies the bytes).

In: whole arrays with the readings of many blocks one after another, and where each block begins. Out: one buffer with
the blocks one after another, and their sizes; or the arrays again, bit for bit. The work is done by the Rust kernel,
with the GIL released; one call moves as many blocks as there are.

Fails with ValueError or TypeError when the caller's arrays do not describe blocks, and with CodecError when bytes
are not a valid block: damaged, truncated, hostile, or written by a newer version.
"""

from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from common import _kernel

MAX_READINGS: Final = _kernel.MAX_READINGS
BLOCK_VERSION: Final = _kernel.BLOCK_VERSION

CodecName: TypeAlias = Literal["raw", "gorilla"]
BytesLike: TypeAlias = bytes | bytearray | memoryview

_Number = TypeVar("_Number", bound=np.generic)


class Blocks(NamedTuple):
    """Encoded blocks: `data` holds them one after another, `sizes` (int64, one per block) how many bytes each has."""

    data: bytes
    sizes: NDArray[np.int64]


class Readings(NamedTuple):
    """Decoded blocks: the readings of all of them one after another, `counts` (int64) how many each block has.

    `ts` is int64 microseconds since the epoch, `values` float64, `statuses` int32 (0 is good); their lengths are equal.
    """

    ts: NDArray[np.int64]
    values: NDArray[np.float64]
    statuses: NDArray[np.int32]
    counts: NDArray[np.int64]


class BlockDescription(TypedDict):
    """What a block says of itself; the sizes of its sections and of the whole are in bytes."""

    version: int
    count: int
    timestamp_codec: str
    status_codec: str
    value_codec: str
    timestamp_bytes: int
    status_bytes: int
    value_bytes: int
    total_bytes: int


def encode_blocks(
    ts: NDArray[np.int64],
    values: NDArray[np.float64],
    statuses: NDArray[np.int32],
    offsets: NDArray[np.int64],
    codec: CodecName = "gorilla",
) -> Blocks:
    """Encode readings into blocks; every value, NaN payloads included, comes back bit for bit.

    `gorilla` is delta-of-delta timestamps and XORed values (Pelkonen et al., "Gorilla: A Fast, Scalable, In-Memory Time
    Series Database", VLDB 2015); a section that would be larger than plain numbers is plain numbers. `raw` is plain
    numbers. With either, a block has at most 16 bytes more than 16 bytes a reading (20 unless every status is good).

    Args:
        ts: int64[n], microseconds since the epoch; any order, any value.
        values: float64[n]; any value.
        statuses: int32[n]; 0 is good, and costs nothing when every status of a block is.
        offsets: int64[b + 1], ascending from 0 to n: block k holds the readings offsets[k] to offsets[k + 1], of which
            there are at most MAX_READINGS; none is allowed.
        codec: How to encode.

    Raises:
        TypeError: An array has another element type or is not one-dimensional.
        ValueError: The lengths differ, the offsets do not ascend from 0 to n, a block has too many readings, or there
            is no such codec.

    The arrays must not be written to while the call runs, since it does not hold the GIL.
    """
    data, sizes = _kernel.encode_blocks(
        _column("ts", ts, np.int64),
        _column("values", values, np.float64),
        _column("statuses", statuses, np.int32),
        _column("offsets", offsets, np.int64),
        codec,
    )
    return Blocks(data, sizes)


def decode_blocks(data: BytesLike, sizes: NDArray[np.int64]) -> Readings:
    """Decode what encode_blocks returned; blocks of different codecs may be mixed.

    Args:
        data: The blocks one after another. Anything but `bytes` is copied first, for it might change meanwhile.
        sizes: int64[b], the bytes of each block; they add up to those of `data`.

    Raises:
        CodecError: A block is not valid; the message names the block by its index and says what is wrong.
            Nothing is allocated for readings that the bytes cannot hold.
        TypeError: `sizes` has another element type or is not one-dimensional, or `data` is not bytes-like.
    """
    return Readings(*_kernel.decode_blocks(data, _column("sizes", sizes, np.int64)))


def describe_block(data: BytesLike) -> BlockDescription:
    """Tell people what one block is: version, count, the codec and the bytes of each section, all bytes together.

    Raises:
        CodecError: It is not one valid block. Its frame and checksum are checked, its sections are not decoded.
    """
    return _kernel.describe_block(data)


def _column(name: str, column: NDArray[Any], dtype: type[_Number]) -> NDArray[_Number]:
    """Check an argument, and make it contiguous if it is a slice with a step."""
    # Never cast: a caller who passes floating-point timestamps or milliseconds in int32 has made a mistake.
    if not isinstance(column, np.ndarray) or column.dtype != dtype or column.ndim != 1:
        what = f"{column.dtype}{list(column.shape)}" if isinstance(column, np.ndarray) else type(column).__name__
        raise TypeError(f"{name} must be a one-dimensional array of {np.dtype(dtype)}, not {what}")
    return np.ascontiguousarray(column)
