"""The register map of a plant: where each tag lies, and how its value becomes bytes.

In: machines with their tags, then engineering values, float64[tags] in map order. Out: an Image (all bytes of all
machines at one moment, immutable, so that a response can never hold half of a value) and the engineering values that a
correct agent decodes from it. Fails with ConfigError where tags overlap or do not fit 65,536 registers.

Map order is machine, space, address. Engineering value = raw * scale + offset in float64; where scale is 1 and offset 0
that is the raw value itself, bit for bit (-0.0 stays -0.0).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, Problem

Floats = NDArray[np.float64]
Order = Literal["big", "little"]

REGISTERS_MAX = 65_536


class Space(StrEnum):
    """The four address spaces of Modbus, by the words of the agent's config."""

    HOLDING = "holding"
    INPUT = "input"
    COIL = "coil"
    DISCRETE = "discrete"

    @property
    def is_bits(self) -> bool:
        """Whether an address names one bit, not a register of 16."""
        return self in {Space.COIL, Space.DISCRETE}


class ValueType(StrEnum):
    """The types the plant uses, by the words of the agent's config."""

    BOOL = "bool"
    INT16 = "int16"
    UINT16 = "uint16"
    UINT32 = "uint32"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The raw value's type as it stands in memory, most significant byte first."""
        return np.dtype("u1" if self is ValueType.BOOL else self.value).newbyteorder(">")

    @property
    def addresses(self) -> int:
        """How many addresses (registers, or bits) one value takes."""
        return max(self.dtype.itemsize // 2, 1)


@dataclass(frozen=True, slots=True)
class Tag:
    """One named point of a machine.

    `resolution_inverse` is how many steps of its resolution make one unit (10 = 0.1 steps), 0 where the sensor does not
    round. `low` and `high` are the sensor's range, NaN where it is no analogue sensor. `deadband` is what a config for
    this plant should say, None for none.
    """

    name: str
    space: Space
    address: int
    type: ValueType
    sensor_type: str
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    resolution_inverse: float = 0.0
    low: float = np.nan
    high: float = np.nan
    deadband: float | None = None

    @property
    def end(self) -> int:
        """The first address after this tag."""
        return self.address + self.type.addresses


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine behind one Modbus server: its name, the order of bytes and words, its tags in any order."""

    machine_id: str
    tags: tuple[Tag, ...]
    byte_order: Order = "big"
    word_order: Order = "big"


@dataclass(frozen=True, slots=True)
class Image:
    """All registers (two bytes each) and all bits (one byte each) of a plant at one moment."""

    registers: bytes
    bits: bytes


@dataclass(frozen=True, slots=True)
class Area:
    """One machine's part of one space: `size` addresses from 0, at `base` of the image (in addresses).

    `starts` and `ends` are its tags' addresses; they are rows `first_row` and following of the map.
    """

    base: int
    size: int
    first_row: int
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def covered(self, address: int, count: int) -> tuple[int, int]:
        """Return the rows [low, high) of the tags that lie wholly within `count` addresses from `address`."""
        low = bisect_left(self.starts, address)
        high = bisect_right(self.ends, address + count)
        return self.first_row + low, self.first_row + max(low, high)


@dataclass(frozen=True, slots=True)
class _Group:
    """All tags of one type; `places` are their bytes' positions in the image, [n, bytes of the type]."""

    type: ValueType
    rows: NDArray[np.intp]
    places: NDArray[np.intp]
    scale: Floats
    offset: Floats
    is_scaled: NDArray[np.bool_]
    resolution_inverse: Floats


class RegisterMap:
    """Where every tag of every machine lies; see the module."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = tuple(machines)
        self.areas: list[dict[Space, Area]] = []
        self.tags: list[Tag] = []
        self.machine_of: list[int] = []
        members: dict[ValueType, list[tuple[int, int, Machine]]] = {}
        registers = bits = 0
        for index, machine in enumerate(self.machines):
            areas: dict[Space, Area] = {}
            for space in Space:
                tags = sorted((tag for tag in machine.tags if tag.space is space), key=lambda tag: tag.address)
                size = _size_of(machine, space, tags)
                base = bits if space.is_bits else registers
                areas[space] = Area(
                    base, size, len(self.tags), tuple(tag.address for tag in tags), tuple(tag.end for tag in tags)
                )
                for tag in tags:
                    members.setdefault(tag.type, []).append((len(self.tags), base + tag.address, machine))
                    self.tags.append(tag)
                    self.machine_of.append(index)
                bits, registers = (bits + size, registers) if space.is_bits else (bits, registers + size)
            self.areas.append(areas)
        self._registers = np.zeros(registers * 2, np.uint8)
        self._bits = np.zeros(bits, np.uint8)
        self._groups = [self._group(type_, points) for type_, points in members.items()]

    def __len__(self) -> int:
        return len(self.tags)

    def _group(self, type_: ValueType, points: list[tuple[int, int, Machine]]) -> _Group:
        tags = [self.tags[row] for row, _, _ in points]
        return _Group(
            type_,
            np.array([row for row, _, _ in points], np.intp),
            np.array([_places(type_, at, machine) for _, at, machine in points], np.intp),
            np.array([tag.scale for tag in tags]),
            np.array([tag.offset for tag in tags]),
            np.array([(tag.scale, tag.offset) != (1.0, 0.0) for tag in tags]),
            np.array([tag.resolution_inverse for tag in tags]),
        )

    def raw(self, values: Floats) -> list[NDArray[Any]]:
        """Turn what the sensors show into raw register values, one array per type: rounded, scaled, saturated."""
        return [_raw(group, values[group.rows]) for group in self._groups]

    def pack(self, raw: list[NDArray[Any]]) -> Image:
        """Lay raw values out in bytes."""
        for group, numbers in zip(self._groups, raw, strict=True):
            target = self._bits if group.type is ValueType.BOOL else self._registers
            target[group.places] = numbers.view(np.uint8).reshape(group.places.shape)
        return Image(self._registers.tobytes(), self._bits.tobytes())

    def held(self, raw: list[NDArray[Any]]) -> Floats:
        """Return the engineering values, float64[tags], that a correct agent decodes from these raw values."""
        values = np.empty(len(self))
        for group, numbers in zip(self._groups, raw, strict=True):
            wide = numbers.astype(np.float64)
            if group.is_scaled.any():
                wide = np.where(group.is_scaled, wide * group.scale + group.offset, wide)
            values[group.rows] = wide
        return values


def _size_of(machine: Machine, space: Space, tags: list[Tag]) -> int:
    for before, after in pairwise(tags):
        if after.address < before.end:
            message = f"tags {before.name} and {after.name} overlap at {space}:{after.address}"
            raise ConfigError(f"machine {machine.machine_id}", [Problem("", message)])
    size = tags[-1].end if tags else 0
    if size > REGISTERS_MAX:
        message = f"its tags need {size} {space} addresses, Modbus has {REGISTERS_MAX}"
        raise ConfigError(f"machine {machine.machine_id}", [Problem("", message)])
    return size


def _places(type_: ValueType, at: int, machine: Machine) -> list[int]:
    """Return where each byte of a value goes, most significant first; `at` is its first address in the image."""
    if type_ is ValueType.BOOL:
        return [at]
    words = range(type_.addresses) if machine.word_order == "big" else range(type_.addresses - 1, -1, -1)
    in_word = (0, 1) if machine.byte_order == "big" else (1, 0)
    return [2 * (at + word) + byte for word in words for byte in in_word]


def _raw(group: _Group, values: Floats) -> NDArray[Any]:
    if group.resolution_inverse.any():
        inverse = np.where(group.resolution_inverse > 0.0, group.resolution_inverse, 1.0)
        values = np.where(group.resolution_inverse > 0.0, np.rint(values * inverse) / inverse, values)
    if group.is_scaled.any():
        values = np.where(group.is_scaled, (values - group.offset) / group.scale, values)
    dtype = group.type.dtype
    if group.type in {ValueType.FLOAT32, ValueType.FLOAT64}:
        return values.astype(dtype)
    highest = 1 if group.type is ValueType.BOOL else np.iinfo(dtype).max
    whole = np.clip(np.rint(np.nan_to_num(values)), 0 if group.type is ValueType.BOOL else np.iinfo(dtype).min, highest)
    return whole.astype(dtype)
