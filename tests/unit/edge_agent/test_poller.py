"""The poller: its own pace, backoff while nobody answers, and it never takes anybody else with it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from common.clock import SystemClock
from common.config import FrozenModel
from common.model import ReadingFrame, StatusCode
from edge_agent import poller
from edge_agent.adapters.contract import Plan
from edge_agent.poller import DeviceState, Pace, poll_device
from tests.unit.edge_agent.samples import FakeClock

GOOD, SILENT, GONE = 0, StatusCode.BAD_TIMEOUT, StatusCode.BAD_NO_COMMUNICATION


class ScriptedAdapter:
    """Polls that take some (fake) seconds and give some status codes."""

    device_model: ClassVar[type[FrozenModel]] = FrozenModel
    plan = Plan(1, 2)

    def __init__(self, clock: FakeClock, script: Callable[[int], tuple[float, list[int]]]) -> None:
        self.clock, self.script = clock, script
        self.last_error: str | None = None
        self.polled_at: list[float] = []
        self.entered = self.left = 0

    async def __aenter__(self) -> Self:
        self.entered += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left += 1

    async def poll(self) -> ReadingFrame:
        self.polled_at.append(round(self.clock.seconds, 6))
        seconds, statuses = self.script(len(self.polled_at))
        self.clock.seconds += seconds
        self.last_error = "it is bad" if any(statuses) else None
        return ReadingFrame(
            np.array([1, 0], np.int32), np.array([5, 6], np.int64), np.zeros(2), np.array(statuses, np.int32)
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """A clock that the poller's waits move on, so that hours pass at once."""
    made = FakeClock()

    async def stopped(stop: asyncio.Event, within_s: float) -> bool:
        made.seconds += max(0.0, within_s)
        await asyncio.sleep(0)
        return stop.is_set()

    monkeypatch.setattr(poller, "_stopped", stopped)
    return made


async def run(adapter: ScriptedAdapter, pace: Pace, polls: int) -> tuple[DeviceState, list[ReadingFrame]]:
    state, frames, stop = DeviceState("d", 2), list[ReadingFrame](), asyncio.Event()

    def deliver(frame: ReadingFrame) -> None:
        frames.append(frame)
        if len(frames) == polls:
            stop.set()

    await poll_device(adapter, np.array([7, 8], np.int32), pace, state, deliver, adapter.clock, stop)
    assert (adapter.entered, adapter.left) == (1, 1)
    return state, frames


async def test_polls_keep_the_interval_and_name_the_agents_rows(clock: FakeClock) -> None:
    adapter = ScriptedAdapter(clock, lambda _: (0.3, [GOOD, GOOD]))
    state, frames = await run(adapter, Pace(2.0, phase_s=0.5), 5)
    assert adapter.polled_at == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert frames[0].series.tolist() == [8, 7]
    assert (state.polls, state.overruns, state.words, state.connected) == (5, 0, "good", True)
    assert state.poll_seconds == pytest.approx(0.3)
    assert state.last_good_us == 6


async def test_polls_that_are_too_slow_are_skipped_and_counted(clock: FakeClock) -> None:
    adapter = ScriptedAdapter(clock, lambda number: (3.5 if number == 2 else 0.1, [GOOD, GOOD]))
    state, _ = await run(adapter, Pace(1.0), 4)
    assert adapter.polled_at == [0.0, 1.0, 5.0, 6.0]
    assert state.overruns == 3


@pytest.mark.parametrize("status", [SILENT, GONE])
async def test_tries_back_off_while_nobody_answers(clock: FakeClock, status: int) -> None:
    adapter = ScriptedAdapter(clock, lambda number: (0.0, [status] * 2 if number <= 7 else [GOOD] * 2))
    state, frames = await run(adapter, Pace(1.0), 10)
    gaps = [round(after - before) for before, after in zip(adapter.polled_at, adapter.polled_at[1:], strict=False)]
    assert gaps == [1, 2, 4, 8, 10, 10, 10, 1, 1]
    assert (frames[3].statuses == status).all(), "every try still yields readings"
    assert (state.overruns, state.words) == (0, "good")


async def test_a_slow_interval_is_not_shortened_by_the_backoff(clock: FakeClock) -> None:
    adapter = ScriptedAdapter(clock, lambda _: (0.0, [GONE, GONE]))
    await run(adapter, Pace(60.0), 4)
    assert adapter.polled_at == [0.0, 60.0, 120.0, 180.0]


async def test_a_device_that_is_partly_bad_is_polled_as_ever(clock: FakeClock) -> None:
    adapter = ScriptedAdapter(clock, lambda _: (0.0, [GOOD, SILENT]))
    state, _ = await run(adapter, Pace(1.0), 4)
    assert adapter.polled_at == [0.0, 1.0, 2.0, 3.0]
    assert (state.words, state.bad_points, state.connected, state.last_good_us) == ("partly bad", 1, True, 5)
    assert state.last_error == "it is bad"


async def test_a_change_of_state_is_said_once(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = ScriptedAdapter(clock, lambda number: (0.0, [GONE] * 2 if 3 <= number <= 6 else [GOOD] * 2))
    await run(adapter, Pace(1.0), 9)
    said = capsys.readouterr().out
    assert said.count("device.bad") == 1
    assert said.count("device.recovered") == 1


async def started(poll: Awaitable[Any]) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(poll)
    await asyncio.sleep(0.02)
    return task


async def test_a_stop_is_noticed_while_waiting() -> None:
    adapter = ScriptedAdapter(FakeClock(), lambda _: (0.0, [GOOD, GOOD]))
    stop = asyncio.Event()
    rows = np.array([0, 1], np.int32)
    running = await started(
        poll_device(adapter, rows, Pace(3600.0), DeviceState("d", 2), lambda _: None, SystemClock(), stop)
    )
    stop.set()
    await asyncio.wait_for(running, 1)
    assert adapter.left == 1
