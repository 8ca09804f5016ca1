"""The buffer against the real world: kill -9, a full disk, a disk that may not be written."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ServiceError
from edge_agent.buffer.buffer import Buffer, BufferLimits
from tests.unit.edge_agent.samples import FakeClock, draft

ROOT = Path(__file__).resolve().parents[2]
LIMITS = BufferLimits(segment_mb=0.2)
WRITER = """
import random, sys
from pathlib import Path
from common.clock import SystemClock
from edge_agent.buffer.buffer import Buffer, BufferLimits
from tests.unit.edge_agent.samples import draft
chance = random.Random(int(sys.argv[2]))
buffer = Buffer(Path(sys.argv[1]), BufferLimits(segment_mb=0.2), SystemClock())
while True:
    machines = [chance.choice("abc") for _ in range(chance.randrange(1, 6))]
    sizes = [chance.choice([50, 3000, 20_000]) for _ in machines]
    for batch in buffer.accept([draft(machine, size) for machine, size in zip(machines, sizes)]):
        print(batch.position, batch.machine_id, batch.seq, batch.epoch, len(batch.body))
    sys.stdout.flush()
    if chance.random() < 0.3:
        buffer.acknowledge([batch.position for batch in buffer.claim(3, 10**6)])
"""


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 24))])
def test_kill_9_loses_nothing_that_was_accepted(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    said: list[tuple[int, str, int, int, int]] = []
    for life in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(seed * 100 + life)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(chance.randrange(1, 150))]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.stdout.close()
        writer.wait()
        for line in lines:
            if line.endswith("\n") and line.count(" ") == 4:
                position, machine, seq, epoch, size = line.split()
                said.append((int(position), machine, int(seq), int(epoch), int(size)))
    buffer = Buffer(tmp_path, LIMITS, FakeClock())
    assert buffer.status().damaged_segments == 0
    stored = []
    while batches := buffer.claim(1000, 10**9):
        stored += [(b.position, b.machine_id, b.seq, b.epoch, len(b.body)) for b in batches]
    buffer.close()
    front = stored[0][0]
    assert [row[0] for row in stored] == list(range(front, front + len(stored)))  # consecutive, none twice
    assert set(stored) >= {row for row in said if row[0] >= front}
    assert len({epoch for *_, epoch, _ in stored}) == 1
    for machine in "abc":  # what was acknowledged may have been accepted without having been said
        before = [seq for position, name, seq, *_ in said if name == machine and position < front]
        kept = [seq for _, name, seq, *_ in stored if name == machine]
        assert kept == list(range(kept[0], kept[0] + len(kept)))
        assert before == sorted(set(before))
        assert max(before, default=0) < kept[0]


@contextlib.contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("a small disk of its own needs the right to mount; the limit of a file's size is tested anyway")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill_until_refused(buffer: Buffer) -> int:
    accepted = 0
    for _ in range(1000):
        try:
            accepted += len(buffer.accept([draft(size=20_000), draft("n", size=20_000)]))
        except ServiceError:
            return accepted
    raise AssertionError("never refused")


def claimed(buffer: Buffer) -> list[tuple[str, int]]:
    found = []
    while batches := buffer.claim(1000, 10**9):
        found += [(batch.machine_id, batch.seq) for batch in batches]
    return found


def expected(accepted: int) -> list[tuple[str, int]]:
    return [(machine, seq) for seq in range(1, accepted // 2 + 1) for machine in ("m", "n")]


def test_a_full_disk_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1500) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(600_000))
        buffer = Buffer(disk / "buffer", LIMITS, FakeClock())
        accepted = fill_until_refused(buffer)
        assert accepted > 10
        with pytest.raises(ServiceError, match="No space left"):
            buffer.accept([draft(size=20_000)])
        assert claimed(buffer) == expected(accepted)  # sending goes on meanwhile, and makes room
        buffer.release()
        ballast.unlink()
        accepted += len(buffer.accept([draft(size=20_000), draft("n", size=20_000)]))
        assert claimed(buffer) == expected(accepted)
        buffer.close()
        reopened = Buffer(disk / "buffer", LIMITS, FakeClock())
        assert claimed(reopened) == expected(accepted)
        assert reopened.status().damaged_segments == 0
        reopened.close()


def test_a_start_on_a_full_disk_sets_nothing_aside(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1500) as disk:
        buffer = Buffer(disk / "buffer", LIMITS, FakeClock())
        accepted = sum(len(buffer.accept([draft(size=20_000), draft("n", size=20_000)])) for _ in range(12))
        shutil.copytree(disk / "buffer", tmp_path / "image")
        buffer.close()
        shutil.rmtree(disk / "buffer")
        shutil.copytree(tmp_path / "image", disk / "buffer")
        with contextlib.suppress(OSError):
            (disk / "ballast").write_bytes(bytes(1_500_000))
        with contextlib.suppress(ServiceError):
            Buffer(disk / "buffer", LIMITS, FakeClock()).close()
        assert not list((disk / "buffer").glob("*.damaged"))
        (disk / "ballast").unlink()
        reopened = Buffer(disk / "buffer", LIMITS, FakeClock())
        assert claimed(reopened) == expected(accepted)
        reopened.close()


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, BufferLimits(), FakeClock())
    with file_size_limit(300_000):
        accepted = fill_until_refused(buffer)
        assert claimed(buffer) == expected(accepted)
        buffer.release()
    accepted += len(buffer.accept([draft(size=20_000), draft("n", size=20_000)]))
    assert claimed(buffer) == expected(accepted)
    buffer.close()


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1500) as disk:
        Buffer(disk / "buffer", LIMITS, FakeClock()).close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(ServiceError, match="Read-only file system"):
            Buffer(disk / "buffer", LIMITS, FakeClock())
        assert not list((disk / "buffer").glob("*.damaged"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ServiceError, match="Permission denied"):
        Buffer(tmp_path / "buffer", LIMITS, FakeClock())
