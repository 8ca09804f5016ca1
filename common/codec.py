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
READINGS_PER_CALL_MAX: Final = _kernel.READINGS_PER_CALL_MAX

CodecName: TypeAlias = Literal["fast", "balanced", "small", "gorilla", "raw"]
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
    """What a block says of itself; the sizes of its sections and of the whole are in bytes.

    `value_detail` is how the values became integers and how those are held; `max_error` how far off any value may be,
    0 if they are exact.
    """

    version: int
    count: int
    timestamp_codec: str
    status_codec: str
    value_codec: str
    timestamp_bytes: int
    status_bytes: int
    value_bytes: int
    total_bytes: int
    value_detail: str
    max_error: float


class Sticky:
    """Remembers, for each series, what suited its last block, and so spares the encoder looking again.

    One encode_blocks call at a time uses it; others wait. It changes how fast blocks are made, and now and then which
    codec they get, never what they decode to.
    """

    def __init__(self, series: int) -> None:
        """`series`: how many there are; their rows are 0 to one less."""
        self._kernel = _kernel.Sticky(series)

    def __len__(self) -> int:
        """How many series there are."""
        return len(self._kernel)


def encode_blocks(  # noqa: PLR0913 - all but the readings have a default
    ts: NDArray[np.int64],
    values: NDArray[np.float64],
    statuses: NDArray[np.int32],
    offsets: NDArray[np.int64],
    codec: CodecName = "gorilla",
    *,
    groups: NDArray[np.int64] | None = None,
    sticky: Sticky | None = None,
    series: NDArray[np.int64] | None = None,
    max_error: NDArray[np.float64] | None = None,
    resolution: NDArray[np.float64] | None = None,
) -> Blocks:
    """Encode readings into blocks; every value, NaN payloads included, comes back bit for bit unless told otherwise.

    `fast`, `balanced` and `small` look for what suits each block: `fast` knows decimal fractions and Gorilla,
    `balanced` every form that docs/compression.md names, `small` also entropy-codes, at a tenth of the speed.
    `gorilla` is delta-of-delta timestamps and XORed values (Pelkonen et al., "Gorilla: A Fast, Scalable, In-Memory Time
    Series Database", VLDB 2015); `raw` is plain numbers. A section that would be larger than plain numbers is plain
    numbers, so a block has at most 16 bytes more than 16 bytes a reading (20 unless every status is good).

    Args:
        ts: int64[n], microseconds since the epoch; any order, any value.
        values: float64[n]; any value.
        statuses: int32[n]; 0 is good, and costs nothing when every status of a block is.
        offsets: int64[b + 1], ascending from 0 to n: block k holds the readings offsets[k] to offsets[k + 1], of which
            there are at most MAX_READINGS; none is allowed.
        codec: How to encode.
        groups: int64[g + 1], ascending from 0 to b: the blocks groups[g] to groups[g + 1] stay together, as those of a
            batch do. Timestamps that several blocks of a group share are stored once, in the first of them; a group can
            be decoded without the others, but not a part of it. Without groups every block stands alone.
        sticky: What suited each series before; with it comes `series`.
        series: int64[b], the row of each block's series in `sticky`.
        max_error: float64[b], how far off the values of a block may be; 0 or NaN: exact. The block records it.
        resolution: float64[b], values become its nearest multiples, and so are off by half of it at most; 0 or NaN:
            exact. Both are for `fast`, `balanced` and `small`, the others are always exact; a block has one or the
            other. What cannot be rounded within the bound, as NaN and infinities, stays exact, and so does a block that
            takes no fewer bytes rounded.

    Raises:
        TypeError: An array has another element type or is not one-dimensional.
        ValueError: The lengths differ, the offsets do not ascend from 0 to n, the groups not from 0 to b, a block has
            too many readings, a series has no row, a bound is negative or infinite, or there is no such codec.

    The arrays must not be written to while the call runs, since it does not hold the GIL.
    """
    if (sticky is None) != (series is None):
        raise ValueError("sticky and series come together")
    data, sizes = _kernel.encode_blocks(
        _column("ts", ts, np.int64),
        _column("values", values, np.float64),
        _column("statuses", statuses, np.int32),
        _column("offsets", offsets, np.int64),
        codec,
        None if groups is None else _column("groups", groups, np.int64),
        None if sticky is None else sticky._kernel,  # noqa: SLF001 - this module's own
        None if series is None else _column("series", series, np.int64),
        None if max_error is None else _column("max_error", max_error, np.float64),
        None if resolution is None else _column("resolution", resolution, np.float64),
    )
    return Blocks(data, sizes)


def decode_blocks(data: BytesLike, sizes: NDArray[np.int64], *, readings_max: int = READINGS_PER_CALL_MAX) -> Readings:
    """Decode what encode_blocks returned; blocks of different codecs may be mixed, and groups put one after another.

    Args:
        data: The blocks one after another. Anything but `bytes` is copied first, for it might change meanwhile.
        sizes: int64[b], the bytes of each block; they add up to those of `data`.
        readings_max: How many readings all blocks together may hold. A block of 4096 equal readings takes a dozen
            bytes, so pass what the blocks are known to hold when they come from a network.

    Raises:
        CodecError: A block is not valid; the message names the block by its index and says what is wrong.
            Nothing is allocated for readings that the bytes cannot hold, or that are more than `readings_max`.
        TypeError: `sizes` has another element type or is not one-dimensional, or `data` is not bytes-like.
    """
    return Readings(*_kernel.decode_blocks(data, _column("sizes", sizes, np.int64), readings_max))


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
