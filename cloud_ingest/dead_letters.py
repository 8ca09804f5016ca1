"""Dead letters: messages that cannot be stored, kept whole in a table and published on a topic.

In: dead letters. Out: rows of `dead_letters` in the transaction of their flush, and later the same bytes on
`forebay.dlq` with headers that say where from and why. The table is the outbox: what could not be published yet is
published later. Fails with the errors of the store; a broker that does not answer only means later.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from cloud_ingest.model import DeadLetter

TOPIC: Final = "forebay.dlq"
_PUBLISH_MAX: Final = 200
Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as the table has it; `headers` are those of the message, then ours."""

    dead_letter_id: int
    key: bytes | None
    payload: bytes
    headers: Headers


async def store(connection: asyncpg.Connection, cluster_id: str, letters: Sequence[DeadLetter]) -> None:
    """Insert dead letters; one that is there already stays as it is."""
    if not letters:
        return
    messages = [letter.message for letter in letters]
    await connection.execute(
        'INSERT INTO dead_letters (cluster_id, topic, "partition", "offset", reason, detail, key, payload, headers,'
        " appended_at) SELECT $1, n.* FROM unnest($2::text[], $3::int[], $4::bigint[], $5::text[], $6::text[],"
        " $7::bytea[], $8::bytea[], $9::jsonb[], $10::timestamptz[]) AS n ON CONFLICT DO NOTHING",
        cluster_id,
        [message.partition.topic for message in messages],
        [message.partition.number for message in messages],
        [message.offset for message in messages],
        [letter.reason.value for letter in letters],
        [letter.detail.replace("\0", "\\0") for letter in letters],
        [message.key for message in messages],
        [message.value for message in messages],
        [_headers_json(message.headers) for message in messages],
        [message.appended_us or None for message in messages],
    )


async def publish(connection: asyncpg.Connection, produce: Callable[[Sequence[Letter]], Sequence[int]]) -> int:
    """Publish what is not published yet, oldest first; `produce` blocks and returns the ids that were delivered.

    Two workers take different rows (SKIP LOCKED). A worker killed between delivery and commit publishes again.
    """
    async with connection.transaction():
        rows = await connection.fetch(
            'SELECT dead_letter_id, topic, "partition", "offset", reason, detail, key, payload, headers'
            " FROM dead_letters WHERE NOT published ORDER BY dead_letter_id LIMIT $1 FOR UPDATE SKIP LOCKED",
            _PUBLISH_MAX,
        )
        if not rows:
            return 0
        delivered = await asyncio.to_thread(produce, [_letter(row) for row in rows])
        await connection.execute(
            "UPDATE dead_letters SET published = true WHERE dead_letter_id = ANY($1::bigint[])", list(delivered)
        )
        return len(delivered)


def _headers_json(headers: Sequence[tuple[str, bytes | None]]) -> str:
    """Header values are bytes of any kind: base64, null where there is none."""
    return json.dumps(
        [
            [name.replace("\0", "\\0"), None if value is None else base64.b64encode(value).decode()]
            for name, value in headers
        ]
    )


def _letter(row: asyncpg.Record) -> Letter:
    headers: Headers = [
        (name, None if value is None else base64.b64decode(value)) for name, value in json.loads(row["headers"])
    ]
    headers += [
        ("forebay-origin", f"{row['topic']}/{row['partition']}/{row['offset']}".encode()),
        ("forebay-reason", row["reason"].encode()),
        ("forebay-detail", row["detail"].encode()),
    ]
    return Letter(row["dead_letter_id"], row["key"], row["payload"], headers)
