import numpy as np
import pytest

from common.errors import ConfigError
from edge_agent.simulate.faults import (
    SCENARIOS,
    Injected,
    LinkFaults,
    Loss,
    Rates,
    SensorFaults,
    key_of,
    parse_chaos,
    uniform,
    uniforms,
)

N = 20_000
KEYS = np.array([key_of(f"m/{index}") for index in range(N)], np.uint64)
LOW, HIGH = np.zeros(N), np.full(N, 100.0)
HEALTHY = np.full(N, 40.0)


def faults(rates: Rates, seed: int = 5) -> SensorFaults:
    return SensorFaults(seed, rates, KEYS, LOW, HIGH, 1.0)


def test_scalar_and_vector_draws_agree_and_are_uniform() -> None:
    drawn = uniforms(9, 3, KEYS, np.full(N, 17, np.uint64))
    assert [uniform(9, 3, int(key), 17) for key in KEYS[:200]] == drawn[:200].tolist()
    counts, _ = np.histogram(drawn, bins=10, range=(0.0, 1.0))
    assert np.all(np.abs(counts - N / 10) < 5 * np.sqrt(N / 10))
    along = uniforms(9, 3, np.full(N, 4, np.uint64), np.arange(N, dtype=np.uint64))
    assert along.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(along[1:], along[:-1])[0, 1]) < 0.03


def test_calm_changes_nothing() -> None:
    shown, injected = faults(SCENARIOS["calm"]).apply(HEALTHY, 123.4)
    assert shown is HEALTHY
    assert not injected.any()


def test_spikes_come_at_their_rate_leap_far_and_last_one_poll() -> None:
    plan = faults(Rates(spikes=0.02))
    shares = [np.mean(plan.apply(HEALTHY, float(second))[1] == Injected.SPIKE) for second in range(20)]
    assert np.mean(shares) == pytest.approx(0.02, abs=0.001)
    shown, injected = plan.apply(HEALTHY, 3.0)
    spiked = injected == Injected.SPIKE
    assert np.all(shown[~spiked] == 40.0)
    assert np.all((shown[spiked] >= 70.0 - 1e-9) & (shown[spiked] <= 100.0))
    tag = int(np.flatnonzero(spiked)[0])
    lasts = [bool(plan.apply(HEALTHY, 1.0 + step / 20)[1][tag]) for step in range(80)]
    assert sum(lasts) == pytest.approx(20, abs=1), "one slot of a second, at 20 looks a second"


def test_drift_grows_in_the_sensor_and_ends_with_recalibration() -> None:
    plan = faults(Rates(drift=0.25))
    _, injected = plan.apply(HEALTHY, 1000.0)
    drifting = injected == Injected.DRIFT
    assert drifting.mean() == pytest.approx(0.25, abs=0.015)
    tag = int(np.flatnonzero(drifting)[0])
    path = np.array([plan.apply(HEALTHY, float(second))[0][tag] for second in range(700, 1300, 5)]) - 40.0
    errors = np.abs(path)
    assert 3.0 < errors.max() <= 20.0
    steps = np.diff(errors[errors > 0.0])
    assert np.sum(steps < 0.0) <= 2, "it only falls where the sensor is recalibrated"


def test_faults_depend_on_seed_name_and_time_only() -> None:
    rates = Rates(spikes=0.05, drift=0.2)
    whole = faults(rates).apply(HEALTHY, 77.7)
    np.testing.assert_array_equal(whole[0], faults(rates).apply(HEALTHY, 77.7)[0])
    part = SensorFaults(5, rates, KEYS[500:600], LOW[:100], HIGH[:100], 1.0).apply(HEALTHY[:100], 77.7)
    np.testing.assert_array_equal(part[0], whole[0][500:600])
    np.testing.assert_array_equal(part[1], whole[1][500:600])
    assert not np.array_equal(whole[1], faults(rates, seed=6).apply(HEALTHY, 77.7)[1])


def test_only_finite_values_of_analogue_sensors_are_touched() -> None:
    values = np.array([1.0, np.nan, np.inf, -0.0, 5.0])
    low = np.array([np.nan, 0.0, 0.0, 0.0, 0.0])
    plan = SensorFaults(1, Rates(spikes=1.0, drift=1.0), KEYS[:5], low, np.full(5, 10.0), 1.0)
    shown, injected = plan.apply(values, 50.0)
    np.testing.assert_array_equal(shown[:3], values[:3])
    assert injected.tolist() == [0, 0, 0, 3, 3]


def test_loss_comes_at_its_rate_and_one_in_ten_resets() -> None:
    link = LinkFaults(5, Rates(loss=0.05), key_of("press-1"))
    fates = [link.lost(request) for request in range(N)]
    assert fates == [link.lost(request) for request in range(N)]
    assert np.mean([fate is not Loss.NONE for fate in fates]) == pytest.approx(0.05, abs=0.006)
    resets = sum(fate is Loss.RESET for fate in fates)
    assert resets / sum(fate is not Loss.NONE for fate in fates) == pytest.approx(0.1, abs=0.04)
    other = LinkFaults(5, Rates(loss=0.05), key_of("press-2"))
    assert fates != [other.lost(request) for request in range(N)]


def test_chaos_is_read_on_top_of_a_scenario() -> None:
    assert parse_chaos("", SCENARIOS["demo"]) == SCENARIOS["demo"]
    assert parse_chaos("loss=0.02", SCENARIOS["calm"]) == Rates(loss=0.02)
    assert parse_chaos("spikes=0, drift=0, loss=0", SCENARIOS["rough"]) == SCENARIOS["calm"]
    named = parse_chaos("spikes,drift,loss", SCENARIOS["calm"])
    assert min(named.spikes, named.drift, named.loss) > 0.0


@pytest.mark.parametrize("text", ["typhoon", "loss=much", "loss=1.5", "spikes=-0.1", "drift=nan", "loss="])
def test_bad_chaos_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_chaos(text, SCENARIOS["calm"])


def test_labels() -> None:
    assert [Injected(code).label() for code in (0, 1, 2, 3, 4, 5)] == [
        "", "spike", "drift", "spike,drift", "loss", "spike,loss",
    ]  # fmt: skip
