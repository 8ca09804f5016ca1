"""The forwarding thread over links that do as they please."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.errors import ServiceError
from common.model import Route
from common.wire import BIRTH, decode, encode_birth_body
from edge_agent.batching import DraftBatch
from edge_agent.buffer.buffer import Buffer, BufferLimits
from edge_agent.metrics import EdgeMetrics
from edge_agent.uplink import uplink as module
from edge_agent.uplink.uplink import InFlight, Uplink
from tests.integration.waiting import wait_until
from tests.unit.edge_agent.samples import FakeClock


def message(machine_id: str, size: int) -> DraftBatch:
    return DraftBatch(BIRTH, machine_id, Route.STREAM, 0, 0, 1, encode_birth_body("s" * size, "", ())[1])


class FakeLink:
    """Says yes to everything; subclasses do not."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.up = True
        self.last_error: str | None = None
        self.waiting: list[int] = []

    def send(self, topic: str, key: str, payload: bytes, position: int) -> None:
        _, record = decode(payload)
        assert (topic, key) == (f"forebay.{record['route']}", record["machine_id"])
        self.world.sent.append((key, record["seq"], record["delivery"]["replayed"], position))
        self.world.in_flight[position] = len(payload)
        self.world.most_in_flight = max(self.world.most_in_flight, sum(self.world.in_flight.values()))
        self.world.most_batches = max(self.world.most_batches, len(self.world.in_flight))
        self.waiting.append(position)

    def poll(self, timeout_s: float) -> list[int]:
        time.sleep(min(timeout_s, 0.005))
        return self.taken(len(self.waiting))

    def taken(self, count: int) -> list[int]:
        safe, self.waiting = self.waiting[:count], self.waiting[count:]
        for position in safe:
            del self.world.in_flight[position]
        return safe

    def close(self) -> None:
        self.world.in_flight.clear()
        self.world.closed += 1


class World:
    def __init__(self, folder: Path) -> None:
        self.buffer = Buffer(folder, BufferLimits(segment_mb=0.2), FakeClock())
        self.metrics = EdgeMetrics()
        self.sent: list[tuple[str, int, bool, int]] = []
        self.in_flight: dict[int, int] = {}
        self.most_in_flight = self.most_batches = self.closed = self.connects = 0
        self.links: Callable[[int], FakeLink] = lambda _: FakeLink(self)
        self.uplink: Uplink | None = None

    def connect(self) -> FakeLink:
        self.connects += 1
        return self.links(self.connects)

    def start(self, batches_max: int = 100, bytes_max: int = 1_000_000) -> Uplink:
        limits = InFlight(batches_max, bytes_max)
        self.uplink = Uplink(self.buffer, self.connect, "agent", limits, self.metrics, SystemClock())
        self.uplink.start()
        return self.uplink

    def accept(self, batches: int, size: int = 100) -> None:
        for _ in range(batches):
            self.buffer.accept([message(machine_id, size) for machine_id in ("a", "b")])
        if self.uplink is not None:
            self.uplink.wake()

    @property
    def waiting(self) -> int:
        return self.buffer.status().waiting_batches


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    if made.uplink is not None:
        assert made.uplink.stop(0.1)
    made.buffer.close()


def test_everything_is_sent_once_and_in_order(world: World) -> None:
    world.accept(50)
    uplink = world.start()
    world.accept(50)
    wait_until(lambda: world.waiting == 0)
    assert [position for *_, position in world.sent] == list(range(200))
    assert [seq for key, seq, *_ in world.sent if key == "a"] == list(range(1, 101))
    assert not any(replayed for _, _, replayed, _ in world.sent)
    assert uplink.up
    assert uplink.last_error is None


def test_what_waited_through_a_restart_is_marked_replayed(world: World, tmp_path: Path) -> None:
    world.accept(2)
    world.buffer.close()
    world.buffer = Buffer(tmp_path, BufferLimits(), FakeClock())
    world.start()
    world.accept(1)
    wait_until(lambda: world.waiting == 0)
    assert [replayed for _, _, replayed, _ in world.sent] == [True] * 4 + [False] * 2


def test_what_is_in_flight_is_bounded(world: World) -> None:
    class Slow(FakeLink):
        def poll(self, timeout_s: float) -> list[int]:
            time.sleep(min(timeout_s, 0.001))
            return self.taken(1)

    world.links = lambda _: Slow(world)
    world.accept(60, size=3000)
    world.start(batches_max=7, bytes_max=12_000)
    wait_until(lambda: world.waiting == 0)
    assert world.most_batches <= 7
    assert world.most_in_flight <= 12_000 + 4 * 100  # bodies are what is bounded, each has a head
    assert len(world.sent) == 120


def test_a_batch_above_the_limit_goes_alone(world: World) -> None:
    world.accept(3, size=50_000)
    world.start(bytes_max=10_000)
    wait_until(lambda: world.waiting == 0)
    assert world.most_batches == 1


def test_after_a_broken_link_the_same_seqs_go_again_marked_replayed(world: World) -> None:
    class Breaks(FakeLink):
        def poll(self, timeout_s: float) -> list[int]:
            time.sleep(min(timeout_s, 0.001))
            if len(self.waiting) >= 10:
                raise ServiceError("broker: gone")
            return []

    world.links = lambda number: Breaks(world) if number == 1 else FakeLink(world)
    world.accept(5)
    world.start()
    wait_until(lambda: world.waiting == 0)
    first, again = world.sent[:10], world.sent[10:]
    assert [(key, seq) for key, seq, *_ in again] == [(key, seq) for key, seq, *_ in first]
    assert not any(replayed for _, _, replayed, _ in first)
    assert all(replayed for _, _, replayed, _ in again)
    assert world.closed == 1


def test_acknowledgements_out_of_order(world: World) -> None:
    class Backwards(FakeLink):
        def taken(self, count: int) -> list[int]:
            self.waiting.reverse()
            return super().taken(count)

    world.links = lambda _: Backwards(world)
    world.accept(20)
    world.start()
    wait_until(lambda: world.waiting == 0)
    assert len(world.sent) == 40


def test_a_broker_that_refuses_everything_is_not_asked_in_a_hurry(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message too large, the topic missing: each new link fails the same way."""

    class Refuses(FakeLink):
        def poll(self, timeout_s: float) -> list[int]:
            time.sleep(min(timeout_s, 0.001))
            if self.waiting:
                raise ServiceError("broker: batch at 0 of forebay.stream was not taken: Message size too large")
            return []

    world.links = lambda _: Refuses(world)
    monkeypatch.setattr(module, "BACKOFF_MIN_S", 0.05)
    world.accept(1)
    uplink = world.start()
    started = time.monotonic()
    wait_until(lambda: world.connects >= 4)
    assert time.monotonic() - started >= 0.1 + 0.2 + 0.4
    assert uplink.last_error is not None
    assert "Message size too large" in uplink.last_error
    assert not uplink.up
    assert world.waiting == 2


def test_a_connection_that_cannot_be_made_is_tried_again(world: World) -> None:
    def links(number: int) -> FakeLink:
        if number < 3:
            raise ServiceError("broker: no such host")
        return FakeLink(world)

    world.links = links
    world.accept(1)
    uplink = world.start()
    wait_until(lambda: uplink.last_error == "broker: no such host")
    wait_until(lambda: world.waiting == 0)


def test_an_unexpected_error_does_not_end_the_forwarding(world: World) -> None:
    class Odd(FakeLink):
        def poll(self, timeout_s: float) -> list[int]:
            raise RuntimeError(f"a bug after {timeout_s} s")

    world.links = lambda number: Odd(world) if number == 1 else FakeLink(world)
    world.accept(1)
    world.start()
    wait_until(lambda: world.waiting == 0)
    assert world.metrics.registry.get_sample_value("forebay_edge_uplink_crashes_total") == 1


def test_a_broker_is_said_to_be_down_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    class Down(FakeLink):
        tries = 0

        def poll(self, timeout_s: float) -> list[int]:
            time.sleep(min(timeout_s, 0.001))
            Down.tries += 1
            self.up, self.last_error = False, f"Connection refused ({Down.tries} identical errors suppressed)"
            return []

    world.links = lambda _: Down(world)
    world.accept(1)
    world.start()
    wait_until(lambda: Down.tries > 20)
    assert capsys.readouterr().out.count("uplink.down") == 1


def test_stop_sends_what_is_left(world: World) -> None:
    uplink = world.start()
    world.accept(100)
    assert uplink.stop(5.0)
    assert world.waiting == 0
    world.uplink = None


@pytest.mark.parametrize(("up", "at_most_s"), [(True, 1.6), (False, 1.3)])
def test_stop_does_not_wait_for_a_silent_broker(
    world: World, monkeypatch: pytest.MonkeyPatch, *, up: bool, at_most_s: float
) -> None:
    class Silent(FakeLink):
        def poll(self, timeout_s: float) -> list[int]:
            self.up = up
            time.sleep(min(timeout_s, 0.005))
            return []

    monkeypatch.setattr(module, "STOP_WHEN_DOWN_S", 0.7)
    world.links = lambda _: Silent(world)
    world.accept(10)
    uplink = world.start()
    wait_until(lambda: len(world.sent) == 20)
    started = time.monotonic()
    assert uplink.stop(1.3)
    assert time.monotonic() - started < at_most_s
    assert world.waiting == 20
    world.uplink = None


def test_stop_leaves_a_thread_that_hangs_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    class Hangs(FakeLink):
        def poll(self, timeout_s: float) -> list[int]:
            let_go.wait(10 + timeout_s)
            return []

    monkeypatch.setattr(module, "JOIN_EXTRA_S", 0.2)
    world.links = lambda _: Hangs(world)
    world.accept(1)
    uplink = world.start()
    wait_until(lambda: len(world.sent) == 2)
    assert not uplink.stop(0.2)
    world.buffer.close()
    let_go.set()
    wait_until(lambda: not uplink._thread.is_alive())
