"""The agent's table of series: one row for each tag of each device, ordered so that each lane is a slice.

A *lane* is the ordered sequence of batches of one machine on one route. Rows are dense int32 indexes, agent-wide;
alias = row - first row of its lane.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.clock import US_PER_SECOND
from common.model import Route, SeriesDefinition
from edge_agent.config import DeviceConfig, TagConfig


@dataclass(frozen=True, slots=True)
class Lane:
    """One machine on one route; its series are rows `first` to `first + len(series) - 1`."""

    machine_id: str
    route: Route
    first: int
    series: tuple[SeriesDefinition, ...]


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """All series of an agent.

    Attributes:
        lanes: in row order, together covering every row.
        lane_starts: int64[lanes + 1], first row of each lane, then the number of rows.
        rows_of_device: per device in config order, int32[its tags]: the row of each tag.
        deadband: float64[rows], absolute; NaN where every poll is reported.
        interval_min_us: int64[rows], how soon a moved value may be reported again; 0 at once.
        heartbeat_us: int64[rows], 0 where there is none.
        swinging_door: float64[rows], its bound; NaN where the filter is not used.
        max_error: float64[rows], how far off values may be stored; 0 where they are exact or have a resolution.
        resolution: float64[rows], values are stored as multiples of it; 0 where they are not.
    """

    lanes: tuple[Lane, ...]
    lane_starts: NDArray[np.int64]
    rows_of_device: tuple[NDArray[np.int32], ...]
    deadband: NDArray[np.float64]
    interval_min_us: NDArray[np.int64]
    heartbeat_us: NDArray[np.int64]
    swinging_door: NDArray[np.float64]
    max_error: NDArray[np.float64]
    resolution: NDArray[np.float64]

    def __len__(self) -> int:
        return self.deadband.size


def build_series_table(devices: Sequence[DeviceConfig]) -> SeriesTable:
    """Number every tag of `devices`, grouping by (machine, route) in order of first appearance."""
    members: dict[tuple[str, Route], list[tuple[int, int, DeviceConfig, TagConfig]]] = {}
    for index, device in enumerate(devices):
        for position, tag in enumerate(device.tags):
            members.setdefault((device.machine_of(tag), device.route), []).append((index, position, device, tag))
    lanes: list[Lane] = []
    rows = [np.empty(len(device.tags), np.int32) for device in devices]
    tags: list[TagConfig] = []
    for (machine_id, route), points in members.items():
        first = len(tags)
        definitions: list[SeriesDefinition] = []
        for alias, (index, position, device, tag) in enumerate(points):
            rows[index][position] = first + alias
            definitions.append(_definition(alias, device, tag))
            tags.append(tag)
        lanes.append(Lane(machine_id, route, first, tuple(definitions)))
    return SeriesTable(
        lanes=tuple(lanes),
        lane_starts=np.array([lane.first for lane in lanes] + [len(tags)], np.int64),
        rows_of_device=tuple(rows),
        deadband=np.array([np.nan if tag.deadband is None else tag.deadband for tag in tags], np.float64),
        interval_min_us=np.array([_as_us(tag.interval_min_s) for tag in tags], np.int64),
        heartbeat_us=np.array([_as_us(tag.heartbeat_s) for tag in tags], np.int64),
        swinging_door=np.array([tag.swinging_door or np.nan for tag in tags], np.float64),
        max_error=np.array([tag.max_error or 0.0 for tag in tags], np.float64),
        resolution=np.array([tag.resolution or 0.0 for tag in tags], np.float64),
    )


def _definition(alias: int, device: DeviceConfig, tag: TagConfig) -> SeriesDefinition:
    return SeriesDefinition(
        alias=alias,
        tag=tag.name,
        sensor_type=tag.sensor_type,
        unit=tag.unit,
        mode=tag.mode,
        poll_interval_us=round(device.poll_interval_s * US_PER_SECOND),
        deadband=tag.deadband or 0.0,
        heartbeat_us=_as_us(tag.heartbeat_s),
        max_error=tag.bound,
    )


def _as_us(seconds: float | None) -> int:
    return round((seconds or 0.0) * US_PER_SECOND)
