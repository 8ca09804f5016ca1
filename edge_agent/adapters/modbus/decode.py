"""From the registers or bits of one response to engineering values, vectorised. Pure.

The four byte and word orders of the field: ABCD = big/big, CDAB = word_order little, BADC = byte_order little,
DCBA = both little.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapters.modbus.config import ModbusDevice, ModbusTag, ValueType
from edge_agent.adapters.modbus.plan import Request


class _Group:
    """Points of a request that are decoded alike: `places` in the request's point order, register `index`[n, w]."""

    def __init__(self, kind: ValueType, swap_bytes: bool, places: list[int], index: NDArray[np.intp]) -> None:  # noqa: FBT001
        self.dtype = np.dtype(f">{kind.value[0]}{kind.registers * 2}")
        self.swap_bytes = swap_bytes
        self.places = np.array(places)
        self.index = index

    def decode(self, registers: NDArray[np.uint16]) -> NDArray[np.float64]:
        words = registers[self.index]
        if self.swap_bytes:
            words = words.byteswap()
        with np.errstate(invalid="ignore"):  # a signalling NaN
            values: NDArray[np.float64] = words.astype(">u2").view(self.dtype).ravel().astype(np.float64)
        return values


class ResponseDecoder:
    """Decodes every response to one request; made once, with the plan."""

    def __init__(self, device: ModbusDevice, request: Request) -> None:
        """Group the request's points by type and order."""
        tags = [device.tags[index] for index in request.points]
        self._scale = np.array([tag.scale for tag in tags])
        self._offset = np.array([tag.offset for tag in tags])
        self._has_offset = self._offset != 0.0
        self._is_bits = request.table.is_bits
        self._bit_places = np.array([place for place, tag in enumerate(tags) if tag.type is ValueType.BOOL], np.intp)
        self._bit_index = np.array([tags[place].number - request.number for place in self._bit_places], np.intp)
        self._bit_shift = np.array([tags[place].bit or 0 for place in self._bit_places], np.uint16)
        self._groups = _groups(device, request, tags)

    def decode(self, data: Sequence[int]) -> NDArray[np.float64]:
        """Return float64[points]: engineering values in the order of the request's points.

        `data` holds at least the request's count of registers (0..65535) or bits.
        """
        raw = np.empty(self._scale.size, np.float64)
        registers = np.asarray(data, np.uint16)
        if self._bit_places.size:
            words = registers[self._bit_index]
            raw[self._bit_places] = words if self._is_bits else (words >> self._bit_shift) & 1
        for group in self._groups:
            raw[group.places] = group.decode(registers)
        raw *= self._scale
        np.add(raw, self._offset, out=raw, where=self._has_offset)  # -0.0 + 0.0 would be +0.0
        return raw


def _groups(device: ModbusDevice, request: Request, tags: Sequence[ModbusTag]) -> list[_Group]:
    places_of: dict[tuple[ValueType, str, str], list[int]] = {}
    for place, tag in enumerate(tags):
        if tag.type is not ValueType.BOOL:
            key = (tag.type, tag.byte_order or device.byte_order, tag.word_order or device.word_order)
            places_of.setdefault(key, []).append(place)
    groups = []
    for (kind, byte_order, word_order), places in places_of.items():
        words = np.arange(kind.registers)
        if word_order == "little":
            words = words[::-1]
        starts = np.array([tags[place].number - request.number for place in places])
        groups.append(_Group(kind, byte_order == "little", places, starts[:, None] + words))
    return groups
