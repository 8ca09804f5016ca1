"""Registers to numbers, against struct: every type, every byte and word order, bits, scale and offset."""

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.adapters.modbus.decode import ResponseDecoder
from edge_agent.adapters.modbus.plan import plan_requests
from tests.unit.edge_agent.samples import modbus_device

FORMATS = {
    "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f",
    "float64": "d",
}  # fmt: skip


def oracle(registers: list[int], kind: str, byte_order: str, word_order: str) -> float:
    """What a technician does by hand: put the bytes in order, read the number."""
    words = [struct.pack(">H", word) for word in registers]
    if word_order == "little":
        words.reverse()
    if byte_order == "little":
        words = [word[::-1] for word in words]
    return float(struct.unpack(">" + FORMATS[kind], b"".join(words))[0])


def bits_of(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack(">d", value)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(FORMATS)),
            st.sampled_from(["big", "little"]),
            st.sampled_from(["big", "little"]),
            st.lists(
                st.one_of(st.integers(0, 65_535), st.sampled_from([0, 0x7F80, 0xFF80, 0x7FC0, 0x7FF0])),
                min_size=4,
                max_size=4,
            ),
            st.sampled_from([(1.0, 0.0), (0.1, -40.0), (-2.0, 1e9)]),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_every_type_in_every_order(points: list[tuple[str, str, str, list[int], tuple[float, float]]]) -> None:
    tags: list[dict[str, Any]] = []
    memory: list[int] = []
    for kind, byte_order, word_order, words, (scale, offset) in points:
        order = {"byte_order": byte_order, "word_order": word_order}
        tags.append({"address": f"holding:{len(memory)}", "type": kind, "scale": scale, "offset": offset, **order})
        memory += words[: struct.calcsize(FORMATS[kind]) // 2]
    device = modbus_device(tags)
    (request,) = plan_requests(device)
    with np.errstate(all="ignore"):
        values = ResponseDecoder(device, request).decode(memory + [0] * 3)
    at = 0
    for index, (kind, byte_order, word_order, words, (scale, offset)) in enumerate(points):
        size = struct.calcsize(FORMATS[kind]) // 2
        raw = oracle(words[:size], kind, byte_order, word_order)
        assert bits_of(values[request.points.index(index)]) == bits_of(raw * scale + offset)
        at += size


@pytest.mark.parametrize(
    ("byte_order", "word_order", "registers"),
    [
        ("big", "big", [0x4148, 0xF5C3]),  # ABCD
        ("big", "little", [0xF5C3, 0x4148]),  # CDAB
        ("little", "big", [0x4841, 0xC3F5]),  # BADC
        ("little", "little", [0xC3F5, 0x4841]),  # DCBA
    ],
)
def test_the_four_orders_by_name(byte_order: str, word_order: str, registers: list[int]) -> None:
    device = modbus_device([{"address": "holding:0", "type": "float32"}], byte_order=byte_order, word_order=word_order)
    (request,) = plan_requests(device)
    assert ResponseDecoder(device, request).decode(registers)[0] == np.float32(12.56)


@given(st.integers(0, 65_535), st.sampled_from([(1.0, 0.0), (10.0, 5.0)]))
def test_bits_of_a_register(word: int, scaling: tuple[float, float]) -> None:
    tags = [
        {"address": "input:4", "type": "bool", "bit": bit, "scale": scaling[0], "offset": scaling[1]}
        for bit in range(16)
    ]
    device = modbus_device(tags)
    (request,) = plan_requests(device)
    values = ResponseDecoder(device, request).decode([word])
    expected = [(word // 2**bit % 2) * scaling[0] + scaling[1] for bit in range(16)]
    assert [values[request.points.index(bit)] for bit in range(16)] == expected


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 3))
def test_coils(states: list[bool], step: int) -> None:
    device = modbus_device([{"address": f"coil:{5 + n * step}", "type": "bool"} for n in range(len(states))])
    (request,) = plan_requests(device)
    memory = [False] * (request.count + 7)
    for n, state in enumerate(states):
        memory[n * step] = state
    assert ResponseDecoder(device, request).decode(memory).tolist() == [float(state) for state in states]


def test_large_integers_are_rounded_as_float64_does() -> None:
    device = modbus_device([{"address": "holding:0", "type": "uint64"}, {"address": "holding:4", "type": "int64"}])
    (request,) = plan_requests(device)
    values = ResponseDecoder(device, request).decode([0xFFFF] * 8)
    assert values.tolist() == [float(2**64 - 1), -1.0]
