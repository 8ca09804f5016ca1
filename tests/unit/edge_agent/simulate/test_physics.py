import numpy as np
import pytest

from edge_agent.simulate import physics
from edge_agent.simulate.physics import Parameters, State


def run(parameters: Parameters, state: State, load: float, seconds: float, dt_s: float = 0.1) -> State:
    machines = parameters.period_s.size
    on = np.full(machines, load > 0.0)
    for _ in range(round(seconds / dt_s)):
        state = physics.step(parameters, state, np.full(machines, load), on, np.full(machines, 20.0), dt_s)
    return state


@pytest.fixture
def parameters() -> Parameters:
    return Parameters.draw(7, 4)


def test_temperature_settles_where_heat_in_equals_heat_out(parameters: Parameters) -> None:
    settled = run(parameters, State.draw(7, parameters), 0.8, 6000.0, 1.0)
    watts = physics._power(parameters, settled)[1]
    expected = 20.0 + parameters.thermal_resistance_k_per_kw * watts
    np.testing.assert_allclose(settled.temperature_degc, expected, rtol=1e-3)
    assert np.all((expected > 35.0) & (expected < 100.0)), "a press runs warm, not on fire"


def test_temperature_covers_63_percent_of_the_way_down_in_one_time_constant(parameters: Parameters) -> None:
    hot = run(parameters, State.draw(7, parameters), 0.8, 3000.0, 1.0)
    stopped = run(parameters, hot, 0.0, 30.0)
    for machine, tau in enumerate(parameters.thermal_time_s):
        later = run(parameters, stopped, 0.0, float(tau), 0.1)
        share = (stopped.temperature_degc[machine] - later.temperature_degc[machine]) / (
            stopped.temperature_degc[machine] - 20.0
        )
        assert share == pytest.approx(1.0 - np.exp(-1.0), abs=0.01)


def test_the_size_of_the_step_hardly_matters(parameters: Parameters) -> None:
    start = State.draw(7, parameters)
    fine, coarse = run(parameters, start, 0.7, 300.0, 0.1), run(parameters, start, 0.7, 300.0, 1.0)
    np.testing.assert_allclose(coarse.temperature_degc, fine.temperature_degc, rtol=0.01)
    np.testing.assert_allclose(coarse.pressure_bar, fine.pressure_bar, rtol=0.001)


def test_more_load_means_more_of_everything(parameters: Parameters) -> None:
    on, hall = np.ones(4, bool), np.full(4, 20.0)
    low, high = (
        dict(zip(physics.SIGNALS, physics.observe(parameters, state, on, hall), strict=True))
        for state in (
            run(parameters, State.draw(7, parameters), 0.3, 2000.0, 1.0),
            run(parameters, State.draw(7, parameters), 0.9, 2000.0, 1.0),
        )
    )
    for name in ("temperature", "vibration", "flow", "pressure", "current", "speed", "power"):
        assert np.all(high[name] > low[name]), name


def test_pressure_follows_the_square_of_flow_and_vibration_grows_with_wear(parameters: Parameters) -> None:
    settled = run(parameters, State.draw(7, parameters), 0.8, 60.0)
    flow_share = physics._flow(parameters, settled) / parameters.rated_flow_l_min
    curve = parameters.back_pressure_bar * settled.speed_rpm / parameters.rated_speed_rpm
    curve = curve + (parameters.rated_pressure_bar - parameters.back_pressure_bar) * flow_share**2
    np.testing.assert_allclose(settled.pressure_bar, curve, rtol=1e-3)
    worn = run(parameters, settled, 0.8, 20 * 3600.0, 10.0)
    on, hall = np.ones(4, bool), np.full(4, 20.0)
    row = physics.SIGNALS.index("vibration")
    assert np.all(
        physics.observe(parameters, worn, on, hall)[row] > physics.observe(parameters, settled, on, hall)[row]
    )


def test_energy_is_power_times_time_and_counters_never_fall(parameters: Parameters) -> None:
    settled = run(parameters, State.draw(7, parameters), 0.8, 60.0)
    later = run(parameters, settled, 0.8, 3600.0, 1.0)
    electrical = physics._power(parameters, settled)[0]
    np.testing.assert_allclose(later.energy_kwh - settled.energy_kwh, electrical, rtol=0.01)
    assert np.all(later.parts > settled.parts)
    assert np.all(later.volume_m3 > settled.volume_m3)


def test_the_seed_decides_and_a_machine_does_not_depend_on_how_many_there_are() -> None:
    few, many, other = Parameters.draw(3, 2), Parameters.draw(3, 50), Parameters.draw(4, 2)
    np.testing.assert_array_equal(few.level, many.level[:2])
    np.testing.assert_array_equal(State.draw(3, few).wear, State.draw(3, many).wear[:2])
    assert not np.array_equal(few.level, other.level)


def test_many_machines_at_once_equal_each_alone(parameters: Parameters) -> None:
    start = State.draw(7, parameters)
    together = run(parameters, start, 0.6, 20.0)
    for machine in range(4):
        alone_parameters = parameters.take(np.array([machine]))
        alone_start = State(**{name: getattr(start, name)[[machine]] for name in State.__dataclass_fields__})
        alone = run(alone_parameters, alone_start, 0.6, 20.0)
        for name in State.__dataclass_fields__:
            # numpy's exp may differ in the last bit between its vector and scalar loops
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(together, name)[machine], rtol=1e-12)


def test_a_cycle_ramps_runs_idles_and_stops(parameters: Parameters) -> None:
    loads, on = zip(*(physics.demand(parameters, float(second)) for second in range(1200)), strict=True)
    load, running = np.array(loads), np.array(on)
    assert np.all((load >= 0.0) & (load <= 1.0))
    assert np.all(load[~running] == 0.0), "no load without a motor"
    assert np.all((load == 0.0).any(axis=0) & (load > 0.6).any(axis=0))
    assert np.all(running.any(axis=0) & (~running).any(axis=0))
    night = physics.demand(parameters, 18 * 3600.0 + 30.0)[0]
    assert np.all(night <= 0.7)
