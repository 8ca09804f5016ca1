"""The filters of all tags, in their order: deadband first, then the swinging door where a tag has one.

A tag has one or the other (config.py sees to it); what a tag does not have lets everything pass.
"""

import numpy as np

from common.model import ReadingFrame
from edge_agent.filters.deadband import DeadbandFilter
from edge_agent.filters.swinging_door import SwingingDoorFilter
from edge_agent.series import SeriesTable


class TagFilters:
    """One state row a series; `apply` each frame as it comes, `flush` before a stop."""

    def __init__(self, table: SeriesTable) -> None:
        self._deadband = DeadbandFilter(table.deadband, table.heartbeat_us, table.interval_min_us)
        has_door = not np.isnan(table.swinging_door).all()
        self._door = SwingingDoorFilter(table.swinging_door, table.heartbeat_us) if has_door else None

    def apply(self, frame: ReadingFrame) -> ReadingFrame:
        """Return the readings that pass now; a swinging door may hold one a series back for a later call."""
        passed = self._deadband.apply(frame)
        return passed if self._door is None else self._door.apply(passed)

    def flush(self) -> ReadingFrame:
        """Return what is held back."""
        return ReadingFrame.empty() if self._door is None else self._door.flush()
