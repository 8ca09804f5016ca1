"""What `cloud-ingest status` shows: read from the store and the broker, whether or not a worker is running.

In: a config. Out: a plain structure (the `--json` form), or that as tables. Fails with ServiceError when the store does
not answer; a broker that does not answer is part of the picture.
"""

import asyncio
from typing import Any, Final

import asyncpg
from confluent_kafka import Consumer, KafkaException, TopicPartition
from rich.console import Console
from rich.table import Table

from cloud_ingest.broker import BrokerLink, Cluster, silent
from cloud_ingest.config import IngestConfig
from cloud_ingest.store.connection import Store
from cloud_ingest.store.migrate import kind_of
from common.clock import iso8601
from common.errors import ServiceError

_TIMEOUT_S: Final = 3.0
_RANGES_MAX: Final = 20

_LANES: Final = """
SELECT agent_id, machine_id, route, epoch, received, repeated, readings, last_seen_at, upper(seen) - 1 AS last_seq,
       int8multirange(int8range(1, coalesce(upper(seen), 1))) - seen AS missing
FROM lanes ORDER BY agent_id, machine_id, route, epoch
"""


async def gather(config: IngestConfig) -> dict[str, Any]:
    """Return the state of the store, the partitions, the lanes and the dead letters."""
    store = Store(config)
    try:
        async with store.connection() as connection:
            found = await _from_store(connection, config)
    finally:
        await store.close()
    cluster_id, ends, error = await asyncio.to_thread(_from_broker, config, found["partitions"])
    found["broker"] = {"up": error is None, "cluster_id": cluster_id} | ({"error": error} if error else {})
    for one in found["partitions"]:
        end = ends.get((one["topic"], one["partition"]))
        same = one["cluster_id"] == cluster_id
        one["end_offset"] = end
        one["lag"] = None if end is None else max(0, end - ((one["next_offset"] or 0) if same else 0))
    return found


async def _from_store(connection: asyncpg.Connection, config: IngestConfig) -> dict[str, Any]:
    kind = await kind_of(connection)
    if kind is None:
        raise ServiceError("store: no Forebay tables in this database yet; run `cloud-ingest migrate CONFIG` first")
    group = config.ingest.consumer_group
    partitions = await connection.fetch(
        'SELECT c.topic, c."partition", c.next_offset, c.cluster_id, c.watermark, c.updated_at,'
        " a.next_offset AS archived"
        " FROM checkpoints c LEFT JOIN checkpoints a ON a.consumer_group = $2 AND a.topic = c.topic"
        ' AND a."partition" = c."partition" AND a.cluster_id = c.cluster_id'
        ' WHERE c.consumer_group = $1 ORDER BY c.topic, c."partition"',
        group,
        f"{group}.archive",
    )
    dead = await connection.fetch("SELECT reason, count(*) AS n FROM dead_letters GROUP BY reason ORDER BY reason")
    windows = {
        table: dict(
            await connection.fetchrow(f"SELECT count(*) AS rows, max(window_start) AS latest FROM {table}")  # noqa: S608 - constants
        )
        for table in ("windows_1m", "windows_5m")
    }
    files = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE state = 'published') AS published,"
        " count(*) FILTER (WHERE state = 'pending') AS pending,"
        " coalesce(sum(row_count), 0)::bigint AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM archive_files"
    )
    return {
        "store": {"up": True, "kind": kind, "series": await connection.fetchval("SELECT count(*) FROM series")},
        "partitions": [_partition(row) for row in partitions],
        "lanes": [_lane(row) for row in await connection.fetch(_LANES)],
        "dead_letters": {row["reason"]: row["n"] for row in dead},
        "windows": {table: {"rows": one["rows"], "latest": _time(one["latest"])} for table, one in windows.items()},
        "archive": dict(files),
    }


def _partition(row: asyncpg.Record) -> dict[str, Any]:
    return {**dict(row), "watermark": _time(row["watermark"]), "updated_at": _time(row["updated_at"])}


def _lane(row: asyncpg.Record) -> dict[str, Any]:
    ranges = [(one.lower, one.upper - 1) for one in row["missing"]]
    return {
        **{
            name: row[name] for name in ("agent_id", "machine_id", "route", "epoch", "received", "repeated", "readings")
        },
        "last_seq": row["last_seq"],
        "missing": sum(last - first + 1 for first, last in ranges),
        "missing_ranges": [list(one) for one in ranges],
        "last_seen_at": _time(row["last_seen_at"]),
    }


def _time(us: int | None) -> str | None:
    return None if us is None else iso8601(us)


def _from_broker(
    config: IngestConfig, partitions: list[dict[str, Any]]
) -> tuple[str | None, dict[tuple[str, int], int], str | None]:
    """Return the cluster id, the end of each partition, and what is wrong if something is."""
    link = BrokerLink(config)
    ends: dict[tuple[str, int], int] = {}
    cluster: Cluster | None = None
    try:
        cluster = link.connect()
        consumer = Consumer(
            {**cluster.settings, "group.id": "forebay-status", "enable.auto.commit": False}, logger=silent
        )
        try:
            for one in partitions:
                place = (one["topic"], one["partition"])
                ends[place] = consumer.get_watermark_offsets(TopicPartition(*place), timeout=_TIMEOUT_S)[1]
        finally:
            consumer.close()
    except (ServiceError, KafkaException) as error:
        return cluster.cluster_id if cluster else None, ends, str(error)
    finally:
        link.close()
    return cluster.cluster_id, ends, None


def show(found: dict[str, Any], console: Console) -> None:
    """Print it for people."""
    store, broker, archive = found["store"], found["broker"], found["archive"]
    console.print(f"store: {store['kind']}, {store['series']} series")
    console.print(f"broker: {'up' if broker['up'] else 'unreachable: ' + broker['error']}", markup=False)
    for table, one in found["windows"].items():
        console.print(f"{table}: {one['rows']} rows, latest {one['latest'] or '-'}")
    console.print(
        f"archive: {archive['published']} files, {archive['pending']} pending,"
        f" {archive['rows']} rows, {archive['bytes']} bytes"
    )
    letters = ", ".join(f"{reason} {n}" for reason, n in found["dead_letters"].items())
    console.print(f"dead letters: {letters or 'none'}")
    partitions = Table("topic", "partition", "stored to", "archived to", "end", "lag", "watermark", title="partitions")
    for one in found["partitions"]:
        cells = ("topic", "partition", "next_offset", "archived", "end_offset", "lag", "watermark")
        partitions.add_row(*("-" if one[cell] is None else str(one[cell]) for cell in cells))
    console.print(partitions)
    lanes = Table("agent", "machine", "route", "epoch", "received", "repeated", "missing", "last seen", title="lanes")
    for one in found["lanes"]:
        ranges = " ".join(f"{first}-{last}" for first, last in one["missing_ranges"][:_RANGES_MAX])
        missing = f"{one['missing']} ({ranges})" if one["missing"] else "0"
        names = ("agent_id", "machine_id", "route", "epoch", "received", "repeated")
        lanes.add_row(*(str(one[name]) for name in names), missing, one["last_seen_at"])
    console.print(lanes)
