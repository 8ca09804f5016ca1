"""Recorded signals instead of physics: `--replay FILE.parquet`.

In: a Parquet file with columns series (text), ts_ms (integer) and value (float), rows in source order. Out: machines
whose tags are float64 registers, and their values at any moment, exactly as recorded (NaN, -0.0 and all). Fails with
ConfigError: no such file, not Parquet, a column missing or of the wrong type, nulls, names that clash.

A series `skab.pressure_bar` is tag pressure_bar of machine skab; without a dot the tag is called value. Each
series plays from its own first reading at the pace of its timestamps times `speed`, and starts again after its last
one. A reading whose timestamp steps back plays together with the one before it (the register shows the later row).
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, Problem
from edge_agent.simulate.plant import STEP_S
from edge_agent.simulate.registers import Machine, Space, Tag, ValueType

Floats = NDArray[np.float64]

_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_WANTED = {"series": {"VARCHAR"}, "ts_ms": _INTEGERS, "value": {"DOUBLE", "FLOAT"}}
_SENSOR_TYPES = {
    "temp": "temperature",
    "accel": "vibration",
    "vib": "vibration",
    "pressure": "pressure",
    "flow": "flow",
    "current": "current",
    "voltage": "voltage",
    "power": "power",
    "speed": "speed",
}


@dataclass(frozen=True, slots=True)
class Recording:
    """One series: `at_s` float64[n], seconds after its first reading, never falling; `values` float64[n], source order.

    `length_s` is when it starts again: a typical step after the last reading.
    """

    name: str
    at_s: Floats
    values: Floats
    length_s: float

    @classmethod
    def of(cls, name: str, ts_ms: NDArray[np.int64], values: Floats) -> "Recording":
        """Lay a series out in time; `ts_ms` is not empty."""
        at_s = np.maximum.accumulate(ts_ms - ts_ms[0]) / 1000.0
        steps = np.diff(at_s)
        forward = steps[steps > 0.0]
        return cls(name, at_s, values, float(at_s[-1] + (np.median(forward) if forward.size else 1.0)))

    def value_at(self, time_s: float) -> float:
        """Return the value that a register shows `time_s` of playing time after the start."""
        return float(self.values[np.searchsorted(self.at_s, time_s % self.length_s, side="right") - 1])


def load_recordings(path: Path) -> list[Recording]:
    """Read the file, series in alphabetical order; raises ConfigError if it is not as described above."""
    if not path.is_file():
        raise _wrong(path, "no such file")
    with duckdb.connect() as database:
        try:
            source = database.read_parquet(str(path), file_row_number=True)
            _check_columns(path, dict(zip(source.columns, map(str, source.types), strict=True)))
            source.create_view("source")
            nulls = database.sql("SELECT count(*) FROM source WHERE series IS NULL OR ts_ms IS NULL OR value IS NULL")
            if missing := nulls.fetchall()[0][0]:
                raise _wrong(path, f"{missing} rows have a null; series, ts_ms and value must all be given")
            counts = database.sql("SELECT series, count(*) FROM source GROUP BY series ORDER BY series").fetchall()
            columns = database.sql(
                "SELECT ts_ms::BIGINT AS ts_ms, value::DOUBLE AS value FROM source ORDER BY series, file_row_number"
            ).fetchnumpy()
        except duckdb.Error as error:
            raise _wrong(path, f"not a readable Parquet file: {str(error).splitlines()[0]}") from error
    if not counts:
        raise _wrong(path, "holds no readings")
    ts_ms, values = np.asarray(columns["ts_ms"]), np.asarray(columns["value"])
    ends = np.cumsum([count for _, count in counts])
    pieces = zip(counts, np.split(ts_ms, ends[:-1]), np.split(values, ends[:-1]), strict=True)
    return [Recording.of(name, stamps, numbers) for (name, _), stamps, numbers in pieces]


def _wrong(path: Path, message: str) -> ConfigError:
    return ConfigError(f"--replay {path}", [Problem("", message)])


def _check_columns(path: Path, types: dict[str, str]) -> None:
    missing = [name for name in _WANTED if name not in types]
    if missing:
        raise _wrong(path, f"column {' and '.join(missing)} missing; it needs series, ts_ms and value")
    for name, allowed in _WANTED.items():
        if types[name] not in allowed:
            wanted = {"series": "text", "ts_ms": "an integer", "value": "a float"}[name]
            raise _wrong(path, f"column {name} is {types[name]}, expected {wanted}")


def build_machines(path: Path, recordings: list[Recording]) -> list[Machine]:
    """Return a machine per name before the first dot, in the order of `recordings`."""
    tags: dict[str, list[Tag]] = {}
    seen: set[tuple[str, str]] = set()
    for recording in recordings:
        machine_id, _, rest = recording.name.partition(".")
        name = rest or "value"
        if not machine_id or recording.name.endswith("."):
            raise _wrong(path, f"series {recording.name!r} has no machine or no tag; name series machine.tag")
        known = tags.setdefault(machine_id, [])
        if (machine_id, name) in seen:
            raise _wrong(path, f"tag {name!r} of machine {machine_id!r} would be given by two series")
        seen.add((machine_id, name))
        finite = recording.values[np.isfinite(recording.values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
        margin = 0.5 * (high - low)
        sensor_type = next((word for part, word in _SENSOR_TYPES.items() if part in name.lower()), "value")
        address = len(known) * ValueType.FLOAT64.addresses
        known.append(
            Tag(name, Space.HOLDING, address, ValueType.FLOAT64, sensor_type, low=low - margin, high=high + margin)
        )
    return [Machine(machine_id, tuple(points)) for machine_id, points in tags.items()]


class ReplaySource:
    """The values of `build_machines(recordings)` as time goes by."""

    def __init__(self, recordings: list[Recording], speed: float) -> None:
        """`speed` 1.0 is the pace of the recording; `recordings` are sorted by name, hence in map order."""
        self._speed = speed
        order: dict[str, list[Recording]] = {}
        for recording in recordings:
            order.setdefault(recording.name.partition(".")[0], []).append(recording)
        self._recordings = [recording for group in order.values() for recording in group]

    def values(self, tick: int) -> Floats:
        """Return what the registers show at tick number `tick` (of STEP_S, from 0)."""
        time_s = tick * STEP_S * self._speed
        return np.array([recording.value_at(time_s) for recording in self._recordings])
