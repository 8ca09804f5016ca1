"""The dashboards' SQL on the real schema: every panel and variable finds what is stored."""

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import asyncpg
import pytest

from cloud_ingest.embedded_postgres import EmbeddedPostgres
from cloud_ingest.store.migrate import migrate

DASHBOARDS = sorted((Path(__file__).resolve().parents[2] / "grafana/dashboards").glob("*.json"))

STORED = """
INSERT INTO series (series_id, machine_id, tag, unit) VALUES (1, 'press-1', 'temperature', 'C');
INSERT INTO readings (ts, series_id, value, status_code) VALUES (now() - interval '10 seconds', 1, 21.5, 0);
INSERT INTO windows_1m (series_id, window_start, count, mean, min, max, first, last, stddev, bad_count, m2)
    VALUES (1, date_trunc('minute', now() - interval '2 minutes'), 60, 21, 20, 22, 20, 22, 1, 3, 60);
INSERT INTO batch_ledger (agent_id, machine_id, route, epoch, seq, kind, cluster_id, topic, "partition", "offset",
    readings, wire_bytes, replayed) VALUES ('gw-1', 'press-1', 'stream', 1, 1, 'batch', 'c', 't', 0, 0, 60, 100, false);
"""


def plain(sql: str) -> str:
    """What Grafana makes of its macros and of the chosen variables."""
    sql = re.sub(r"\$__timeFilter\((.+?)\)", r"\1 BETWEEN now() - interval '1 hour' AND now()", sql)
    sql = re.sub(r"\$__timeGroupAlias\((.+?), '1m'\)", r"date_trunc('minute', \1) AS time", sql)
    return sql.replace("$machine", "press-1").replace("$tag", "'temperature'")


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedPostgres]:
    folder = Path(mkdtemp(prefix="forebay-test-"))
    folder.chmod(0o755)
    with EmbeddedPostgres(folder) as store:
        asyncio.run(fill(store.dsn))
        yield store
    shutil.rmtree(folder, ignore_errors=True)


async def fill(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await migrate(connection)
    await connection.execute(STORED)
    await connection.close()


@pytest.mark.parametrize("text", [path.read_text() for path in DASHBOARDS], ids=[path.stem for path in DASHBOARDS])
async def test_every_panel_and_variable_finds_what_is_stored(store: EmbeddedPostgres, text: str) -> None:
    dashboard: dict[str, Any] = json.loads(text)
    queries = {f"variable {each['name']}": each["query"] for each in dashboard["templating"]["list"]}
    queries |= {panel["title"]: target["rawSql"] for panel in dashboard["panels"] for target in panel["targets"]}
    connection = await asyncpg.connect(store.dsn)
    try:
        for title, sql in queries.items():
            rows = await connection.fetch(plain(sql))
            assert rows, title
            assert all(value is not None for value in rows[0].values()), title
    finally:
        await connection.close()
