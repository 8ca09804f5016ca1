# The compiled kernel. Private: use common.codec, which says what shapes, units and errors to expect.

from typing import Final, Self, final

import numpy as np
from numpy.typing import NDArray

from common.codec import BlockDescription, BytesLike

__all__ = [
    "BLOCK_VERSION",
    "MAX_READINGS",
    "READINGS_PER_CALL_MAX",
    "Sticky",
    "decode_blocks",
    "describe_block",
    "encode_blocks",
]

MAX_READINGS: Final[int]
BLOCK_VERSION: Final[int]
READINGS_PER_CALL_MAX: Final[int]

@final
class Sticky:
    def __new__(cls, series: int) -> Self: ...
    def __len__(self) -> int: ...

def encode_blocks(
    ts: NDArray[np.int64],
    values: NDArray[np.float64],
    statuses: NDArray[np.int32],
    offsets: NDArray[np.int64],
    codec: str,
    groups: NDArray[np.int64] | None,
    sticky: Sticky | None,
    series: NDArray[np.int64] | None,
    max_error: NDArray[np.float64] | None,
    resolution: NDArray[np.float64] | None,
) -> tuple[bytes, NDArray[np.int64]]: ...
def decode_blocks(
    data: BytesLike, sizes: NDArray[np.int64], readings_max: int = ...
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32], NDArray[np.int64]]: ...
def describe_block(data: BytesLike) -> BlockDescription: ...
