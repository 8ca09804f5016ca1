"""What goes wrong, and when: pure functions of (seed, tag or machine, time), the same in any order and at any rate.

In: fault rates, the values that healthy sensors would show, seconds since the start. Out: the values that faulty ones
show and which of them are at fault; whether a response is lost. A bad rate is a ConfigError.

- spikes: in each slot of `spike_s` (the poll interval, so that a rate is a share of readings) a tag is spiked with the
  given probability: its value leaps towards the farther end of its range by 30 to 90 % of it, as interference does.
- drift: the sensor drifts, not the process. Time is cut per tag into slots of five minutes, a slot drifts with the
  given probability: the error grows linearly from nothing to 5 to 20 % of the range, until the sensor is recalibrated.
- loss: decided per request. The response is not sent; one in ten losses resets the connection as well.

Randomness is a hash (SplitMix64's finaliser: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
2014), because a stateful generator would make the faults depend on who polls when.
"""

from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, Problem

Floats = NDArray[np.float64]

DRIFT_SLOT_S = 300.0
RESET_SHARE = 0.1
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E37_79B9_7F4A_7C15


class Injected(IntFlag):
    """What was done to a value or its response."""

    NONE = 0
    SPIKE = 1
    DRIFT = 2
    LOSS = 4

    def label(self) -> str:
        """Return the word (or words, comma separated) that the truth file carries."""
        return ",".join((kind.name or "").lower() for kind in Injected if kind in self and kind)


class Loss(IntEnum):
    """What becomes of a response."""

    NONE = 0
    DROP = 1
    RESET = 2


class _Stream(IntEnum):
    """Keeps the draws for different purposes apart."""

    SPIKE = 1
    SPIKE_SIZE = 2
    DRIFT = 3
    DRIFT_SIZE = 4
    SLOT_PHASE = 5
    LOSS = 6
    RESET = 7


@dataclass(frozen=True, slots=True)
class Rates:
    """How much chaos: probabilities 0 to 1 per reading (spikes), per five-minute slot (drift), per request (loss)."""

    spikes: float = 0.0
    drift: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        for kind in ("spikes", "drift", "loss"):
            if not 0.0 <= getattr(self, kind) <= 1.0:
                raise ConfigError("--chaos", [Problem(kind, "a rate is between 0 and 1")])


SCENARIOS = {
    "calm": Rates(),
    "demo": Rates(spikes=0.003, drift=0.05, loss=0.005),
    "rough": Rates(spikes=0.01, drift=0.15, loss=0.05),
}
_NAMED_ALONE = Rates(spikes=0.005, drift=0.1, loss=0.01)


def parse_chaos(text: str, start: Rates) -> Rates:
    """Read `spikes,drift=0.1,loss=0.02` on top of `start`; raises ConfigError for an unknown kind or a bad rate."""
    rates = start
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, given, number = (piece.strip() for piece in part.partition("="))
        if kind not in {"spikes", "drift", "loss"}:
            raise ConfigError("--chaos", [Problem(kind, "unknown kind; choose from: spikes, drift, loss")])
        try:
            rate = float(number) if given else getattr(_NAMED_ALONE, kind)
        except ValueError:
            raise ConfigError("--chaos", [Problem(kind, f"{number!r} is not a number")]) from None
        rates = replace(rates, **{kind: rate})
    return rates


def key_of(name: str) -> int:
    """Return the number under which a tag or machine draws its faults: by name, not by place."""
    return crc32(name.encode())


def _mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D0_49BB_1331_11EB & _MASK
    return value ^ value >> 31


def uniform(seed: int, stream: int, key: int, counter: int) -> float:
    """Return the draw of `counter` for `key`, uniform in [0, 1)."""
    mixed = _mix((_mix((_mix(seed * 64 + stream & _MASK) + key) * _GOLDEN & _MASK) + counter) * _GOLDEN & _MASK)
    return (mixed >> 11) * 2.0**-53


def _mix_many(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return values ^ (values >> np.uint64(31))


def uniforms(seed: int, stream: int, keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> Floats:
    """Return `uniform` of whole arrays: float64[n]."""
    start = np.uint64(_mix(seed * 64 + stream & _MASK))
    mixed = _mix_many((_mix_many((keys + start) * np.uint64(_GOLDEN)) + counters) * np.uint64(_GOLDEN))
    drawn: Floats = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn


class SensorFaults:
    """Spikes and drift of n tags.

    Args:
        seed: of all randomness.
        rates: how much of each.
        keys: uint64[n], see key_of.
        low, high: float64[n], each sensor's range; NaN where the tag is no analogue sensor and never at fault.
        spike_s: how long a spike lasts.
    """

    def __init__(
        self, seed: int, rates: Rates, keys: NDArray[np.uint64], low: Floats, high: Floats, spike_s: float
    ) -> None:
        self._seed, self._rates, self._keys, self._spike_s = seed, rates, keys, spike_s
        self._low, self._high = low, high
        self._middle, self._span = (low + high) / 2.0, high - low
        self._phase = uniforms(seed, _Stream.SLOT_PHASE, keys, np.zeros(keys.size, np.uint64))
        self._can_fail = np.isfinite(self._span)

    def apply(self, values: Floats, time_s: float) -> tuple[Floats, NDArray[np.uint8]]:
        """Return what faulty sensors show instead of `values`, and uint8[n] of Injected (SPIKE, DRIFT)."""
        injected = np.zeros(values.size, np.uint8)
        able = self._can_fail & np.isfinite(values)
        if self._rates.drift > 0.0:
            position = time_s / DRIFT_SLOT_S + self._phase
            slot = position.astype(np.uint64)
            drifts = able & (uniforms(self._seed, _Stream.DRIFT, self._keys, slot) < self._rates.drift)
            size = uniforms(self._seed, _Stream.DRIFT_SIZE, self._keys, slot) * 2.0 - 1.0
            share = np.sign(size) * (0.05 + 0.15 * np.abs(size))
            values = np.where(drifts, self._within(values + share * self._span * (position - slot)), values)
            injected |= drifts.astype(np.uint8) * np.uint8(Injected.DRIFT)
        if self._rates.spikes > 0.0:
            slot = (time_s / self._spike_s + self._phase).astype(np.uint64)
            spiked = able & (uniforms(self._seed, _Stream.SPIKE, self._keys, slot) < self._rates.spikes)
            share = 0.3 + 0.6 * uniforms(self._seed, _Stream.SPIKE_SIZE, self._keys, slot)
            leap = np.where(values < self._middle, share, -share) * self._span
            values = np.where(spiked, self._within(values + leap), values)
            injected |= spiked.astype(np.uint8) * np.uint8(Injected.SPIKE)
        return values, injected

    def _within(self, values: Floats) -> Floats:
        """Saturate at the ends of each sensor's range."""
        return np.minimum(np.maximum(values, self._low), self._high)


@dataclass(frozen=True, slots=True)
class LinkFaults:
    """Loss of whole responses of one machine's link."""

    seed: int
    rates: Rates
    key: int

    def lost(self, request: int) -> Loss:
        """Tell what becomes of the response to this machine's request number `request`, counted from 0."""
        if self.rates.loss <= 0.0 or uniform(self.seed, _Stream.LOSS, self.key, request) >= self.rates.loss:
            return Loss.NONE
        reset = uniform(self.seed, _Stream.RESET, self.key, request) < RESET_SHARE
        return Loss.RESET if reset else Loss.DROP
