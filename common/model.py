"""The words of the field as types: route, status code, series definition, and readings as columns.

Nothing here does input or output. Shapes: all arrays of a frame are one-dimensional and equally long.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray


class Route(StrEnum):
    """Which topic, and later which kind of processing, a batch takes."""

    STREAM = "stream"
    BATCH = "batch"

    @property
    def topic(self) -> str:
        """The Kafka topic of this route."""
        return f"forebay.{self.value}"


class ReportMode(StrEnum):
    """How often a tag reports: at every poll, or only when its value has moved beyond its deadband."""

    PERIODIC = "periodic"
    REPORT_BY_EXCEPTION = "report_by_exception"


class ClockState(StrEnum):
    """Whether the gateway's clock is known to follow a time server."""

    UNKNOWN = "unknown"
    SYNCHRONISED = "synchronised"
    UNSYNCHRONISED = "unsynchronised"


def _signed(code: int) -> int:
    return code - (1 << 32) if code >= 1 << 31 else code


class StatusCode(IntEnum):
    """Status codes as int32: 0 is good, the OPC UA severity bits say the rest (OPC 10000-4, 7.39).

    Codes of other protocols map onto these; docs/status-codes.md lists what each means for a technician.
    """

    GOOD = 0
    UNCERTAIN = _signed(0x4000_0000)
    BAD = _signed(0x8000_0000)
    BAD_COMMUNICATION_ERROR = _signed(0x8005_0000)
    BAD_TIMEOUT = _signed(0x800A_0000)
    BAD_NO_COMMUNICATION = _signed(0x8031_0000)
    BAD_OUT_OF_RANGE = _signed(0x803C_0000)
    BAD_NOT_SUPPORTED = _signed(0x803D_0000)
    BAD_CONFIGURATION_ERROR = _signed(0x8089_0000)
    BAD_DEVICE_FAILURE = _signed(0x808B_0000)


def is_bad(statuses: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell which status codes are of bad severity: the top bit, that is a negative int32."""
    return statuses < 0


@dataclass(frozen=True, slots=True)
class SeriesDefinition:
    """What never changes between batches of a series; carried by the birth message.

    `alias` numbers the series within one birth, from 0. `heartbeat_us` is the longest silence a healthy
    report-by-exception series allows itself, 0 where there is none; `max_error` how far off a value may be, 0: exact.
    """

    alias: int
    tag: str
    sensor_type: str
    unit: str
    mode: ReportMode
    poll_interval_us: int
    deadband: float = 0.0
    heartbeat_us: int = 0
    max_error: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadingFrame:
    """Readings as columns, in arrival order: the unit in which both programs move data.

    Attributes:
        series: int32[n], index of each reading's series; what it indexes is the owner's table.
        ts_us: int64[n], microseconds since the epoch, UTC.
        values: float64[n].
        statuses: int32[n], see StatusCode.
    """

    series: NDArray[np.int32]
    ts_us: NDArray[np.int64]
    values: NDArray[np.float64]
    statuses: NDArray[np.int32]

    def __post_init__(self) -> None:
        lengths = {self.series.size, self.ts_us.size, self.values.size, self.statuses.size}
        if len(lengths) != 1:
            raise ValueError(f"columns of a frame differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return self.ts_us.size

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "ReadingFrame":
        """Return the readings that `index` (positions or a mask) names, in its order."""
        return ReadingFrame(self.series[index], self.ts_us[index], self.values[index], self.statuses[index])

    @staticmethod
    def empty() -> "ReadingFrame":
        """Return a frame of no readings."""
        return ReadingFrame(
            np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.int32)
        )

    @staticmethod
    def concat(frames: "list[ReadingFrame]") -> "ReadingFrame":
        """Join frames in the order given."""
        if len(frames) == 1:
            return frames[0]
        if not frames:
            return ReadingFrame.empty()
        return ReadingFrame(
            np.concatenate([frame.series for frame in frames]),
            np.concatenate([frame.ts_us for frame in frames]),
            np.concatenate([frame.values for frame in frames]),
            np.concatenate([frame.statuses for frame in frames]),
        )
