import numpy as np

from edge_agent.simulate.plant import NATURAL, PhysicsSource, build_machines
from edge_agent.simulate.registers import RegisterMap, Space, ValueType


def column(plan: RegisterMap, name: str) -> int:
    return [tag.name for tag in plan.tags].index(name)


def test_a_natural_machine_mixes_types_and_machines_mix_orders() -> None:
    machines = build_machines(4, len(NATURAL))
    types = {tag.type for tag in machines[0].tags}
    assert types >= {ValueType.FLOAT32, ValueType.INT16, ValueType.UINT32, ValueType.FLOAT64, ValueType.BOOL}
    assert len({(machine.byte_order, machine.word_order) for machine in machines}) == 4
    assert {"temperature", "vibration", "pressure", "flow"} <= {tag.sensor_type for tag in machines[0].tags}


def test_ten_thousand_tags_are_contiguous_float32() -> None:
    [machine] = build_machines(1, 10_000)
    extra = machine.tags[len(NATURAL) :]
    assert len(machine.tags) == len({tag.name for tag in machine.tags}) == 10_000
    assert {(tag.type, tag.space) for tag in extra} == {(ValueType.FLOAT32, Space.HOLDING)}
    assert [tag.address for tag in extra] == [20 + 2 * index for index in range(len(extra))]
    assert len(RegisterMap([machine])) == 10_000


def test_values_follow_seed_and_tick_not_how_often_one_looks() -> None:
    often, seldom = PhysicsSource(3, 2, 30), PhysicsSource(3, 2, 30)
    for tick in range(40):
        last = often.values(tick)
    np.testing.assert_array_equal(seldom.values(39), last)
    assert not np.array_equal(PhysicsSource(4, 2, 30).values(39), last)


def test_a_stall_is_made_up_for_in_few_steps() -> None:
    stalled, steady = PhysicsSource(3, 1, 12), PhysicsSource(3, 1, 12)
    for tick in range(6001):
        expected = steady.values(tick)
    row = column(RegisterMap(build_machines(1, 12)), "temperature")
    assert abs(stalled.values(6000)[row] - expected[row]) < 3.0


def test_sensors_are_noisy_about_the_process_and_stay_in_range() -> None:
    plan = RegisterMap(build_machines(1, 52))
    source = PhysicsSource(3, 1, 52)
    shown = np.array([source.values(tick) for tick in range(300)])
    low = np.array([tag.low for tag in plan.tags])
    high = np.array([tag.high for tag in plan.tags])
    assert not np.any(shown < low)
    assert not np.any(shown > high)
    flow, twin = column(plan, "flow"), column(plan, "flow_2")
    difference = shown[200:, twin] - shown[200:, flow]
    assert 0.1 < difference.std() < 0.4, "two sensors of one flow, each with its own noise of 0.15"
    for counter in ("energy", "parts", "flow_total"):
        assert np.all(np.diff(shown[:, column(plan, counter)]) >= 0.0), counter


def test_values_are_rounded_to_the_sensors_resolution() -> None:
    plan = RegisterMap(build_machines(2, 12))
    source = PhysicsSource(3, 2, 12)
    row = column(plan, "temperature")
    held = [plan.held(plan.raw(source.values(tick)))[row] for tick in range(0, 600, 10)]
    assert {float(value) for value in held} == {float(np.float32(round(value, 1))) for value in held}
    assert len(set(held)) < 40
