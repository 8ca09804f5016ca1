import struct

import pytest

from edge_agent.simulate.modbus_server import answer
from edge_agent.simulate.registers import Image, Machine, RegisterMap, Space, Tag, ValueType

PLAN = RegisterMap(
    [
        Machine(
            "other", (Tag("x", Space.HOLDING, 0, ValueType.INT16, "x"), Tag("b", Space.COIL, 0, ValueType.BOOL, "x"))
        ),
        Machine(
            "m",
            (
                *(Tag(f"h{index}", Space.HOLDING, index, ValueType.INT16, "x") for index in range(200)),
                *(Tag(f"c{index}", Space.COIL, index, ValueType.BOOL, "x") for index in range(11)),
            ),
        ),
    ]
)
IMAGE = Image(struct.pack(">201h", *range(-1, 200)), bytes([0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1]))


def ask(function: int, address: int, count: int) -> tuple[bytes, int, int]:
    return tuple(answer(struct.pack(">BHH", function, address, count), PLAN.areas[1], IMAGE))


def test_registers_come_from_this_machines_part_of_the_image() -> None:
    assert ask(3, 10, 3) == (bytes.fromhex("0306000a000b000c"), 12, 15)
    assert len(ask(3, 75, 125)[0]) == 252


def test_bits_are_packed_lowest_first() -> None:
    assert ask(1, 0, 11)[0] == bytes([1, 2, 0b0100_1101, 0b110])
    assert ask(1, 3, 4)[0] == bytes([1, 1, 0b1001])


@pytest.mark.parametrize(
    ("function", "address", "count", "code"),
    [
        (3, 0, 0, 3), (3, 0, 126, 3), (1, 0, 2001, 3), (3, 200, 1, 2), (3, 199, 2, 2), (3, 65535, 1, 2),
        (1, 11, 1, 2), (2, 0, 1, 2), (4, 0, 1, 2), (6, 0, 1, 1), (16, 0, 1, 1), (43, 0, 1, 1),
    ],
)  # fmt: skip
def test_exceptions(function: int, address: int, count: int, code: int) -> None:
    assert ask(function, address, count) == (bytes([function | 0x80, code]), 0, 0)


def test_a_request_of_the_wrong_length_is_an_illegal_value() -> None:
    assert answer(bytes([3, 0, 0]), PLAN.areas[1], IMAGE).pdu == bytes([0x83, 3])
