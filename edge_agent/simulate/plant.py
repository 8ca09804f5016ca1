"""The sensors of a natural machine, and the plant as a source of values: physics seen through imperfect sensors.

In: how many machines and tags, and a seed. Out: the machines (their register maps mix types and, from machine to
machine, byte and word orders), and per tick what healthy sensors show, float64[tags] in map order, before rounding to
resolution (registers.py). Fails with ConfigError where a machine's tags do not fit into Modbus's address space.

More tags than the natural ones are further sensors of the same quantities (temperature_2, vibration_2, ...), each with
its own calibration error and noise, as float32 in contiguous holding registers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.simulate import physics
from edge_agent.simulate.registers import Machine, Order, Space, Tag, ValueType

Floats = NDArray[np.float64]

STEP_S = 0.1
"""How often the plant moves and its registers change."""

SUBSTEPS_MAX = 50
"""After a stall (the process was suspended) the missed time is made up in at most this many steps."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One natural tag and how it is measured; `noise` is one standard deviation, in the tag's unit."""

    tag: Tag
    noise: float = 0.0


def _sensor(tag: Tag, noise: float = 0.0) -> Sensor:
    return Sensor(tag, noise)


_H, _I = Space.HOLDING, Space.INPUT
NATURAL = (
    _sensor(
        Tag("temperature", _H, 0, ValueType.FLOAT32, "temperature", "degC", 1, 0, 10, -20, 150, deadband=0.2), 0.03
    ),
    _sensor(Tag("vibration", _H, 2, ValueType.FLOAT32, "vibration", "mm/s", 1, 0, 100, 0, 20, deadband=0.05), 0.04),
    _sensor(Tag("flow", _H, 4, ValueType.FLOAT32, "flow", "l/min", 1, 0, 10, 0, 120, deadband=0.3), 0.15),
    _sensor(Tag("pressure", _H, 6, ValueType.INT16, "pressure", "bar", 0.1, 0, 10, 0, 250, deadband=0.5), 0.25),
    _sensor(Tag("current", _H, 7, ValueType.INT16, "current", "A", 0.1, 0, 10, 0, 80, deadband=0.3), 0.12),
    _sensor(Tag("speed", _H, 8, ValueType.UINT16, "speed", "rpm", 1, 0, 1, 0, 3000, deadband=3), 1.0),
    _sensor(Tag("energy", _H, 12, ValueType.UINT32, "energy", "kWh", 0.01, 0, 100, deadband=0.05)),
    _sensor(Tag("parts", _H, 14, ValueType.UINT32, "counter", "", deadband=0.5)),
    _sensor(Tag("flow_total", _H, 16, ValueType.FLOAT64, "volume", "m3", 1, 0, 1000, deadband=0.005)),
    _sensor(
        Tag("ambient_temperature", _I, 0, ValueType.INT16, "temperature", "degC", 0.1, 0, 10, -40, 85, deadband=0.2),
        0.04,
    ),
    _sensor(Tag("power", _I, 1, ValueType.FLOAT32, "power", "kW", 1, 0, 100, 0, 60, deadband=0.1), 0.04),
    _sensor(Tag("running", Space.COIL, 0, ValueType.BOOL, "state", deadband=0.5)),
)
_MULTIPLIED = (0, 1, 2, 10)
"""Which natural sensors are installed again when more tags are asked for: temperature, vibration, flow, power."""
_FIRST_FREE = 20
_ORDERS: tuple[tuple[Order, Order], ...] = (("big", "big"), ("big", "little"), ("little", "little"), ("little", "big"))
"""Byte and word order of the first machine, the second and so on: ABCD, CDAB, DCBA, BADC."""


def _sensors(count: int) -> Iterator[tuple[int, Sensor]]:
    """Give the natural sensor's number and the sensor, for each of a machine's `count` tags."""
    yield from enumerate(NATURAL[:count])
    for extra in range(count - len(NATURAL)):
        number = _MULTIPLIED[extra % len(_MULTIPLIED)]
        sensor = NATURAL[number]
        name = f"{sensor.tag.name}_{extra // len(_MULTIPLIED) + 2}"
        yield number, replace(sensor, tag=replace(sensor.tag, name=name, space=_H, address=_FIRST_FREE + 2 * extra))


def build_machines(machines: int, tags: int) -> list[Machine]:
    """Return presses press-1 to press-n with `tags` tags each."""
    names = tuple(sensor.tag for _, sensor in _sensors(tags))
    return [Machine(f"press-{index + 1}", names, *_ORDERS[index % len(_ORDERS)]) for index in range(machines)]


class PhysicsSource:
    """The values of `build_machines(machines, tags)` as time goes by; depends on nothing but its arguments."""

    def __init__(self, seed: int, machines: int, tags: int) -> None:
        self._seed = seed
        self._parameters = physics.Parameters.draw(seed, machines)
        self._state = physics.State.draw(seed, self._parameters)
        self._tick = 0
        order = list(Space)
        one = sorted(_sensors(tags), key=lambda item: (order.index(item[1].tag.space), item[1].tag.address))
        signal = np.tile(np.array([number for number, _ in one], np.intp), machines)
        machine = np.repeat(np.arange(machines), len(one))
        self._pick = signal * machines + machine
        self._noise = np.tile(np.array([sensor.noise for _, sensor in one]), machines)
        self._low = np.tile(np.array([sensor.tag.low for _, sensor in one]), machines)
        self._high = np.tile(np.array([sensor.tag.high for _, sensor in one]), machines)
        first = np.tile(np.arange(len(one)) < len(NATURAL), machines)
        calibration = np.random.default_rng([seed, 2]).normal(size=self._pick.size)
        self._calibration = np.where(first, 0.0, calibration * 2.0 * self._noise)

    def values(self, tick: int) -> Floats:
        """Return what healthy sensors show at tick number `tick` (of STEP_S, from 0), which must not go back."""
        self._advance_to(tick)
        time_s = tick * STEP_S
        _, motor_on = physics.demand(self._parameters, time_s)
        hall = physics.ambient(self._parameters, time_s)
        process = physics.observe(self._parameters, self._state, motor_on, hall).ravel()[self._pick]
        noise = np.random.Generator(np.random.Philox(key=self._seed, counter=tick << 64)).standard_normal(process.size)
        shown = process + self._calibration + noise * self._noise
        within: Floats = np.fmin(np.fmax(shown, self._low), self._high)
        return within

    def _advance_to(self, tick: int) -> None:
        missing = tick - self._tick
        steps = min(missing, SUBSTEPS_MAX)
        for done in range(steps):
            time_s = (self._tick + missing * done / steps) * STEP_S
            load, motor_on = physics.demand(self._parameters, time_s)
            hall = physics.ambient(self._parameters, time_s)
            dt_s = STEP_S * missing / steps
            self._state = physics.step(self._parameters, self._state, load, motor_on, hall, dt_s)
        self._tick = tick
