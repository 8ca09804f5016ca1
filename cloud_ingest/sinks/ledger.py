"""The ledger: which batches and births are stored, so that one which comes twice is refused.

In: a connection inside the flush's transaction, and ledger entries. Out: which of them are new, and for the archive
which of the others it may still lack. Fails with the errors of cloud_ingest.store.connection.

Refused is what `batch_ledger` holds, and what `lanes.seen` holds of batches whose rows have been forgotten by age.
"""

from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import numpy as np
from numpy.typing import NDArray

from cloud_ingest.model import Entry, Partition

Place = tuple[Partition, int]
"""Partition and offset: which message."""

_ENTRIES: Final = (
    " unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::int[], $8::bigint[])"
    ' AS b (agent_id, machine_id, route, epoch, seq, topic, "partition", "offset")'
)
_SAME: Final = "l.agent_id = b.agent_id AND l.machine_id = b.machine_id AND l.route = b.route AND l.epoch = b.epoch"

CLAIM: Final = f"""
INSERT INTO batch_ledger (agent_id, machine_id, route, epoch, seq, topic, "partition", "offset", cluster_id, kind,
                          readings, wire_bytes, first_ts, last_ts, sent_at, replayed)
SELECT b.agent_id, b.machine_id, b.route, b.epoch, b.seq, b.topic, b."partition", b."offset", $9, b.kind,
       b.readings, b.wire_bytes, b.first_ts, b.last_ts, b.sent_at, b.replayed
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::int[], $8::bigint[],
            $10::text[], $11::int[], $12::int[], $13::timestamptz[], $14::timestamptz[], $15::timestamptz[],
            $16::boolean[])
     AS b (agent_id, machine_id, route, epoch, seq, topic, "partition", "offset",
           kind, readings, wire_bytes, first_ts, last_ts, sent_at, replayed)
WHERE NOT EXISTS (SELECT 1 FROM lanes l WHERE {_SAME} AND l.seen @> b.seq)
ON CONFLICT DO NOTHING
RETURNING topic, "partition", "offset"
"""  # noqa: S608 - made of constants

COUNT: Final = """
INSERT INTO lanes (agent_id, machine_id, route, epoch, seen, received, repeated, readings)
SELECT agent_id, machine_id, route, epoch,
       coalesce(range_agg(int8range(seq, seq + 1)) FILTER (WHERE accepted), '{}'::int8multirange),
       count(*) FILTER (WHERE accepted), count(*) FILTER (WHERE NOT accepted),
       coalesce(sum(readings) FILTER (WHERE accepted), 0)
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::int[], $7::boolean[])
     AS b (agent_id, machine_id, route, epoch, seq, readings, accepted)
GROUP BY agent_id, machine_id, route, epoch ORDER BY agent_id, machine_id, route, epoch
ON CONFLICT (agent_id, machine_id, route, epoch) DO UPDATE SET
    seen = lanes.seen + EXCLUDED.seen, received = lanes.received + EXCLUDED.received,
    repeated = lanes.repeated + EXCLUDED.repeated, readings = lanes.readings + EXCLUDED.readings,
    last_seen_at = clock_timestamp()
"""

SAME_MESSAGE: Final = f"""
SELECT b.topic, b."partition", b."offset" FROM {_ENTRIES}
JOIN batch_ledger l ON {_SAME} AND l.seq = b.seq AND l.topic = b.topic AND l."partition" = b."partition"
     AND l."offset" = b."offset" AND l.cluster_id = $9
"""  # noqa: S608

ADOPT: Final = f"""
UPDATE batch_ledger l SET cluster_id = $9, topic = b.topic, "partition" = b."partition", "offset" = b."offset"
FROM {_ENTRIES}
WHERE {_SAME} AND l.seq = b.seq AND l.cluster_id <> $9
  AND NOT EXISTS (
    SELECT 1 FROM (SELECT consumer_group, cluster_id, topic, "partition", next_offset FROM former_checkpoints UNION ALL
                   SELECT consumer_group, cluster_id, topic, "partition", next_offset FROM checkpoints) c
    WHERE c.consumer_group = $10 AND c.cluster_id = l.cluster_id AND c.topic = l.topic
      AND c."partition" = l."partition" AND c.next_offset > l."offset")
RETURNING b.topic, b."partition", b."offset"
"""  # noqa: S608


async def claim(connection: asyncpg.Connection, cluster_id: str, entries: Sequence[Entry]) -> NDArray[np.bool_]:
    """Enter what is new; tells which entries were (of equal ones, the first)."""
    if not entries:
        return np.zeros(0, np.bool_)
    rows = await connection.fetch(
        CLAIM,
        *_keys(entries),
        cluster_id,
        [entry.kind for entry in entries],
        [entry.readings for entry in entries],
        [len(entry.message.value) for entry in entries],
        [entry.first_us for entry in entries],
        [entry.last_us for entry in entries],
        [sent_at(entry) for entry in entries],
        [entry.head.replayed for entry in entries],
    )
    return _mask(entries, rows)


async def count(connection: asyncpg.Connection, entries: Sequence[Entry], accepted: NDArray[np.bool_]) -> None:
    """Keep the lanes' books: what came, what came again."""
    if entries:
        await connection.execute(COUNT, *_keys(entries)[:5], [entry.readings for entry in entries], accepted.tolist())


async def unarchived(
    connection: asyncpg.Connection, cluster_id: str, archive_group: str, entries: Sequence[Entry]
) -> NDArray[np.bool_]:
    """Tell which entries, all of them in the ledger already, the archive must look at nevertheless.

    Those read again: the ledger names the very same message, and the archive's own checkpoint decides. And those sent
    again after a broker was lost from which the archive had not yet taken them; the ledger then names the new message.
    """
    if not entries:
        return np.zeros(0, np.bool_)
    keys = _keys(entries)
    same = _mask(entries, await connection.fetch(SAME_MESSAGE, *keys, cluster_id))
    if same.all():
        return same
    return same | _mask(entries, await connection.fetch(ADOPT, *keys, cluster_id, archive_group))


def sent_at(entry: Entry) -> int | None:
    """Return when the agent sent it, None if that is no time the store can hold."""
    sent = entry.head.sent_at_us
    return sent if 0 <= sent < 1 << 62 else None


def _keys(entries: Sequence[Entry]) -> list[list[Any]]:
    heads = [entry.head for entry in entries]
    places = [entry.message for entry in entries]
    return [
        [head.agent_id for head in heads],
        [head.machine_id for head in heads],
        [head.route.value for head in heads],
        [head.epoch for head in heads],
        [head.seq for head in heads],
        [message.partition.topic for message in places],
        [message.partition.number for message in places],
        [message.offset for message in places],
    ]


def _mask(entries: Sequence[Entry], rows: Sequence[asyncpg.Record]) -> NDArray[np.bool_]:
    found = {(row[0], row[1], row[2]) for row in rows}
    return np.fromiter(
        ((*entry.message.partition, entry.message.offset) in found for entry in entries), np.bool_, len(entries)
    )
