"""The buffer against a model that is a list: whatever the order of calls, crashes included, nothing goes missing."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from common.errors import BufferFullError
from common.model import Route
from edge_agent.buffer.buffer import Buffer, BufferLimits
from edge_agent.buffer.segment import StoredBatch
from tests.unit.edge_agent.samples import FakeClock, draft

LANES = [("a", Route.STREAM), ("a", Route.BATCH), ("b", Route.STREAM)]
drafts = st.lists(st.tuples(st.sampled_from(LANES), st.sampled_from([0, 10, 3000, 40_000])), min_size=1, max_size=12)


@dataclass
class Item:
    batch: StoredBatch
    acknowledged: bool = False


class BufferMachine(RuleBasedStateMachine):
    drop_oldest = True

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="forebay-buffer-"))
        self.lives = 0
        self.limits = BufferLimits(size_mb_max=1.0, history_mb_max=0.3, segment_mb=0.2, drop_oldest=self.drop_oldest)
        self.clock = FakeClock()
        self.buffer = Buffer(self.root / "0", self.limits, self.clock)
        self.items: list[Item] = []
        self.next_position = 0
        self.next_seq: dict[tuple[str, Route], int] = {}
        self.claimed_to = 0
        self.durable_front = 0
        self.dropped = 0
        self.epoch = self.buffer.status().epoch

    @rule(wanted=drafts)
    def accept(self, wanted: list[tuple[tuple[str, Route], int]]) -> None:
        self.clock.us += 1
        try:
            batches = self.buffer.accept([draft(*lane[:1], size=size, route=lane[1]) for lane, size in wanted])
        except BufferFullError:
            assert not self.drop_oldest
            assert sum(len(item.batch.body) for item in self.items) > 100_000
            return
        for (lane, size), batch in zip(wanted, batches, strict=True):
            seq = self.next_seq.get(lane, 1)
            assert (batch.position, batch.seq, batch.epoch) == (self.next_position, seq, self.epoch)
            assert (batch.machine_id, batch.route, len(batch.body)) == (*lane, size)
            self.next_seq[lane] = seq + 1
            self.next_position += 1
            self.items.append(Item(batch))
        self._note_drops()
        self.durable_front = self._front()

    def _note_drops(self) -> None:
        waiting = [item for item in self.items if not item.acknowledged]
        missing = len(waiting) - self.buffer.status().waiting_batches
        if missing:
            assert self.drop_oldest
            bound = waiting[missing - 1].batch.position + 1
            self.items = [item for item in self.items if item.batch.position >= bound]
            self.claimed_to = max(self.claimed_to, bound)
            self.dropped += missing
        assert self.buffer.status().dropped_batches == self.dropped
        assert self.buffer.status().dropped_readings == 10 * self.dropped

    @rule(limit=st.integers(1, 30), bytes_max=st.sampled_from([1, 5000, 1_000_000]))
    def claim(self, limit: int, bytes_max: int) -> None:
        claimed = self.buffer.claim(limit, bytes_max)
        expected = [i.batch for i in self.items if not i.acknowledged and i.batch.position >= self.claimed_to]
        assert claimed == expected[: len(claimed)]
        assert len(claimed) <= limit
        assert len(claimed) <= 1 or sum(len(batch.body) for batch in claimed) <= bytes_max
        assert claimed or not expected
        if claimed:
            self.claimed_to = claimed[-1].position + 1

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        sent = [i for i in self.items if i.batch.position < self.claimed_to and not i.acknowledged]
        chosen = data.draw(st.lists(st.sampled_from(sent), unique_by=id)) if sent else []
        self.buffer.acknowledge([item.batch.position for item in chosen] + [-1, 10**9])
        for item in chosen:
            item.acknowledged = True

    @precondition(lambda self: self.items)
    @rule()
    def acknowledge_all_sent(self) -> None:
        sent = [item for item in self.items if item.batch.position < self.claimed_to]
        self.buffer.acknowledge([item.batch.position for item in sent])
        for item in sent:
            item.acknowledged = True

    @rule()
    def release(self) -> None:
        self.buffer.release()
        sent = [item.batch for item in self.items if item.batch.position < self.claimed_to]
        assert all(self.buffer.is_replay(batch) for batch in sent)
        self.claimed_to = self._front()

    @rule()
    def reopen(self) -> None:
        self.buffer.close()
        self._revive(self.root / str(self.lives), self._front())

    @rule()
    def crash(self) -> None:
        before = self.root / str(self.lives)
        self.lives += 1
        shutil.copytree(before, self.root / str(self.lives))  # what a kill -9 leaves
        self.buffer.close()
        shutil.rmtree(before)
        self._revive(self.root / str(self.lives), self.durable_front)

    def _revive(self, folder: Path, front: int) -> None:
        self.buffer = Buffer(folder, self.limits, self.clock)
        self.items = [item for item in self.items if item.batch.position >= front]
        for item in self.items:
            item.acknowledged = False
        self.claimed_to = self.durable_front = front
        self.dropped = 0
        assert all(self.buffer.is_replay(item.batch) for item in self.items)
        assert self.buffer.status().damaged_segments == 0

    def _front(self) -> int:
        return min((i.batch.position for i in self.items if not i.acknowledged), default=self.next_position)

    @invariant()
    def numbers_agree(self) -> None:
        status = self.buffer.status()
        waiting = [item.batch for item in self.items if not item.acknowledged]
        assert status.waiting_batches == len(waiting)
        assert status.accepted_position == self.next_position
        assert status.oldest_us == (waiting[0].created_us if waiting else None)
        assert status.epoch == self.epoch

    @invariant()
    def the_disk_is_bounded(self) -> None:
        # The limit, and on top of it the flush being accepted and the log of the segment being written.
        used = sum(path.stat().st_size for path in (self.root / str(self.lives)).iterdir())
        assert used < 1_000_000 + 12 * 40_000 + 400_000

    def teardown(self) -> None:
        self.buffer.release()
        left: list[StoredBatch] = []
        while batches := self.buffer.claim(7, 1_000_000):
            left += batches
        assert left == [item.batch for item in self.items if not item.acknowledged]
        self.buffer.close()
        shutil.rmtree(self.root)


class RefusingBufferMachine(BufferMachine):
    drop_oldest = False


def profile(examples: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=35, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


def test_a_buffer_that_drops_the_oldest() -> None:
    run_state_machine_as_test(BufferMachine, settings=profile(6))


def test_a_buffer_that_refuses() -> None:
    run_state_machine_as_test(RefusingBufferMachine, settings=profile(4))


@pytest.mark.slow
@pytest.mark.parametrize("machine", [BufferMachine, RefusingBufferMachine])
def test_a_buffer_for_long(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=profile(60))
