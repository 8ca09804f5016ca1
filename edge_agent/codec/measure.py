"""What blocks of one signal cost: bytes, speed, codecs, and what rounding did to the values.

Every block is decoded again and compared: bit for bit, or within the bound, before it is timed.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common import codec
from edge_agent.codec.signals import Signal

BYTES_PER_READING = 16
_RUNS = 3


@dataclass(frozen=True, slots=True)
class Options:
    """How to encode: readings a block, the level or codec, and the bound as a part of each series' span (0: exact)."""

    block: int
    level: codec.CodecName
    max_error_span: float = 0.0


@dataclass(frozen=True, slots=True)
class Loss:
    """What rounding did: the bound and the largest error, their root mean square, and two features before and after."""

    bound: float
    max_error: float
    rmse: float
    difference_variance: tuple[float, float]
    minimum: tuple[float, float]
    maximum: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out for one signal; `codecs` counts blocks by how their values are held."""

    series: str
    readings: int
    bytes: int
    encode_s: float
    decode_s: float
    codecs: dict[str, int]
    timestamp_codecs: dict[str, int]
    timestamp_bytes: int
    verified: bool
    loss: Loss | None

    @property
    def ratio(self) -> float:
        """How many times smaller than 16 bytes a reading."""
        return BYTES_PER_READING * self.readings / self.bytes


def measure(signal: Signal, options: Options) -> Measured:
    """Encode, verify, describe and time one signal."""
    count = signal.values.size
    offsets = np.append(np.arange(0, count, options.block, dtype=np.int64), count)
    statuses = np.zeros(count, np.int32)
    bound = _span(signal.values) * options.max_error_span
    bounds = np.full(offsets.size - 1, bound)
    rows = np.zeros(offsets.size - 1, np.int64)

    def encode() -> codec.Blocks:
        return codec.encode_blocks(
            signal.ts_us,
            signal.values,
            statuses,
            offsets,
            options.level,
            sticky=codec.Sticky(1),
            series=rows,
            max_error=bounds if bound > 0.0 else None,
        )

    blocks = encode()
    decoded = codec.decode_blocks(*blocks)
    ends = np.cumsum(blocks.sizes).tolist()
    starts = [0, *ends[:-1]]
    described = [codec.describe_block(blocks.data[start:end]) for start, end in zip(starts, ends, strict=True)]
    return Measured(
        series=signal.name,
        readings=count,
        bytes=len(blocks.data),
        encode_s=_seconds(encode),
        decode_s=_seconds(lambda: codec.decode_blocks(*blocks)),
        codecs=dict(Counter(_kind(one) for one in described).most_common()),
        timestamp_codecs=dict(Counter(one["timestamp_codec"] for one in described).most_common()),
        timestamp_bytes=sum(one["timestamp_bytes"] for one in described),
        verified=_is_verified(signal, decoded, bound),
        loss=_loss(signal.values, decoded.values, bound) if bound > 0.0 else None,
    )


def _kind(block: codec.BlockDescription) -> str:
    """How the values of a block are held, without what differs from block to block."""
    parts = [part.strip() for part in block["value_detail"].split(",")]
    kept = [part.split(" of ")[0] for part in parts if not part.endswith("exceptions")]
    rounded = "rounded: " if block["value_codec"] == "rounded" else ""
    return rounded + ", ".join(kept)


def _is_verified(signal: Signal, decoded: codec.Readings, bound: float) -> bool:
    if decoded.values.size != signal.values.size or not np.array_equal(decoded.ts, signal.ts_us):
        return False
    same = decoded.values.view(np.int64) == signal.values.view(np.int64)
    if bound > 0.0:
        with np.errstate(invalid="ignore"):
            same |= np.abs(decoded.values - signal.values) <= bound
    return bool(same.all()) and not decoded.statuses.any()


def _span(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        span = float(np.ptp(finite)) if finite.size else 0.0
    return span if np.isfinite(span) else 0.0


def _loss(before: NDArray[np.float64], after: NDArray[np.float64], bound: float) -> Loss:
    finite = np.isfinite(before)
    before, after = before[finite], after[finite]
    error = np.abs(after - before)

    def spread(values: NDArray[np.float64]) -> float:
        return float(np.var(np.diff(values))) if values.size > 1 else 0.0

    return Loss(
        bound=bound,
        max_error=float(error.max()),
        rmse=float(np.sqrt(np.mean(error**2))),
        difference_variance=(spread(before), spread(after)),
        minimum=(float(before.min()), float(after.min())),
        maximum=(float(before.max()), float(after.max())),
    )


def _seconds(work: Callable[[], object]) -> float:
    """Return the least of a few runs: what else the machine does only ever adds."""
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return max(min(times), 1e-9)
