"""What a bad disk, a crash or a curious technician leave in the buffer's folder: the rest goes on."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from common.errors import InUseError, ServiceError
from edge_agent.buffer.buffer import Buffer, BufferLimits
from edge_agent.buffer.segment import Segment, StoredBatch
from tests.unit.edge_agent.samples import FakeClock, draft

LIMITS = BufferLimits(segment_mb=0.05)
PER_SEGMENT = 5


def fill(folder: Path, batches: int = 18, clock: FakeClock | None = None) -> list[StoredBatch]:
    buffer = Buffer(folder, LIMITS, clock or FakeClock())
    accepted = [batch for _ in range(batches) for batch in buffer.accept([draft(size=10_000)])]
    buffer.close()
    return accepted


def drain(buffer: Buffer) -> list[StoredBatch]:
    found: list[StoredBatch] = []
    while batches := buffer.claim(1000, 10**9):
        found += batches
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.duckdb"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    chance = random.Random(7)
    for _ in range(40):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def replace(path: Path) -> None:
    path.unlink()
    duckdb.connect(str(path)).execute("CREATE TABLE t (i INT)").close()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
    "text": lambda path: path.write_text("not a database"),
    "flipped bits": flip,
    "another database": replace,
}


@pytest.mark.parametrize("which", ["first", "middle", "newest"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_segment_is_set_aside_and_the_rest_goes_on(tmp_path: Path, damage: str, which: str) -> None:
    accepted = fill(tmp_path)
    files = segments(tmp_path)
    assert len(files) == 4
    index = {"first": 0, "middle": 1, "newest": 3}[which]
    DAMAGE[damage](files[index])
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    lost = {batch.position for batch in accepted[index * PER_SEGMENT : (index + 1) * PER_SEGMENT]}
    assert [b.position for b in drain(buffer)] == [b.position for b in accepted if b.position not in lost]
    status = buffer.status()
    assert (status.damaged_segments, status.dropped_batches) == (1, len(lost))
    assert (tmp_path / f"{files[index].name}.damaged").exists()
    (after,) = buffer.accept([draft()])
    assert after.position == 18
    # Seqs of a newest segment that is gone may have been used: they are not used again in the same epoch.
    assert (after.epoch, after.seq) == ((accepted[0].epoch + 1, 1) if which == "newest" else (accepted[0].epoch, 19))
    buffer.close()
    reopened = Buffer(tmp_path, LIMITS, FakeClock())
    assert len(drain(reopened)) == 19 - len(lost)
    assert reopened.status().damaged_segments == 0
    reopened.close()


def test_every_segment_damaged(tmp_path: Path) -> None:
    fill(tmp_path)
    for path in segments(tmp_path):
        path.write_bytes(b"\0" * 5000)
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    assert drain(buffer) == []
    assert buffer.status().waiting_batches == 0
    assert buffer.accept([draft()])[0].epoch == FakeClock().us // 1000 + 1
    buffer.close()


def test_a_segment_that_somebody_deleted(tmp_path: Path) -> None:
    accepted = fill(tmp_path)
    segments(tmp_path)[-1].unlink()
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    assert buffer.status().dropped_batches == 3
    (after,) = buffer.accept([draft()])
    assert (after.position, after.epoch, after.seq) == (18, accepted[0].epoch + 1, 1)
    buffer.close()


def crash_image(folder: Path, target: Path) -> None:
    """Leave in `target` what a kill -9 after eight accepts leaves: a file and its write-ahead log."""
    buffer = Buffer(folder, BufferLimits(), FakeClock())
    for _ in range(8):
        buffer.accept([draft(size=1000)])
    shutil.copytree(folder, target)
    buffer.close()


@pytest.mark.parametrize("flip_at", [0.3, 0.6, 0.95])
def test_a_damaged_log_is_kept_up_to_the_damage(tmp_path: Path, flip_at: float) -> None:
    crash_image(tmp_path / "a", tmp_path / "b")
    (log,) = (tmp_path / "b").glob("*.wal")
    data = bytearray(log.read_bytes())
    data[int(len(data) * flip_at)] ^= 4
    log.write_bytes(data)
    buffer = Buffer(tmp_path / "b", BufferLimits(), FakeClock())
    kept = drain(buffer)
    assert [batch.seq for batch in kept] == list(range(1, len(kept) + 1))
    assert 8 * flip_at - 2 < len(kept) < 8
    assert buffer.status().dropped_batches == 8 - len(kept)
    (after,) = buffer.accept([draft()])
    assert (after.position, after.seq) == (8, 1)
    assert after.epoch > kept[0].epoch
    buffer.close()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.97])
def test_a_log_cut_short_does_not_make_seqs_be_used_twice(tmp_path: Path, keep: float) -> None:
    crash_image(tmp_path / "a", tmp_path / "b")
    (log,) = (tmp_path / "b").glob("*.wal")
    os.truncate(log, int(log.stat().st_size * keep))
    buffer = Buffer(tmp_path / "b", BufferLimits(), FakeClock())
    kept = drain(buffer)
    assert len(kept) < 8
    (after,) = buffer.accept([draft()])
    assert (after.position, after.seq) == (8, 1)
    assert after.epoch > FakeClock().us // 1000
    buffer.close()


def test_a_crash_while_a_segment_is_made(tmp_path: Path) -> None:
    accepted = fill(tmp_path)
    (tmp_path / "0000000000000018.duckdb.new").write_bytes(b"half a database")
    (tmp_path / "0000000000000018.duckdb.new.wal").write_bytes(b"and its log")
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    assert drain(buffer) == accepted
    assert buffer.status().damaged_segments == 0
    assert buffer.accept([draft()])[0].seq == 19
    assert not list(tmp_path.glob("*.new*"))
    buffer.close()


def test_a_segment_that_goes_bad_while_in_use(tmp_path: Path) -> None:
    accepted = fill(tmp_path)
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    segments(tmp_path)[1].write_bytes(b"gone bad")
    found = drain(buffer)
    assert [b.position for b in found] == [b.position for b in accepted if b.position // PER_SEGMENT != 1]
    status = buffer.status()
    assert (status.damaged_segments, status.dropped_batches, status.dropped_readings) == (1, 5, 50)
    buffer.acknowledge([batch.position for batch in found])
    assert buffer.status().waiting_batches == 0
    buffer.close()


class BrokenSegment(Segment):
    """Fails like a database that has invalidated itself."""

    def append(self, *_: object) -> None:
        self._fail()

    def holds(self, _: int) -> bool:
        self._fail()
        return False

    def _fail(self) -> None:
        raise duckdb.FatalException("database has been invalidated")


def test_an_append_that_breaks_the_database_is_tried_again_on_the_same_file(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    first = buffer.accept([draft()])
    active = buffer._chain._active
    assert active is not None
    active.__class__ = BrokenSegment
    with pytest.raises(ServiceError, match="invalidated"):
        buffer.accept([draft(size=7)])
    second = buffer.accept([draft(size=7)])
    assert (second[0].seq, second[0].epoch) == (2, first[0].epoch)
    assert drain(buffer) == first + second
    buffer.close()


def test_an_active_segment_that_is_gone_bad_starts_an_epoch(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    (first,) = buffer.accept([draft()])
    active = buffer._chain._active
    assert active is not None
    active.__class__ = BrokenSegment
    active.path.write_bytes(b"gone bad")
    active.path.with_name(active.path.name + ".wal").unlink()
    with pytest.raises(ServiceError):
        buffer.accept([draft()])
    assert buffer.settle_epoch() > first.epoch
    (second,) = buffer.accept([draft()])
    assert (second.position, second.seq) == (1, 1)
    assert drain(buffer) == [second]
    assert buffer.status().dropped_batches == 1
    buffer.close()


def test_a_failure_that_a_new_file_has_too_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more threads, say: the words of the error name nothing that we know."""
    accepted = fill(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise duckdb.InternalException("a thread could not be started")

    with monkeypatch.context() as patch:
        patch.setattr(duckdb, "connect", refuse)
        with pytest.raises(ServiceError, match="thread"):
            Buffer(tmp_path, LIMITS, FakeClock())
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    assert drain(buffer) == accepted
    assert buffer.status().damaged_segments == 0
    buffer.close()


def test_two_agents_on_one_folder(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    with pytest.raises(InUseError, match=f"{tmp_path} is in use by another agent"):
        Buffer(tmp_path, LIMITS, FakeClock())
    buffer.close()
    buffer.close()
    Buffer(tmp_path, LIMITS, FakeClock()).close()


def test_a_closed_buffer_says_so(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    buffer.close()
    for call in (lambda: buffer.claim(1, 1), lambda: buffer.accept([draft()]), buffer.status):
        with pytest.raises(ServiceError, match="closed"):
            call()
    buffer.release()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "buffer").write_text("")
    with pytest.raises(ServiceError, match="File exists"):
        Buffer(tmp_path / "buffer", LIMITS, FakeClock())


def test_a_clock_set_back_does_not_make_an_epoch_smaller(tmp_path: Path) -> None:
    accepted = fill(tmp_path)
    for path in segments(tmp_path):
        path.unlink()
    buffer = Buffer(tmp_path, LIMITS, FakeClock(us=1_000_000))
    assert buffer.status().epoch == accepted[0].epoch + 1
    buffer.close()
