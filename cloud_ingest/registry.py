"""What aliases stand for: births from the wire become series ids, kept in the store and cached here.

In: births, and batches that need one. Out: arrays of series ids by alias. Fails with the errors of the store.

A birth is named by agent, machine and a digest of its content, so what is cached never changes. A birth that is
repeated (every ten minutes) costs a dictionary lookup. Series ids are only drawn for tags that are new: PostgreSQL
counts up even where nothing is inserted, and int4 would not last.
"""

import json
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import NamedTuple

import asyncpg
import numpy as np
from numpy.typing import NDArray

from cloud_ingest.model import Item
from cloud_ingest.store.connection import Store
from common.model import SeriesDefinition
from common.wire import Birth, TelemetryBatch


class BirthKey(NamedTuple):
    """What names a birth."""

    agent_id: str
    machine_id: str
    birth_id: int


class Registry:
    """Births of this worker's partitions, loaded when first needed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._series: dict[BirthKey, NDArray[np.int32]] = {}

    def lookup(self, batch: TelemetryBatch) -> NDArray[np.int32] | None:
        """Return series ids by alias (-1 where there is none); None if the birth is not known. See `prepare`."""
        return self._series.get(BirthKey(batch.head.agent_id, batch.head.machine_id, batch.birth_id))

    def knows(self, items: Sequence[Item]) -> bool:
        """Tell whether every birth the items bring or need is in the cache, so that `prepare` has nothing to do."""
        return all(
            BirthKey(item.content.head.agent_id, item.content.head.machine_id, item.content.birth_id) in self._series
            for item in items
            if isinstance(item.content, Birth | TelemetryBatch)
        )

    async def prepare(self, items: Sequence[Item]) -> None:
        """Make sure that every birth the items bring or need and that exists is in the cache."""
        brought: dict[BirthKey, Birth] = {}
        needed: set[BirthKey] = set()
        for item in items:
            content = item.content
            if isinstance(content, Birth | TelemetryBatch):
                key = BirthKey(content.head.agent_id, content.head.machine_id, content.birth_id)
                if key in self._series:
                    continue
                needed.add(key)
                if isinstance(content, Birth):
                    brought[key] = content
        if not needed:
            return
        async with self._store.connection() as connection:
            await self._load(connection, needed)
            for key, birth in brought.items():
                if key not in self._series:
                    async with connection.transaction():
                        self._series[key] = await _learn(connection, birth)

    async def _load(self, connection: asyncpg.Connection, keys: Iterable[BirthKey]) -> None:
        columns = list(zip(*keys, strict=True))
        rows = await connection.fetch(
            "SELECT b.agent_id, b.machine_id, b.birth_id, b.aliases, b.series_ids FROM births b"
            " JOIN unnest($1::text[], $2::text[], $3::bigint[]) AS k (agent_id, machine_id, birth_id)"
            " USING (agent_id, machine_id, birth_id)",
            *columns,
        )
        for row in rows:
            key = BirthKey(row["agent_id"], row["machine_id"], row["birth_id"])
            self._series[key] = _by_alias(row["aliases"], row["series_ids"])


def _by_alias(aliases: Sequence[int], series_ids: Sequence[int]) -> NDArray[np.int32]:
    table = np.full(max(aliases, default=-1) + 1, -1, np.int32)
    table[np.array(aliases, np.int64)] = series_ids
    return table


async def _learn(connection: asyncpg.Connection, birth: Birth) -> NDArray[np.int32]:
    """Store a birth and the series that are new with it."""
    head = birth.head
    definitions = {one.tag: one for one in birth.series}
    ids = await _series_ids(connection, head.machine_id, definitions)
    missing = [one for tag, one in definitions.items() if tag not in ids]
    if missing:
        await _insert_series(connection, birth, missing)
        ids = await _series_ids(connection, head.machine_id, definitions)
    if not head.replayed:
        await _update_series(connection, birth)
    aliases = [one.alias for one in birth.series]
    series_ids = [ids[one.tag] for one in birth.series]
    await connection.execute(
        "INSERT INTO births (agent_id, machine_id, birth_id, site, gateway_id, aliases, series_ids)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        head.agent_id,
        head.machine_id,
        birth.birth_id,
        birth.site,
        birth.gateway_id,
        aliases,
        series_ids,
    )
    return _by_alias(aliases, series_ids)


async def _series_ids(connection: asyncpg.Connection, machine_id: str, tags: Iterable[str]) -> dict[str, int]:
    rows = await connection.fetch(
        "SELECT tag, series_id FROM series WHERE machine_id = $1 AND tag = ANY($2::text[])", machine_id, list(tags)
    )
    return {row["tag"]: row["series_id"] for row in rows}


async def _insert_series(connection: asyncpg.Connection, birth: Birth, new: Sequence[SeriesDefinition]) -> None:
    await connection.execute(
        "INSERT INTO series (machine_id, tag, sensor_type, unit, gateway_id, agent_id, meta)"
        " SELECT $1, tag, sensor_type, unit, $2, $3, meta"
        " FROM unnest($4::text[], $5::text[], $6::text[], $7::jsonb[]) AS n (tag, sensor_type, unit, meta)"
        " ORDER BY tag ON CONFLICT (machine_id, tag) DO NOTHING",
        birth.head.machine_id,
        birth.gateway_id,
        birth.head.agent_id,
        *_columns(birth, new),
    )


async def _update_series(connection: asyncpg.Connection, birth: Birth) -> None:
    """Let the newest birth say what a series is; rows that say so already are left alone."""
    await connection.execute(
        "UPDATE series s SET sensor_type = n.sensor_type, unit = n.unit, gateway_id = $2, agent_id = $3, meta = n.meta"
        " FROM unnest($4::text[], $5::text[], $6::text[], $7::jsonb[]) AS n (tag, sensor_type, unit, meta)"
        " WHERE s.machine_id = $1 AND s.tag = n.tag AND (s.sensor_type, s.unit, s.gateway_id, s.agent_id, s.meta)"
        " IS DISTINCT FROM (n.sensor_type, n.unit, $2, $3, n.meta)",
        birth.head.machine_id,
        birth.gateway_id,
        birth.head.agent_id,
        *_columns(birth, birth.series),
    )


def _columns(birth: Birth, series: Sequence[SeriesDefinition]) -> tuple[list[str], ...]:
    meta = [
        json.dumps(
            {
                "site": birth.site,
                "mode": one.mode.value,
                "poll_interval_us": one.poll_interval_us,
                "deadband": one.deadband if isfinite(one.deadband) else None,
                "heartbeat_us": one.heartbeat_us,
                "max_error": one.max_error if isfinite(one.max_error) else None,
            }
        )
        for one in series
    ]
    return [one.tag for one in series], [one.sensor_type for one in series], [one.unit for one in series], meta
