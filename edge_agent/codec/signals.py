"""Recorded signals from a Parquet file, one series at a time.

In: a file with the columns series (text), ts_ms or ts_us (64-bit integer) and value (64-bit float), rows in source
order, which is kept. Out: the readings of each series. Fails with SignalFileError, whose text is one line for people:
no such file, not Parquet, a column missing or of another type, nulls, no rows.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

US_PER_MS = 1000
_TS_MS_MAX = 2**63 // US_PER_MS


class SignalFileError(Exception):
    """The file is not one of signals; the text says in one line what is wrong."""


@dataclass(frozen=True, slots=True)
class Signal:
    """The readings of one series: `ts_us` int64[n], `values` float64[n]."""

    name: str
    ts_us: NDArray[np.int64]
    values: NDArray[np.float64]


def load_signals(path: Path) -> list[Signal]:
    """Read a signal file; series are in the order of their first rows."""
    if not path.is_file():
        raise SignalFileError(f"{path}: there is no such file")
    try:
        with duckdb.connect() as connection:
            relation = connection.read_parquet(str(path))
            ts_name = _check_columns(path, dict(zip(relation.columns, map(str, relation.types), strict=True)))
            columns = relation.select("series", ts_name, "value").fetchnumpy()
    except duckdb.Error as error:
        raise SignalFileError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from error
    for name, column in columns.items():
        if isinstance(column, np.ma.MaskedArray) and np.ma.getmaskarray(column).any():
            raise SignalFileError(f"{path}: column {name} holds nulls")
    ts = np.asarray(columns[ts_name], np.int64)
    if not ts.size:
        raise SignalFileError(f"{path}: there are no rows")
    if ts_name == "ts_ms":
        if np.abs(ts).max() >= _TS_MS_MAX:
            raise SignalFileError(f"{path}: column ts_ms holds times that do not fit into 64 bits of microseconds")
        ts *= US_PER_MS
    return _split(np.asarray(columns["series"]), ts, np.asarray(columns["value"], np.float64))


def _check_columns(path: Path, types: dict[str, str]) -> str:
    """Return the name of the column with timestamps."""
    ts_name = "ts_us" if "ts_us" in types else "ts_ms"
    for name, wanted in (("series", "VARCHAR"), (ts_name, "BIGINT"), ("value", "DOUBLE")):
        if name not in types:
            named = "ts_ms or ts_us" if name == ts_name else name
            raise SignalFileError(f"{path}: column {named} is missing; there are: {', '.join(types)}")
        if types[name] != wanted:
            kind = {"VARCHAR": "text", "BIGINT": "int64", "DOUBLE": "float64"}[wanted]
            raise SignalFileError(f"{path}: column {name} must be {kind}, not {types[name].lower()}")
    return ts_name


def _split(series: NDArray[np.object_], ts: NDArray[np.int64], values: NDArray[np.float64]) -> list[Signal]:
    names, first, inverse = np.unique(series.astype(str), return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    cuts = np.cumsum(np.bincount(inverse))[:-1]
    parts = zip(np.split(ts[order], cuts), np.split(values[order], cuts), strict=True)
    signals = [Signal(str(name), *part) for name, part in zip(names, parts, strict=True)]
    return [signals[int(index)] for index in np.argsort(first)]
