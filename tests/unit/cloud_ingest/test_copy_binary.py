"""Our COPY bytes against asyncpg's own encoder and PostgreSQL's own output."""

import asyncio

import asyncpg
import numpy as np
import pytest

from cloud_ingest.embedded_postgres import EmbeddedPostgres
from cloud_ingest.sinks import copy_binary
from cloud_ingest.store.connection import EPOCH_2000_US
from tests.integration.conftest import postgres  # noqa: F401 - a fixture

ROWS = 1000


def columns() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 1 << 64, ROWS, dtype=np.uint64).view(np.float64).copy()
    values[:4] = [np.nan, -0.0, np.inf, 5e-324]
    ts = rng.integers(-(1 << 57), 1 << 60, ROWS)
    return ts, rng.integers(-(1 << 31), 1 << 31, ROWS).astype(np.int32), values, np.arange(ROWS, dtype=np.int16)


def test_equals_what_postgresql_reads_and_writes(postgres: EmbeddedPostgres) -> None:  # noqa: F811
    ts, series, values, small = columns()

    async def run() -> tuple[list[asyncpg.Record], bytes, list[asyncpg.Record]]:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.set_type_codec(
            "timestamptz", schema="pg_catalog", format="tuple",
            encoder=lambda us: (us - EPOCH_2000_US,), decoder=lambda t: t[0] + EPOCH_2000_US,
        )  # fmt: skip
        await connection.execute("CREATE TEMP TABLE ours (ts timestamptz, s int, v float8, k smallint)")
        await connection.execute("CREATE TEMP TABLE theirs (LIKE ours)")
        data = copy_binary.rows([copy_binary.timestamptz(ts), series, values, small])
        await connection.copy_to_table("ours", schema_name="pg_temp", source=copy_binary.stream(data), format="binary")
        records = list(zip(ts.tolist(), series.tolist(), values.tolist(), small.tolist(), strict=True))
        await connection.copy_records_to_table("theirs", schema_name="pg_temp", records=records)
        different = (
            "SELECT * FROM ours FULL JOIN theirs USING (k) WHERE ours IS DISTINCT FROM theirs OR ours.ts IS NULL"
        )
        pieces: list[bytes] = []

        async def keep(piece: bytes) -> None:
            pieces.append(piece)

        await connection.copy_from_query("SELECT * FROM ours ORDER BY k", output=keep, format="binary")
        found = await connection.fetch(different), b"".join(pieces), await connection.fetch("SELECT count(*) FROM ours")
        await connection.close()
        return found

    different, data, count = asyncio.run(run())
    assert count[0][0] == ROWS
    assert not different
    back = copy_binary.parse(data, (np.int64, np.int32, np.float64, np.int16))
    assert (back[0] + EPOCH_2000_US).tolist() == ts.tolist()
    assert back[1].tolist() == series.tolist()
    assert back[2].tobytes() == values.tobytes()
    assert back[3].tolist() == small.tolist()


def test_no_rows() -> None:
    data = copy_binary.rows([np.empty(0, np.int64)])
    assert data == copy_binary.HEADER + copy_binary.TRAILER
    assert copy_binary.parse(data, (np.int64,))[0].size == 0


def test_rejects_what_it_cannot_say() -> None:
    with pytest.raises(TypeError, match="column 0"):
        copy_binary.rows([np.array(["x"])])
    with pytest.raises(ValueError, match="COPY stream"):
        copy_binary.parse(copy_binary.rows([np.zeros(3, np.int32)]), (np.int64,))
    with pytest.raises(ValueError, match="COPY stream"):
        copy_binary.parse(b"nonsense", (np.int64,))
