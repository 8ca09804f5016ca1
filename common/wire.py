"""The envelope: Avro single-object encoding of what crosses Kafka (docs/wire-format.md).

In: typed messages, or bytes from anywhere. Out: bytes, or typed messages whose fields were checked.
Fails with WireError, never anything else, on bytes that are not a Forebay message.

A batch or birth is encoded in two parts. Its *body* (the definitions, or the compressed blocks) is made once, when
the readings are accepted, and kept. Its *head* (who, which seq, when sent) is put in front when it leaves. Avro
encodes a record as its fields one after another, so head + body is the record.
"""

import io
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import resources
from typing import Any, Final

import fastavro
import fastavro.schema
import numpy as np
from numpy.typing import NDArray

from common.errors import WireError
from common.model import ClockState, ReportMode, Route, SeriesDefinition

MARKER: Final = b"\xc3\x01"
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Agents stay below 1 MB. A hostile record can take some 20 times its bytes while it is decoded."""
TELEMETRY_BATCH: Final = "telemetry_batch.1"
BIRTH: Final = "birth.1"
_HEAD_FIELDS: Final = ("delivery", "agent_id", "machine_id", "route", "epoch", "seq")
_PREFIX_BYTES: Final = 10
_INT_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Head:
    """Who sends what: the fields that batch and birth have in common.

    `epoch` grows when the agent's buffer is created anew, `seq` is consecutive from 1 within agent, machine, route
    and epoch. Times are microseconds.
    """

    agent_id: str
    machine_id: str
    route: Route
    epoch: int
    seq: int
    sent_at_us: int
    replayed: bool = False
    clock: ClockState = ClockState.UNKNOWN


@dataclass(frozen=True, slots=True)
class TelemetryBatch:
    """A decoded batch: `blocks` holds block k, of series `aliases[k]`, in `sizes[k]` bytes (int64), in order."""

    head: Head
    birth_id: int
    first_us: int
    last_us: int
    readings: int
    aliases: NDArray[np.int32]
    sizes: NDArray[np.int64]
    blocks: bytes


@dataclass(frozen=True, slots=True)
class Birth:
    """A decoded birth: what each alias of the machine's batches stands for."""

    head: Head
    birth_id: int
    site: str
    gateway_id: str
    series: tuple[SeriesDefinition, ...]


@dataclass(frozen=True, slots=True)
class _Schema:
    """One schema file, parsed for fastavro, with the ten bytes that announce it."""

    name: str
    parsed: Any
    body: Any
    prefix: bytes


def schema_text(name: str) -> str:
    """Return the text of `schemas/<name>.avsc`, for example `telemetry_batch.1`."""
    return (resources.files("schemas") / f"{name}.avsc").read_text("utf-8")


def _plain(schema: Any) -> Any:  # noqa: ANN401
    """Drop logical types: times stay int64 (a datetime cannot hold them all). The fingerprint ignores them."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key != "logicalType"}
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    return schema


@cache
def _schema(name: str) -> _Schema:
    raw = _plain(json.loads(schema_text(name)))
    parsed = fastavro.parse_schema(raw)
    canonical = fastavro.schema.to_parsing_canonical_form(parsed)
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    body = {**raw, "fields": [field for field in raw["fields"] if field["name"] not in _HEAD_FIELDS]}
    return _Schema(name, parsed, fastavro.parse_schema(body), MARKER + fingerprint)


@cache
def _schemas_by_prefix() -> Mapping[bytes, _Schema]:
    names = [entry.name.removesuffix(".avsc") for entry in resources.files("schemas").iterdir()]
    found = [_schema(name) for name in sorted(names) if "." in name and not name.endswith(".py")]
    return {schema.prefix: schema for schema in found}


def _write(parsed: Any, record: Mapping[str, Any]) -> bytes:  # noqa: ANN401 - fastavro's parsed schemas have no type
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parsed, record)
    return out.getvalue()


def encode(name: str, record: Mapping[str, Any]) -> bytes:
    """Encode a whole record of schema `name` in one piece (windows, alerts, findings, commands)."""
    schema = _schema(name)
    return schema.prefix + _write(schema.parsed, record)


def encode_batch_body(
    birth_id: int,
    time_range_us: tuple[int, int],
    readings: int,
    aliases: NDArray[np.int32],
    blocks: tuple[bytes, NDArray[np.int64]],
) -> bytes:
    """Encode the part of a batch that is made once; `blocks` is what common.codec.encode_blocks returned."""
    data, sizes = blocks
    return _write(
        _schema(TELEMETRY_BATCH).body,
        {
            "birth_id": birth_id,
            "first_us": time_range_us[0],
            "last_us": time_range_us[1],
            "readings": readings,
            "aliases": aliases.tolist(),
            "sizes": sizes.tolist(),
            "blocks": data,
        },
    )


def encode_birth_body(site: str, gateway_id: str, series: tuple[SeriesDefinition, ...]) -> tuple[int, bytes]:
    """Encode the definitions of a machine's series; returns (birth_id, body), equal content giving equal ids."""
    content = {
        "site": site,
        "gateway_id": gateway_id,
        "series": [
            {
                "alias": one.alias,
                "tag": one.tag,
                "sensor_type": one.sensor_type,
                "unit": one.unit,
                "mode": one.mode.value,
                "poll_interval_us": one.poll_interval_us,
                "deadband": one.deadband,
                "heartbeat_us": one.heartbeat_us,
                "max_error": one.max_error,
            }
            for one in series
        ],
    }
    body_schema = _schema(BIRTH).body
    digest = blake2b(_write(body_schema, {"birth_id": 0, **content}), digest_size=6).digest()
    birth_id = int.from_bytes(digest, "big")
    return birth_id, _write(body_schema, {"birth_id": birth_id, **content})


@cache
def _head_schema() -> Any:  # noqa: ANN401
    raw = _plain(json.loads(schema_text(TELEMETRY_BATCH)))
    raw["fields"] = [field for field in raw["fields"] if field["name"] in _HEAD_FIELDS]
    return fastavro.parse_schema(raw)


def seal(name: str, head: Head, body: bytes) -> bytes:
    """Put marker, fingerprint and head in front of a kept body: the bytes that Kafka carries."""
    record = {
        "delivery": {"sent_at": head.sent_at_us, "replayed": head.replayed, "clock": head.clock.value},
        "agent_id": head.agent_id,
        "machine_id": head.machine_id,
        "route": head.route.value,
        "epoch": head.epoch,
        "seq": head.seq,
    }
    return _schema(name).prefix + _write(_head_schema(), record) + body


def decode(data: bytes) -> tuple[str, dict[str, Any]]:
    """Decode any Forebay message to (schema name, record as plain Python); raises WireError on anything else."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise WireError(f"message of {len(data)} bytes is over the limit of {MESSAGE_BYTES_MAX}")
    if data[:2] != MARKER:
        raise WireError("no Avro single-object marker (C3 01) at the start")
    schema = _schemas_by_prefix().get(data[:_PREFIX_BYTES])
    if schema is None:
        raise WireError(f"unknown schema fingerprint {data[2:_PREFIX_BYTES].hex()}")
    stream = io.BytesIO(data)
    stream.seek(_PREFIX_BYTES)
    try:
        record = fastavro.schemaless_reader(stream, schema.parsed, None)
    except (
        EOFError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        MemoryError,
        struct.error,
    ) as error:
        raise WireError(f"damaged {schema.name} record: {type(error).__name__}") from error
    if stream.tell() != len(data):
        raise WireError(f"{len(data) - stream.tell()} bytes too many after the {schema.name} record")
    if not isinstance(record, dict):
        raise WireError(f"{schema.name} is not a record")
    return schema.name, record


def decode_message(data: bytes) -> TelemetryBatch | Birth:
    """Decode what the telemetry topics carry; raises WireError on bytes that are neither batch nor birth."""
    name, record = decode(data)
    if name == TELEMETRY_BATCH:
        return _batch(record)
    if name == BIRTH:
        return _birth(record)
    raise WireError(f"a {name} message does not belong on a telemetry topic")


def _head(record: Mapping[str, Any]) -> Head:
    delivery = record["delivery"]
    head = Head(
        agent_id=record["agent_id"],
        machine_id=record["machine_id"],
        route=Route(record["route"]),
        epoch=record["epoch"],
        seq=record["seq"],
        sent_at_us=delivery["sent_at"],
        replayed=delivery["replayed"],
        clock=ClockState(delivery["clock"]),
    )
    if head.seq < 1 or head.epoch < 0:
        raise WireError(f"epoch {head.epoch}, seq {head.seq}: neither may be negative, seq starts at 1")
    if not head.agent_id or not head.machine_id or "\0" in head.agent_id + head.machine_id:
        raise WireError("agent_id and machine_id must be text without NUL")
    return head


def _batch(record: Mapping[str, Any]) -> TelemetryBatch:
    aliases, sizes, blocks = record["aliases"], record["sizes"], record["blocks"]
    if len(aliases) != len(sizes):
        raise WireError(f"{len(aliases)} aliases but {len(sizes)} block sizes")
    if any(size <= 0 for size in sizes) or not all(0 <= alias <= _INT_MAX for alias in aliases):
        raise WireError("block sizes must be positive, aliases neither negative nor above 31 bits")
    if not 0 <= record["readings"] <= _INT_MAX:
        raise WireError(f"{record['readings']} readings: neither negative nor above 31 bits")
    if sum(sizes) != len(blocks):
        raise WireError(f"block sizes sum to {sum(sizes)} but {len(blocks)} bytes follow")
    return TelemetryBatch(
        head=_head(record),
        birth_id=record["birth_id"],
        first_us=record["first_us"],
        last_us=record["last_us"],
        readings=record["readings"],
        aliases=np.array(aliases, np.int32),
        sizes=np.array(sizes, np.int64),
        blocks=blocks,
    )


def _birth(record: Mapping[str, Any]) -> Birth:
    series = tuple(
        SeriesDefinition(
            alias=one["alias"],
            tag=one["tag"],
            sensor_type=one["sensor_type"],
            unit=one["unit"],
            mode=ReportMode(one["mode"]),
            poll_interval_us=one["poll_interval_us"],
            deadband=one["deadband"],
            heartbeat_us=one["heartbeat_us"],
            max_error=one["max_error"],
        )
        for one in record["series"]
    )
    if len({one.alias for one in series}) != len(series) or len({one.tag for one in series}) != len(series):
        raise WireError("a birth names an alias or a tag twice")
    site, gateway_id = record["site"], record["gateway_id"]
    if "\0" in site + gateway_id or any("\0" in one.tag + one.sensor_type + one.unit for one in series):
        raise WireError("a birth holds text with NUL")
    if not all(one.tag and 0 <= one.alias <= _INT_MAX for one in series):
        raise WireError("tags must not be empty, aliases neither negative nor above 31 bits")
    if not all(0 <= one.deadband < math.inf and min(one.poll_interval_us, one.heartbeat_us) >= 0 for one in series):
        raise WireError("deadbands and intervals must be finite and not negative")
    return Birth(_head(record), record["birth_id"], site, gateway_id, series)
