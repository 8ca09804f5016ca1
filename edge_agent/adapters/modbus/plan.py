"""The request plan: which registers to ask for together. Pure.

Points of one table are sorted by address; neighbours share a request while the gap between them is at most `gap_max`
unused registers and the request stays within the device's limit. A point is never split over two requests, so a
32- or 64-bit value is never torn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_agent.adapters.contract import Plan
from edge_agent.adapters.modbus.config import ModbusDevice, ModbusTag, Table


@dataclass(frozen=True, slots=True)
class Request:
    """One read: `count` registers or bits from `number` on; `points` are indexes of the device's tags it serves."""

    table: Table
    number: int
    count: int
    points: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.table}:{self.number}-{self.number + self.count - 1}"


def plan_requests(device: ModbusDevice) -> tuple[Request, ...]:
    """Merge the device's tags into few requests, in order of table and address."""
    requests: list[Request] = []
    for table in Table:
        points = [(tag.number, tag.number + tag.width, index) for index, tag in _of_table(device.tags, table)]
        limit = device.bits_per_request_max if table.is_bits else device.registers_per_request_max
        requests += _merge(table, sorted(points), limit, device.gap_max)
    return tuple(requests)


def describe(device: ModbusDevice, requests: Sequence[Request]) -> Plan:
    """Put the plan in words."""
    lines = tuple(f"{request}: {request.count} {_noun(request)}, {len(request.points)} points" for request in requests)
    return Plan(len(requests), len(device.tags), lines)


def _of_table(tags: Sequence[ModbusTag], table: Table) -> Iterable[tuple[int, ModbusTag]]:
    return ((index, tag) for index, tag in enumerate(tags) if tag.table is table)


def _merge(table: Table, points: Sequence[tuple[int, int, int]], limit: int, gap_max: int) -> list[Request]:
    requests: list[Request] = []
    members: list[int] = []
    start = end = 0
    for low, high, index in points:
        if members and (low - end > gap_max or max(end, high) - start > limit):
            requests.append(Request(table, start, end - start, tuple(members)))
            members = []
        if not members:
            start, end = low, high
        members.append(index)
        end = max(end, high)
    if members:
        requests.append(Request(table, start, end - start, tuple(members)))
    return requests


def _noun(request: Request) -> str:
    return "bits" if request.table.is_bits else "registers"
