"""The envelope: any Avro library reads it, and bytes from anywhere give a message or a WireError, nothing else."""

import io
import json
import random
import resource
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import avro.io
import avro.schema
import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire
from common.codec import encode_blocks
from common.errors import WireError
from common.model import ClockState, ReportMode, Route, SeriesDefinition
from common.wire import Birth, Head, TelemetryBatch, decode, decode_message

SCHEMAS = ["alert.1", "birth.1", "clean_window.1", "command.1", "finding.1", "telemetry_batch.1"]
INT64 = st.integers(-(2**63), 2**63 - 1)
PLAIN_TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)
NAMES = PLAIN_TEXT.filter(bool)

heads = st.builds(
    Head,
    agent_id=NAMES, machine_id=NAMES, route=st.sampled_from(Route), epoch=st.integers(0, 2**63 - 1),
    seq=st.integers(1, 2**63 - 1), sent_at_us=INT64, replayed=st.booleans(), clock=st.sampled_from(ClockState),
)  # fmt: skip
definitions = st.lists(
    st.tuples(NAMES, PLAIN_TEXT, PLAIN_TEXT, st.sampled_from(ReportMode), st.integers(0, 2**62), st.floats(0, 1e300)),
    max_size=8, unique_by=lambda one: one[0],
).map(
    lambda rows: tuple(
        SeriesDefinition(alias, tag, kind, unit, mode, interval, deadband, interval)
        for alias, (tag, kind, unit, mode, interval, deadband) in enumerate(rows)
    )
)  # fmt: skip


@st.composite
def batches(draw: st.DrawFn) -> tuple[bytes, Head, dict[str, Any]]:
    head = draw(heads)
    counts = draw(st.lists(st.integers(1, 5), max_size=6))
    readings = sum(counts)
    offsets = np.cumsum([0, *counts]).astype(np.int64)
    blocks = encode_blocks(
        np.array(draw(st.lists(INT64, min_size=readings, max_size=readings)), np.int64),
        np.array(draw(st.lists(st.floats(), min_size=readings, max_size=readings)), np.float64),
        np.zeros(readings, np.int32),
        offsets,
    )
    aliases = np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(counts), max_size=len(counts))), np.int32)
    fields = {"birth_id": draw(INT64), "first_us": draw(INT64), "last_us": draw(INT64), "readings": readings}
    times = (fields["first_us"], fields["last_us"])
    body = wire.encode_batch_body(fields["birth_id"], times, readings, aliases, blocks)
    parts = {"aliases": aliases.tolist(), "sizes": blocks.sizes.tolist(), "blocks": blocks.data}
    return wire.seal(wire.TELEMETRY_BATCH, head, body), head, fields | parts


def head_fields(head: Head) -> dict[str, Any]:
    return {
        "delivery": {"sent_at": head.sent_at_us, "replayed": head.replayed, "clock": head.clock.value},
        "agent_id": head.agent_id, "machine_id": head.machine_id, "route": head.route.value,
        "epoch": head.epoch, "seq": head.seq,
    }  # fmt: skip


def without_logical_types(schema: Any) -> Any:
    """Both libraries would make datetimes of times, and those end in the year 9999."""
    if isinstance(schema, dict):
        return {key: without_logical_types(value) for key, value in schema.items() if key != "logicalType"}
    return [without_logical_types(item) for item in schema] if isinstance(schema, list) else schema


def read_by_apache(name: str, data: bytes) -> Any:
    schema = avro.schema.parse(json.dumps(without_logical_types(json.loads(wire.schema_text(name)))))
    stream = io.BytesIO(data)
    record = avro.io.DatumReader(schema).read(avro.io.BinaryDecoder(stream))
    assert stream.read() == b""
    return record


def read_by_fastavro(name: str, data: bytes) -> Any:
    stream = io.BytesIO(data)
    schema = fastavro.parse_schema(without_logical_types(json.loads(wire.schema_text(name))))
    record = fastavro.schemaless_reader(stream, schema, None)
    assert stream.read() == b""
    return record


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_fingerprint_is_the_one_apache_computes(name: str) -> None:
    # Its Python package (1.12) leaves {"type": "long"} of a logical type, where the specification's canonical form,
    # and Java, have "long".
    schema = avro.schema.parse(json.dumps(without_logical_types(json.loads(wire.schema_text(name)))))
    assert wire._schema(name).prefix == b"\xc3\x01" + schema.fingerprint("CRC-64-AVRO")


def test_every_schema_file_is_known() -> None:
    assert sorted(schema.name for schema in wire._schemas_by_prefix().values()) == SCHEMAS


@settings(deadline=None)
@given(batches())
def test_a_batch_is_read_by_everybody(made: tuple[bytes, Head, dict[str, Any]]) -> None:
    data, head, fields = made
    expected = head_fields(head) | fields
    assert read_by_apache("telemetry_batch.1", data[10:]) == expected
    assert read_by_fastavro("telemetry_batch.1", data[10:]) == expected
    assert decode(data) == ("telemetry_batch.1", expected)
    batch = decode_message(data)
    assert isinstance(batch, TelemetryBatch)
    assert batch.head == head
    assert (batch.birth_id, batch.first_us, batch.last_us, batch.readings) == tuple(
        fields[key] for key in ("birth_id", "first_us", "last_us", "readings")
    )
    assert (batch.aliases.tolist(), batch.sizes.tolist(), batch.blocks) == (
        fields["aliases"], fields["sizes"], fields["blocks"],
    )  # fmt: skip


@settings(deadline=None)
@given(heads, definitions, PLAIN_TEXT, PLAIN_TEXT)
def test_a_birth_is_read_by_everybody(
    head: Head, series: tuple[SeriesDefinition, ...], site: str, gateway_id: str
) -> None:
    birth_id, body = wire.encode_birth_body(site, gateway_id, series)
    assert 0 <= birth_id < 2**48
    assert wire.encode_birth_body(site, gateway_id, series) == (birth_id, body)
    assert wire.encode_birth_body(site + "x", gateway_id, series)[0] != birth_id
    data = wire.seal(wire.BIRTH, head, body)
    assert decode_message(data) == Birth(head, birth_id, site, gateway_id, series)
    for record in (read_by_apache("birth.1", data[10:]), read_by_fastavro("birth.1", data[10:])):
        assert {key: record[key] for key in head_fields(head)} == head_fields(head)
        assert [one["tag"] for one in record["series"]] == [one.tag for one in series]
        assert [one["deadband"] for one in record["series"]] == [one.deadband for one in series]


WHOLE: dict[str, dict[str, Any]] = {
    "alert.1": {
        "alert_id": "a", "machine_id": "m", "tag": "t", "rule": "r", "severity": "warning", "state": "open",
        "opened_at": 1, "closed_at": None, "peak": 2.5, "count": 3,
    },
    "clean_window.1": {
        "machine_id": "m", "tag": "t", "unit": "bar", "window_start": 60_000_000, "length_us": 60_000_000,
        "count": 2, "bad_count": 0, "mean": 1.0, "min": 0.5, "max": 1.5, "first": 0.5, "last": 1.5, "stddev": None,
        "revision": 0,
    },
    "command.1": {
        "command_id": "c", "agent_id": "a", "machine_id": "m", "action": "resend", "issued_at": 1, "deadline": 2,
        "arguments": {"route": "stream", "first_seq": "1"},
    },
    "finding.1": {
        "finding_id": "f", "scope": "gateway", "gateway_id": "g", "machine_id": None, "tag": None, "kind": "silence",
        "start_us": 1, "end_us": None, "detected_us": 2, "severity": "critical", "cause": "link",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_whole_records_are_read_by_everybody(name: str) -> None:
    data = wire.encode(name, WHOLE[name])
    assert read_by_apache(name, data[10:]) == read_by_fastavro(name, data[10:]) == WHOLE[name]
    assert decode(data) == (name, WHOLE[name])
    with pytest.raises(WireError, match="does not belong on a telemetry topic"):
        decode_message(data)


# -- bytes from anywhere ----------------------------------------------------------------------------------------------

HEAD = Head("agent", "machine", Route.STREAM, 5, 7, 9)


def sample_batch() -> bytes:
    blocks = encode_blocks(
        np.arange(20, dtype=np.int64), np.linspace(0, 1, 20), np.zeros(20, np.int32), np.array([0, 10, 20])
    )
    body = wire.encode_batch_body(5, (0, 19), 20, np.array([0, 1], np.int32), blocks)
    return wire.seal(wire.TELEMETRY_BATCH, HEAD, body)


def sample_birth(**change: Any) -> bytes:
    fields: dict[str, Any] = {
        "tag": "t",
        "sensor_type": "",
        "unit": "",
        "deadband": 0.0,
        "heartbeat_us": 0,
        "poll_interval_us": 0,
    }
    fields |= change
    series = (SeriesDefinition(alias=0, mode=ReportMode.PERIODIC, **fields),)
    return wire.seal(wire.BIRTH, HEAD, wire.encode_birth_body("site", "gateway", series)[1])


def decoded_or_refused(data: bytes) -> None:
    try:
        message = decode_message(data)
    except WireError:
        return
    assert isinstance(message, TelemetryBatch | Birth)


@given(st.binary(max_size=200), st.sampled_from(["", *SCHEMAS]))
def test_arbitrary_bytes(data: bytes, name: str) -> None:
    decoded_or_refused((wire._schema(name).prefix if name else b"") + data)


def test_mutations() -> None:
    chance = random.Random(20)
    samples = [sample_batch(), sample_birth()]
    interesting = [0, 1, 2, 63, 64, 127, 128, 129, 254, 255]
    for _ in range(30_000):
        data = bytearray(chance.choice(samples))
        for _ in range(chance.choice([1, 1, 2, 6])):
            at = chance.randrange(len(data))
            kind = chance.randrange(4)
            if kind == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                data[at:at] = bytes(chance.choice(interesting) for _ in range(chance.randrange(12)))
            elif kind == 2 and len(data) > 20:
                del data[at : at + chance.randrange(1, 5)]
            elif at < len(data):
                data[at] = chance.choice(interesting)
        decoded_or_refused(bytes(data))


def test_every_truncation() -> None:
    for sample in (sample_batch(), sample_birth()):
        for size in range(len(sample)):
            with pytest.raises(WireError):
                decode_message(sample[:size])
        with pytest.raises(WireError, match="1 bytes too many"):
            decode_message(sample + b"\0")


def zigzag(number: int) -> bytes:
    number = ((number << 1) ^ (number >> 63)) & (2**64 - 1)
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def batch_start() -> bytes:
    """A batch up to its arrays."""
    empty = wire.encode_batch_body(1, (1, 2), 3, np.empty(0, np.int32), (b"", np.empty(0, np.int64)))
    return wire.seal(wire.TELEMETRY_BATCH, HEAD, empty[:4])


def birth_start() -> bytes:
    return wire._schema("birth.1").prefix + wire.seal(wire.BIRTH, HEAD, b"")[10:] + zigzag(1) + zigzag(0) + zigzag(0)


EMPTY_SERIES = zigzag(0) * 7 + bytes(8) + zigzag(0)
HOSTILE: dict[str, Callable[[], bytes]] = {
    "an array of 2**40": lambda: batch_start() + zigzag(2**40),
    "an array of 2**40, sized": lambda: batch_start() + zigzag(-(2**40)) + zigzag(8) + b"\2" * 8,
    "an array of 2**63": lambda: batch_start() + zigzag(-(2**63)) + zigzag(8) + b"\2" * 8,
    "as many items as fit": lambda: batch_start() + zigzag(2**40) + bytes(3_000_000),
    "many empty blocks": lambda: batch_start() + (zigzag(-1) + zigzag(0) + zigzag(0)) * 500_000,
    "bytes of 2**40": lambda: batch_start() + zigzag(0) + zigzag(0) + zigzag(2**40) + b"abc",
    "bytes of 2**63 - 1": lambda: batch_start() + zigzag(0) + zigzag(0) + zigzag(2**63 - 1) + b"abc",
    "bytes of -1": lambda: batch_start() + zigzag(0) + zigzag(0) + zigzag(-1) + b"abc",
    "a number without end": lambda: batch_start() + b"\xff" * 100_000,
    "an alias of 2**40": lambda: batch_start() + zigzag(1) + zigzag(2**40) + b"\0\2\6\0\6abc",
    "a birth of 2**40 series": lambda: birth_start() + zigzag(2**40),
    "a birth of as many as fit": lambda: birth_start() + zigzag(2**40) + EMPTY_SERIES * 200_000,
    "more than a message": lambda: sample_batch() + bytes(wire.MESSAGE_BYTES_MAX),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_counts_cost_no_more_than_their_bytes(what: str) -> None:
    data = HOSTILE[what]()
    decoded_or_refused(sample_batch())
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(WireError):
        decode_message(data)
    assert time.monotonic() - started < 8
    assert tracemalloc.get_traced_memory()[1] < 1_000_000 + 60 * len(data)
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def batch_with(**change: Any) -> bytes:
    record = decode(sample_batch())[1] | change
    return wire.encode(wire.TELEMETRY_BATCH, record)


def birth_with(**change: Any) -> bytes:
    return wire.encode(wire.BIRTH, decode(sample_birth())[1] | change)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: batch_with(seq=0), "seq starts at 1"),
        (lambda: batch_with(epoch=-1), "neither may be negative"),
        (lambda: batch_with(agent_id=""), "without NUL"),
        (lambda: batch_with(machine_id="a\0"), "without NUL"),
        (lambda: batch_with(readings=-1), "-1 readings"),
        (lambda: batch_with(aliases=[0]), "1 aliases but 2 block sizes"),
        (lambda: batch_with(aliases=[0, -1]), "aliases neither negative"),
        (lambda: batch_with(sizes=[0, 0], blocks=b""), "sizes must be positive"),
        (lambda: batch_with(blocks=b"abc"), "but 3 bytes follow"),
        (lambda: birth_with(site="\0"), "NUL"),
        (lambda: sample_birth(tag=""), "tags must not be empty"),
        (lambda: sample_birth(unit="\0"), "NUL"),
        (lambda: sample_birth(deadband=float("nan")), "deadbands"),
        (lambda: sample_birth(heartbeat_us=-1), "intervals"),
        (lambda: birth_with(series=decode(sample_birth())[1]["series"] * 2), "twice"),
        (lambda: b"", "no Avro single-object marker"),
        (lambda: b"\xc3\x01" + bytes(8), "unknown schema fingerprint 0000000000000000"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make: Callable[[], bytes], says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_message(make())
