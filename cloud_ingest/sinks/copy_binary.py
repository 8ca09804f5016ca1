"""PostgreSQL's binary COPY format, built by numpy: columns in, one buffer out, no Python per row.

In: arrays of equal length. Out: bytes for `asyncpg.Connection.copy_to_table(format="binary")`. NULL cannot be said; the
staging tables of the windows say it in another column. Fails with TypeError on an element type it does not know.

A row is its number of fields (int16), then each field as its length (int32) and its big-endian bytes; with fixed
widths that is a packed record, and numpy fills it column by column (PostgreSQL manual, COPY, "Binary Format").
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud_ingest.store.connection import EPOCH_2000_US

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
_KINDS: Final = "if"
_CHUNK_BYTES: Final = 1 << 20


def timestamptz(us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn microseconds since 1970 into what a timestamptz column takes."""
    return us - EPOCH_2000_US


def rows(columns: Sequence[NDArray[Any]]) -> bytes:
    """Encode columns (int16, int32, int64, float32, float64; times through `timestamptz`) as a whole COPY stream."""
    fields: list[tuple[str, str]] = [("fields", ">i2")]
    for k, column in enumerate(columns):
        if column.dtype.kind not in _KINDS or column.dtype.itemsize < 2:  # noqa: PLR2004 - there is no int1
            raise TypeError(f"column {k}: no binary COPY for {column.dtype}")
        fields += [(f"length{k}", ">i4"), (f"value{k}", column.dtype.newbyteorder(">").str)]
    table = np.empty(columns[0].size, np.dtype(fields))
    table["fields"] = len(columns)
    for k, column in enumerate(columns):
        table[f"length{k}"] = column.dtype.itemsize
        table[f"value{k}"] = column
    return b"".join((HEADER, table.data, TRAILER))


async def stream(data: bytes) -> AsyncIterator[memoryview]:
    """Hand a COPY stream to asyncpg in pieces."""
    view = memoryview(data)
    for begin in range(0, len(view), _CHUNK_BYTES):
        yield view[begin : begin + _CHUNK_BYTES]


def parse(data: bytes, dtypes: Sequence[type[np.generic]]) -> list[NDArray[Any]]:
    """Decode a COPY stream of rows without NULL in columns of these types; raises ValueError on anything else."""
    layout = [("fields", ">i2")]
    for k, dtype in enumerate(dtypes):
        layout += [(f"length{k}", ">i4"), (f"value{k}", np.dtype(dtype).newbyteorder(">").str)]
    begin = len(HEADER) + int.from_bytes(data[len(HEADER) - 4 : len(HEADER)], "big")
    body = memoryview(data)[begin : len(data) - len(TRAILER)]
    record = np.dtype(layout)
    if not data.startswith(HEADER[:11]) or len(body) % record.itemsize:
        raise ValueError("not a COPY stream of rows with these columns")
    table = np.frombuffer(body, record)
    for k, dtype in enumerate(dtypes):
        if (table[f"length{k}"] != np.dtype(dtype).itemsize).any():
            raise ValueError(f"column {k} of the COPY stream has NULLs or another type")
    return [table[f"value{k}"].astype(dtype) for k, dtype in enumerate(dtypes)]
