"""Polls one device for ever, at its own pace: a task per device, so that a dead one delays nobody.

In: an adapter. Out: frames, handed to `deliver`, whose `series` column holds rows of the agent's series table.
While the device cannot be reached, tries back off to at most RETRY_MAX_S; every try still yields bad readings.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from common.clock import Clock
from common.model import ReadingFrame, StatusCode, is_bad
from edge_agent.adapters.contract import Adapter

log = structlog.get_logger()

RETRY_MAX_S = 10.0
_NO_ANSWER = (StatusCode.BAD_NO_COMMUNICATION, StatusCode.BAD_TIMEOUT)


@dataclass(slots=True)
class DeviceState:
    """What is known of a device now, for health, metrics and people."""

    name: str
    points: int
    polls: int = 0
    overruns: int = 0
    bad_points: int = 0
    last_good_us: int | None = None
    last_error: str | None = None
    poll_seconds: float = 0.0
    connected: bool = field(default=False)

    @property
    def words(self) -> str:
        """Say in one word how the device is doing."""
        if not self.polls:
            return "starting"
        if not self.bad_points:
            return "good"
        return "partly bad" if self.bad_points < self.points else "bad"


@dataclass(frozen=True, slots=True)
class Pace:
    """When a device is polled: every `interval_s`, first after `phase_s` (devices are spread over an interval)."""

    interval_s: float
    phase_s: float = 0.0


async def poll_device(
    adapter: Adapter,
    rows: NDArray[np.int32],
    pace: Pace,
    state: DeviceState,
    deliver: Callable[[ReadingFrame], None],
    clock: Clock,
    stop: asyncio.Event,
) -> None:
    """Poll until `stop`, letting a poll in progress end; `rows` is int32[points], the row of each of its tags."""
    due = clock.monotonic() + pace.phase_s
    failures = 0
    async with adapter:
        while not await _stopped(stop, due - clock.monotonic()):
            started = clock.monotonic()
            frame = await adapter.poll()
            state.poll_seconds = clock.monotonic() - started
            _note(state, frame, adapter.last_error)
            deliver(ReadingFrame(rows[frame.series], frame.ts_us, frame.values, frame.statuses))
            failures = 0 if state.connected else failures + 1
            due += pace.interval_s
            if failures:
                due = max(due, started + min(RETRY_MAX_S, pace.interval_s * 2.0 ** min(failures - 1, 16)))
            elif due < clock.monotonic():
                missed = int((clock.monotonic() - due) / pace.interval_s) + 1
                state.overruns += missed
                due += missed * pace.interval_s


async def _stopped(stop: asyncio.Event, within_s: float) -> bool:
    """Wait `within_s`; return early, and True, when `stop` is set."""
    try:
        async with asyncio.timeout(max(0.0, within_s)):
            await stop.wait()
    except TimeoutError:
        return False
    return True


def _note(state: DeviceState, frame: ReadingFrame, error: str | None) -> None:
    bad = int(np.count_nonzero(is_bad(frame.statuses)))
    state.connected = not (len(frame) and bool(np.all(np.isin(frame.statuses, _NO_ANSWER))))
    if bad < len(frame):
        state.last_good_us = int(frame.ts_us[~is_bad(frame.statuses)].max())
    if error != state.last_error or (bad == 0) != (state.bad_points == 0):
        if error:
            log.warning("device.bad", device=state.name, bad_points=bad, points=len(frame), why=error)
        elif state.polls:
            log.info("device.recovered", device=state.name, points=len(frame))
    state.polls += 1
    state.bad_points = bad
    state.last_error = error
