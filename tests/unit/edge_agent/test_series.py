"""The series table: dense rows, lanes as slices, whatever the order of devices and tags."""

import numpy as np

from common.model import ReportMode, Route
from edge_agent.series import build_series_table
from tests.unit.edge_agent.samples import modbus_device


def test_lanes_are_slices_that_cover_every_row() -> None:
    devices = [
        modbus_device([{"address": "holding:0"}, {"address": "holding:1", "machine_id": "y"}], name="x"),
        modbus_device([{"address": "holding:0"}], name="z", route="batch", machine_id="x"),
        modbus_device([{"address": "holding:0", "name": "u"}, {"address": "holding:1", "name": "v"}], name="y"),
    ]
    table = build_series_table(devices)
    assert [(lane.machine_id, lane.route, [one.tag for one in lane.series]) for lane in table.lanes] == [
        ("x", Route.STREAM, ["t0"]), ("y", Route.STREAM, ["t1", "u", "v"]), ("x", Route.BATCH, ["t0"]),
    ]  # fmt: skip
    assert table.lane_starts.tolist() == [0, 1, 4, 5]
    assert [rows.tolist() for rows in table.rows_of_device] == [[0, 1], [4], [2, 3]]
    assert [[one.alias for one in lane.series] for lane in table.lanes] == [[0], [0, 1, 2], [0]]
    assert len(table) == 5


def test_definitions_say_how_a_tag_reports() -> None:
    device = modbus_device(
        [
            {"address": "holding:0"},
            {"address": "holding:1", "deadband_absolute": 0.5, "heartbeat_s": 60, "unit": "bar", "sensor_type": "p"},
            {"address": "holding:2", "deadband_percent": 2.0, "range": [-50, 150]},
        ],
        poll_interval_s=0.25,
    )
    table = build_series_table([device])
    plain, absolute, percent = table.lanes[0].series
    assert (plain.mode, plain.deadband, plain.heartbeat_us, plain.poll_interval_us) == (
        ReportMode.PERIODIC, 0.0, 0, 250_000,
    )  # fmt: skip
    assert (absolute.mode, absolute.deadband, absolute.heartbeat_us) == (
        ReportMode.REPORT_BY_EXCEPTION, 0.5, 60_000_000,
    )  # fmt: skip
    assert (absolute.unit, absolute.sensor_type) == ("bar", "p")
    assert percent.deadband == 4.0
    assert np.isnan(table.deadband[0])
    assert table.deadband[1:].tolist() == [0.5, 4.0]
    assert table.heartbeat_us.tolist() == [0, 60_000_000, 0]
