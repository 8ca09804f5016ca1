"""Messages to readings: the envelope first, then all blocks of a poll in a few kernel calls, into one Chunk.

In: messages as received, and what aliases stand for. Out: a Chunk and dead letters. Nothing fails: a message that
is no message, is damaged, contradicts itself or cannot be stored becomes a dead letter, and the rest goes on.

Why in two steps? Reading the envelope tells how many readings a message claims to hold and which births it needs, so
the source can stop a poll at a sensible size and the registry can look everything up in one query; only then are
blocks decoded. No step loops over readings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud_ingest.model import NO_READINGS, Chunk, DeadLetter, Entry, Item, Reason, Received
from common.codec import Readings, decode_blocks
from common.errors import CodecError, WireError
from common.wire import Birth, TelemetryBatch, decode_message

STORABLE_US_MIN: Final = -210_860_000_000_000_000
"""4712 BC, PostgreSQL's first day or so. It ends in the year 294276, after int64 microseconds do in 294247."""
STORABLE_US_MAX: Final = (1 << 63) - 1 - 86_400_000_000
READINGS_PER_MESSAGE_MAX: Final = 1_000_000
ALIAS_MAX: Final = 1_000_000
"""The registry's table by alias is dense: an alias of two milliards must not make it allocate eight gigabytes."""
INT8_MAX: Final = (1 << 63) - 1
_READINGS_PER_CALL_MAX: Final = 2_000_000
"""Bounds the memory of one kernel call, which refuses to hold more readings than the batches say they have."""

Lookup = Callable[[TelemetryBatch], NDArray[np.int32] | None]
"""Series ids by alias (-1 = no such alias) of the birth that a batch names; None when nobody knows that birth."""


class _UnfitError(Exception):
    """A message cannot be stored."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class _Open:
    """A batch whose envelope is in order."""

    message: Received
    batch: TelemetryBatch
    series: NDArray[np.int32]


def open_envelope(message: Received) -> Item:
    """Read a message's envelope; what is none becomes a dead letter."""
    try:
        content = decode_message(message.value)
    except WireError as error:
        return Item(message, DeadLetter(message, Reason.NOT_A_MESSAGE, str(error)))
    head = content.head
    if not 0 <= head.epoch < INT8_MAX or not 1 <= head.seq < INT8_MAX:
        return Item(message, DeadLetter(message, Reason.INCONSISTENT, f"epoch {head.epoch}, seq {head.seq}"))
    if isinstance(content, TelemetryBatch) and not 0 <= content.readings <= READINGS_PER_MESSAGE_MAX:
        detail = f"{content.readings} readings; at most {READINGS_PER_MESSAGE_MAX} are taken"
        return Item(message, DeadLetter(message, Reason.TOO_LARGE, detail))
    if isinstance(content, Birth) and not all(0 <= one.alias < ALIAS_MAX for one in content.series):
        return Item(message, DeadLetter(message, Reason.INCONSISTENT, f"an alias is not below {ALIAS_MAX}"))
    return Item(message, content)


def to_chunk(items: Sequence[Item], lookup: Lookup) -> tuple[Chunk, list[DeadLetter]]:
    """Decode the blocks of a poll; `items` come in order of offset within each partition."""
    dead: list[DeadLetter] = []
    entries: list[tuple[Entry, _Open | None, Readings | None]] = []
    batches: list[_Open] = []
    for item in items:
        match item.content:
            case DeadLetter():
                dead.append(item.content)
            case TelemetryBatch():
                batches.extend(_checked(item.message, item.content, lookup, dead))
            case Birth(head=head):
                entries.append((Entry(item.message, head, "birth", 0, None, None), None, None))
    for opened, readings in _decode(batches, dead):
        try:
            entries.append((_entry(opened, readings), opened, readings))
        except _UnfitError as error:
            dead.append(DeadLetter(opened.message, error.reason, str(error)))
    entries.sort(key=lambda one: (one[0].message.partition, one[0].message.offset))
    return _join(entries), dead


def _checked(message: Received, batch: TelemetryBatch, lookup: Lookup, dead: list[DeadLetter]) -> list[_Open]:
    known = lookup(batch)
    if known is None:
        head = batch.head
        detail = f"birth {batch.birth_id} of {head.agent_id}, {head.machine_id} was never received"
        dead.append(DeadLetter(message, Reason.UNKNOWN_BIRTH, detail))
        return []
    inside = batch.aliases < known.size
    series = np.where(inside, known[np.where(inside, batch.aliases, 0)], -1) if known.size else np.full(inside.size, -1)
    if (series < 0).any():
        alias = int(batch.aliases[series < 0][0])
        detail = f"alias {alias} is not in birth {batch.birth_id}"
        dead.append(DeadLetter(message, Reason.UNKNOWN_ALIAS, detail))
        return []
    return [_Open(message, batch, series.astype(np.int32))]


def _decode(batches: Sequence[_Open], dead: list[DeadLetter]) -> list[tuple[_Open, Readings]]:
    """Decode batches, many per call; one that fails is found by decoding its call's batches one by one."""
    found: list[tuple[_Open, Readings]] = []
    for together in _calls(batches):
        try:
            sizes = np.concatenate([one.batch.sizes for one in together])
            said = sum(one.batch.readings for one in together)
            readings = decode_blocks(b"".join([one.batch.blocks for one in together]), sizes, readings_max=said)
        except CodecError:
            for one in together:
                try:
                    alone = decode_blocks(one.batch.blocks, one.batch.sizes, readings_max=one.batch.readings)
                except CodecError as error:
                    dead.append(DeadLetter(one.message, Reason.DAMAGED_BLOCK, str(error)))
                else:
                    found.append((one, alone))
        else:
            found.extend(zip(together, _split(readings, [one.batch.sizes.size for one in together]), strict=True))
    return found


def _calls(batches: Sequence[_Open]) -> list[list[_Open]]:
    """Put batches together so that no call has too many readings, by what the batches say; one fits always."""
    calls: list[list[_Open]] = []
    room = 0
    for one in batches:
        if not calls or one.batch.readings > room:
            calls.append([])
            room = _READINGS_PER_CALL_MAX
        calls[-1].append(one)
        room -= one.batch.readings
    return calls


def _split(readings: Readings, blocks: Sequence[int]) -> list[Readings]:
    """Cut the readings of several batches apart; `blocks` has the number of blocks of each."""
    block_ends = np.cumsum(blocks)
    ends = np.concatenate([[0], np.cumsum(readings.counts)])[np.concatenate([[0], block_ends])].tolist()
    return [
        Readings(
            readings.ts[ends[k] : ends[k + 1]],
            readings.values[ends[k] : ends[k + 1]],
            readings.statuses[ends[k] : ends[k + 1]],
            readings.counts[block_ends[k] - blocks[k] : block_ends[k]],
        )
        for k in range(len(blocks))
    ]


def _entry(opened: _Open, readings: Readings) -> Entry:
    """Make the ledger entry of a decoded batch, or say why it cannot be stored."""
    batch = opened.batch
    if readings.ts.size != batch.readings:
        raise _UnfitError(Reason.INCONSISTENT, f"says {batch.readings} readings but holds {readings.ts.size}")
    if not readings.ts.size:
        return Entry(opened.message, batch.head, "batch", 0, None, None)
    first, last = int(readings.ts.min()), int(readings.ts.max())
    if first < STORABLE_US_MIN or last > STORABLE_US_MAX:
        worst = first if first < STORABLE_US_MIN else last
        raise _UnfitError(Reason.TIME_NOT_STORABLE, f"a reading of {worst} us since 1970 is out of the store's range")
    return Entry(opened.message, batch.head, "batch", readings.ts.size, first, last)


def _join(entries: Sequence[tuple[Entry, _Open | None, Readings | None]]) -> Chunk:
    heads = [entry for entry, _, _ in entries]
    full = [(k, opened, readings) for k, (_, opened, readings) in enumerate(entries) if opened and readings]
    if not full:
        return Chunk(heads, *NO_READINGS.columns)
    sizes = [readings.counts.size for _, _, readings in full]
    return Chunk(
        heads,
        np.repeat(np.array([k for k, _, _ in full], np.int32), sizes),
        np.concatenate([opened.series for _, opened, _ in full]),
        np.concatenate([readings.counts for _, _, readings in full]),
        np.concatenate([readings.ts for _, _, readings in full]),
        np.concatenate([readings.values for _, _, readings in full]),
        np.concatenate([readings.statuses for _, _, readings in full]),
    )
