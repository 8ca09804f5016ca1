"""What the process does: hydraulic presses, each a motor that drives a pump, as first-order physics.

In: parameters and state of m machines (every field float64[m]), the load asked of them, the ambient temperature
and a time step in seconds. Out: the next state, and the process signals. Pure; nothing fails. Every first-order lag is
integrated exactly over the step, x' = target + (x - target) * exp(-dt / tau), so any step size is stable.

    load       a production cycle: ramp up, run with a small stroke ripple, ramp down, idle, motor off; less at night
    speed      lags its set point (variable-speed drive): idle + (rated - idle) * load, 0 when off
    flow       pump affinity law, Q ~ n, less what a worn pump leaks inside
    pressure   system curve, p = p_back * n/n_r + (p_r - p_back) * (Q/Q_r)^2, with a short lag
    power      hydraulic p * Q / 600 (bar, l/min -> kW) over the pump's efficiency, plus friction ~ n, over the motor's
    current    I = sqrt(I_magnetising^2 + (P / (sqrt(3) * U * cos phi))^2)
    heating    lumped capacitance: C dT/dt = P_loss - (T - T_ambient) / R, T_inf = T_ambient + R * P_loss, tau = R * C
    vibration  RMS velocity: unbalance force ~ n^2, grows with wear, plus a share from the load
    wear       grows with speed and load
    energy, volume, parts   integrals of power, flow and stroke rate

Sources: affinity laws and system curve, Karassik, Pump Handbook, ch. 2; lumped capacitance, Incropera, Fundamentals of
Heat and Mass Transfer, ch. 5; vibration zones of machines of this size (2.8 and 4.5 mm/s), ISO 20816-3.
"""

import math
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SIGNALS = (
    "temperature",
    "vibration",
    "flow",
    "pressure",
    "current",
    "speed",
    "energy",
    "parts",
    "flow_total",
    "ambient_temperature",
    "power",
    "running",
)
"""The rows of `observe`, in order."""

_PHASE = np.array([0.0, 0.06, 0.70, 0.76, 1.0])
_SHAPE = np.array([0.0, 1.0, 1.0, 0.0, 0.0])
_MOTOR_ON_UNTIL = 0.88
_VOLTAGE_V, _COS_PHI = 400.0, 0.86
_DAY_S = 86_400.0
_START_OF_DAY_S = 6 * 3600.0
"""The plant starts at six in the morning, whatever the wall clock says: the same seed gives the same values."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a machine is; every field float64[m]."""

    period_s: Floats
    phase: Floats
    level: Floats
    rated_speed_rpm: Floats
    idle_speed_rpm: Floats
    rated_flow_l_min: Floats
    rated_pressure_bar: Floats
    back_pressure_bar: Floats
    pump_efficiency: Floats
    motor_efficiency: Floats
    friction_kw: Floats
    magnetising_a: Floats
    thermal_resistance_k_per_kw: Floats
    thermal_time_s: Floats
    speed_time_s: Floats
    pressure_time_s: Floats
    vibration_mm_s: Floats
    wear_gain: Floats
    wear_per_hour: Floats
    strokes_per_s: Floats
    ambient_degc: Floats

    @classmethod
    def draw(cls, seed: int, machines: int) -> Self:
        """Draw `machines` different machines; machine i is the same however many there are."""
        low_high = {
            "period_s": (240.0, 600.0),
            "phase": (0.0, 0.6),
            "level": (0.65, 0.95),
            "rated_speed_rpm": (1460.0, 1485.0),
            "idle_speed_rpm": (700.0, 760.0),
            "rated_flow_l_min": (55.0, 75.0),
            "rated_pressure_bar": (140.0, 180.0),
            "back_pressure_bar": (10.0, 18.0),
            "pump_efficiency": (0.80, 0.88),
            "motor_efficiency": (0.90, 0.93),
            "friction_kw": (0.6, 1.2),
            "magnetising_a": (9.0, 13.0),
            "thermal_resistance_k_per_kw": (6.0, 9.0),
            "thermal_time_s": (180.0, 420.0),
            "speed_time_s": (1.5, 4.0),
            "pressure_time_s": (0.4, 0.9),
            "vibration_mm_s": (0.8, 1.4),
            "wear_gain": (2.5, 3.5),
            "wear_per_hour": (0.01, 0.06),
            "strokes_per_s": (0.2, 0.5),
            "ambient_degc": (19.0, 24.0),
        }
        unit = _draws(seed, 0, machines, len(low_high))
        return cls(
            **{name: low + (high - low) * unit[:, index] for index, (name, (low, high)) in enumerate(low_high.items())}
        )

    def take(self, index: NDArray[np.intp]) -> Self:
        """Return the machines that `index` names."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True, slots=True)
class State:
    """Where a machine is; every field float64[m]."""

    speed_rpm: Floats
    pressure_bar: Floats
    temperature_degc: Floats
    wear: Floats
    energy_kwh: Floats
    volume_m3: Floats
    parts: Floats

    @classmethod
    def draw(cls, seed: int, parameters: Parameters) -> Self:
        """Return machines at rest, warm from earlier work, with wear and counters from a life before the start."""
        machines = parameters.period_s.size
        unit = _draws(seed, 1, machines, 5)
        return cls(
            speed_rpm=np.zeros(machines),
            pressure_bar=np.zeros(machines),
            temperature_degc=parameters.ambient_degc + 10.0 + 15.0 * unit[:, 0],
            wear=0.4 * unit[:, 1],
            energy_kwh=np.round(1_000.0 + 90_000.0 * unit[:, 2]),
            volume_m3=np.round(500.0 + 20_000.0 * unit[:, 3]),
            parts=np.round(10_000.0 + 900_000.0 * unit[:, 4]),
        )


def _draws(seed: int, purpose: int, machines: int, count: int) -> Floats:
    """Return float64[machines, count] in [0, 1), each machine from its own stream."""
    streams = (np.random.default_rng([seed, purpose, machine]) for machine in range(machines))
    return np.stack([stream.random(count) for stream in streams])


def demand(parameters: Parameters, time_s: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the load asked of each machine, 0 to 1, and whether its motor is on, `time_s` after the start."""
    phase = np.mod(time_s / parameters.period_s + parameters.phase, 1.0)
    hour = (_START_OF_DAY_S + time_s) % _DAY_S / 3600.0
    day_shift = 6.0 <= hour < 22.0  # noqa: PLR2004
    stroke = 1.0 + 0.05 * np.sin(2.0 * np.pi * time_s * parameters.strokes_per_s / 4.0)
    load = parameters.level * np.interp(phase, _PHASE, _SHAPE) * stroke * (1.0 if day_shift else 0.7)
    return np.clip(load, 0.0, 1.0), phase < _MOTOR_ON_UNTIL


def ambient(parameters: Parameters, time_s: float) -> Floats:
    """Return the temperature of the hall around each machine in degC: warmest at three in the afternoon."""
    since_nine_s = _START_OF_DAY_S + time_s - 9 * 3600.0
    swing_degc = 4.0 * math.sin(2.0 * math.pi * since_nine_s / _DAY_S)
    return parameters.ambient_degc + swing_degc


def _flow(parameters: Parameters, state: State) -> Floats:
    leak = 1.0 - 0.1 * np.minimum(state.wear, 2.0)
    return parameters.rated_flow_l_min * state.speed_rpm / parameters.rated_speed_rpm * leak


def _power(parameters: Parameters, state: State) -> tuple[Floats, Floats]:
    """Return electrical power and what of it turns into heat, both in kW."""
    hydraulic = state.pressure_bar * _flow(parameters, state) / 600.0
    friction = parameters.friction_kw * state.speed_rpm / parameters.rated_speed_rpm
    electrical = (hydraulic / parameters.pump_efficiency + friction) / parameters.motor_efficiency
    return electrical, electrical - hydraulic


def _lag(value: Floats, target: Floats, dt_s: float, time_constant_s: Floats) -> Floats:
    moved: Floats = target + (value - target) * np.exp(-dt_s / time_constant_s)
    return moved


def step(
    parameters: Parameters, state: State, load: Floats, motor_on: NDArray[np.bool_], ambient_degc: Floats, dt_s: float
) -> State:
    """Advance every machine by `dt_s` under constant `load` (0 to 1) and surroundings."""
    span = parameters.rated_speed_rpm - parameters.idle_speed_rpm
    set_point = np.where(motor_on, parameters.idle_speed_rpm + span * load, 0.0)
    speed_ratio = state.speed_rpm / parameters.rated_speed_rpm
    flow = _flow(parameters, state)
    curve = (parameters.rated_pressure_bar - parameters.back_pressure_bar) * (flow / parameters.rated_flow_l_min) ** 2
    electrical, lost = _power(parameters, state)
    settled_degc = ambient_degc + parameters.thermal_resistance_k_per_kw * lost
    return State(
        speed_rpm=_lag(state.speed_rpm, set_point, dt_s, parameters.speed_time_s),
        pressure_bar=_lag(
            state.pressure_bar, parameters.back_pressure_bar * speed_ratio + curve, dt_s, parameters.pressure_time_s
        ),
        temperature_degc=_lag(state.temperature_degc, settled_degc, dt_s, parameters.thermal_time_s),
        wear=state.wear + parameters.wear_per_hour * speed_ratio * (0.3 + 0.7 * load) * dt_s / 3600.0,
        energy_kwh=state.energy_kwh + electrical * dt_s / 3600.0,
        volume_m3=state.volume_m3 + flow * dt_s / 60_000.0,
        parts=state.parts + np.where(load > 0.0, parameters.strokes_per_s * dt_s, 0.0),
    )


def observe(parameters: Parameters, state: State, motor_on: NDArray[np.bool_], ambient_degc: Floats) -> Floats:
    """Return the process signals, float64[len(SIGNALS), m], in the units of plant.py's sensors and free of noise."""
    electrical, _ = _power(parameters, state)
    load_current = electrical * 1000.0 / (np.sqrt(3.0) * _VOLTAGE_V * _COS_PHI)
    speed_ratio = state.speed_rpm / parameters.rated_speed_rpm
    unbalance = parameters.vibration_mm_s * speed_ratio**2 * (1.0 + parameters.wear_gain * state.wear)
    return np.stack(
        [
            state.temperature_degc,
            unbalance + 0.4 * state.pressure_bar / parameters.rated_pressure_bar,
            _flow(parameters, state),
            state.pressure_bar,
            np.where(motor_on, np.hypot(parameters.magnetising_a, load_current), 0.0),
            state.speed_rpm,
            state.energy_kwh,
            np.floor(state.parts),
            state.volume_m3,
            ambient_degc,
            electrical,
            motor_on.astype(np.float64),
        ]
    )
