import struct

import numpy as np
import pytest

from common.errors import ConfigError
from edge_agent.simulate.registers import Machine, RegisterMap, Space, Tag, ValueType

ORDERS = {("big", "big"): "ABCD", ("big", "little"): "CDAB", ("little", "little"): "DCBA", ("little", "big"): "BADC"}


@pytest.mark.parametrize(("orders", "letters"), ORDERS.items())
def test_the_four_orders_of_a_float32(orders: tuple[str, str], letters: str) -> None:
    plan = RegisterMap([Machine("m", (Tag("t", Space.HOLDING, 1, ValueType.FLOAT32, "x"),), *orders)])
    image = plan.pack(plan.raw(np.array([3.14159])))
    plain = dict(zip("ABCD", struct.pack(">f", 3.14159), strict=True))
    assert image.registers == b"\0\0" + bytes(plain[letter] for letter in letters)


def test_values_are_held_as_a_correct_agent_decodes_them() -> None:
    tags = (
        Tag("f32", Space.HOLDING, 0, ValueType.FLOAT32, "x", resolution_inverse=10),
        Tag("i16", Space.HOLDING, 2, ValueType.INT16, "x", scale=0.1),
        Tag("u32", Space.HOLDING, 4, ValueType.UINT32, "x", scale=0.01, offset=5.0),
        Tag("f64", Space.HOLDING, 6, ValueType.FLOAT64, "x"),
        Tag("on", Space.COIL, 3, ValueType.BOOL, "x"),
    )
    plan = RegisterMap([Machine("m", tags)])
    raw = plan.raw(np.array([21.34999, -12.34, 70_000.129, 0.1, 1.0]))
    held = plan.held(raw)
    assert held.tolist() == [float(np.float32(21.3)), -123 * 0.1, 6_999_513 * 0.01 + 5.0, 0.1, 1.0]
    image = plan.pack(raw)
    assert struct.unpack(">fh2xId", image.registers) == (float(np.float32(21.3)), -123, 6_999_513, 0.1)
    assert image.bits == b"\0\0\0\1"


def test_numbers_saturate_and_nan_becomes_zero_where_a_type_cannot_hold_them() -> None:
    tags = tuple(Tag(f"t{index}", Space.INPUT, index, ValueType.INT16, "x") for index in range(4))
    plan = RegisterMap([Machine("m", tags)])
    assert plan.held(plan.raw(np.array([1e9, -1e9, np.nan, np.inf]))).tolist() == [32767.0, -32768.0, 0.0, 32767.0]


def test_float64_survives_bit_for_bit() -> None:
    special = np.array([-0.0, np.nan, np.inf, 5e-324, 0.1, -1.7976931348623157e308])
    tags = tuple(Tag(f"t{index}", Space.HOLDING, 4 * index, ValueType.FLOAT64, "x") for index in range(special.size))
    plan = RegisterMap([Machine("m", tags)])
    raw = plan.raw(special)
    assert plan.held(raw).tobytes() == special.tobytes()
    assert plan.pack(raw).registers == special.astype(">f8").tobytes()


def test_an_image_does_not_change_when_the_plant_moves_on() -> None:
    plan = RegisterMap([Machine("m", (Tag("t", Space.HOLDING, 0, ValueType.FLOAT32, "x"),))])
    first = plan.pack(plan.raw(np.array([1.0])))
    before = bytes(first.registers)
    plan.pack(plan.raw(np.array([2.0])))
    assert first.registers == before


def test_a_request_covers_only_tags_that_lie_wholly_within_it() -> None:
    float32 = [Tag(f"t{index}", Space.HOLDING, 10 + 2 * index, ValueType.FLOAT32, "x") for index in range(5)]
    other = Machine("before", (Tag("only", Space.HOLDING, 0, ValueType.INT16, "x"),))
    plan = RegisterMap([other, Machine("m", tuple(reversed(float32)))])
    area = plan.areas[1][Space.HOLDING]
    assert (area.base, area.size) == (1, 20)
    assert [tag.name for tag in plan.tags] == ["only", "t0", "t1", "t2", "t3", "t4"]
    assert area.covered(0, 20) == (1, 6)
    assert area.covered(11, 5) == (2, 4)
    assert area.covered(11, 1)[0] == area.covered(11, 1)[1]
    assert area.covered(0, 5) == (1, 1)


def test_overlaps_and_too_many_registers_are_refused() -> None:
    wide = Tag("a", Space.HOLDING, 0, ValueType.FLOAT64, "x")
    with pytest.raises(ConfigError, match="a and b overlap at holding:3"):
        RegisterMap([Machine("m", (wide, Tag("b", Space.HOLDING, 3, ValueType.INT16, "x")))])
    with pytest.raises(ConfigError, match="65536"):
        RegisterMap([Machine("m", (Tag("b", Space.HOLDING, 65_536, ValueType.INT16, "x"),))])
