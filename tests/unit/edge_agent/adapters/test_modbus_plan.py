"""The request plan: every point in exactly one request, whole, within the limits, and no request too many."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.adapters.modbus.plan import Request, describe, plan_requests
from tests.unit.edge_agent.samples import modbus_device

TYPES = {"int16": 1, "uint16": 1, "int32": 2, "float32": 2, "int64": 4, "float64": 4}


@st.composite
def tags(draw: st.DrawFn) -> list[dict[str, Any]]:
    crowd = draw(st.sampled_from([60, 600, 65_000]))
    made: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 60))):
        table = draw(st.sampled_from(["holding", "input", "coil", "discrete"]))
        number = draw(st.integers(0, crowd))
        if table in {"coil", "discrete"}:
            made.append({"address": f"{table}:{number}", "type": "bool"})
        elif draw(st.booleans()):
            made.append({"address": f"{table}:{number}", "type": draw(st.sampled_from(sorted(TYPES)))})
        else:
            made.append({"address": f"{table}:{number}", "type": "bool", "bit": draw(st.integers(0, 15))})
    return made


@given(tags(), st.integers(0, 124), st.integers(4, 125), st.integers(1, 2000))
def test_every_point_is_in_exactly_one_request_and_whole(
    points: list[dict[str, Any]], gap_max: int, registers_max: int, bits_max: int
) -> None:
    device = modbus_device(
        points, gap_max=gap_max, registers_per_request_max=registers_max, bits_per_request_max=bits_max
    )
    requests = plan_requests(device)
    served = sorted(index for request in requests for index in request.points)
    assert served == list(range(len(points)))
    for request in requests:
        assert 1 <= request.count <= (bits_max if request.table.is_bits else registers_max)
        read = set(range(request.number, request.number + request.count))
        wanted: set[int] = set()
        for index in request.points:
            tag = device.tags[index]
            assert tag.table is request.table
            wanted |= set(range(tag.number, tag.number + tag.width))
        assert wanted <= read, "a value is torn, or not read"
        assert {min(read), max(read)} <= wanted, "registers are read at the ends that nobody wants"
        holes = sorted(read - wanted)
        runs = "".join("x" if number in wanted else " " for number in sorted(read)).split("x")
        assert all(len(run) <= gap_max for run in runs), holes


@given(tags(), st.integers(0, 124), st.integers(4, 125))
def test_two_neighbouring_requests_could_not_have_been_one(
    points: list[dict[str, Any]], gap_max: int, registers_max: int
) -> None:
    device = modbus_device(points, gap_max=gap_max, registers_per_request_max=registers_max)
    by_table: dict[str, list[Request]] = {}
    for request in plan_requests(device):
        by_table.setdefault(request.table, []).append(request)
    for requests in by_table.values():
        for before, after in pairwise(requests):
            first = min(device.tags[index].number for index in after.points)
            width = max(device.tags[i].width for i in after.points if device.tags[i].number == first)
            limit = 2000 if before.table.is_bits else registers_max
            gap = after.number - (before.number + before.count)
            assert gap > gap_max or first + width - before.number > limit or width > 1


@pytest.mark.parametrize(
    ("count", "kind", "requests"),
    [
        (498, "int16", 4),
        (500, "uint16", 4),
        (501, "uint16", 5),
        (62, "float32", 1),
        (63, "float32", 2),
        (1, "int64", 1),
    ],
)
def test_contiguous_points_take_as_few_requests_as_can_be(count: int, kind: str, requests: int) -> None:
    width = TYPES[kind]
    device = modbus_device([{"address": f"holding:{n * width}", "type": kind} for n in range(count)])
    assert len(plan_requests(device)) == requests


def test_coils_go_2000_at_a_time() -> None:
    device = modbus_device([{"address": f"coil:{n}", "type": "bool"} for n in range(4001)])
    assert [request.count for request in plan_requests(device)] == [2000, 2000, 1]


def test_several_points_may_share_registers() -> None:
    device = modbus_device(
        [
            *({"address": "holding:7", "type": "bool", "bit": bit} for bit in range(16)),
            {"address": "holding:6", "type": "uint32"},
        ]
    )
    (request,) = plan_requests(device)
    assert (request.number, request.count, len(request.points)) == (6, 2, 17)


def test_the_plan_in_words() -> None:
    device = modbus_device([{"address": f"input:{n}"} for n in range(498)])
    plan = describe(device, plan_requests(device))
    assert str(plan) == "4 requests for 498 points"
    assert plan.lines[0] == "input:0-124: 125 registers, 125 points"
    one = modbus_device([{"address": "coil:3", "type": "bool"}])
    assert str(describe(one, plan_requests(one))) == "1 request for 1 points"
