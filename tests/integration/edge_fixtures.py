"""What the tests of the whole agent share: a plant and agents in processes of their own, and a look into the buffer."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from common.clock import SystemClock
from common.codec import decode_blocks
from common.wire import Birth, Head, TelemetryBatch, decode_message, seal
from edge_agent.buffer.buffer import Buffer, BufferLimits
from edge_agent.buffer.segment import StoredBatch

ROOT = Path(__file__).resolve().parents[2]
Row = tuple[str, str, int, float, int]
"""Machine, tag, time, value, status."""


class Agent:
    """`edge-agent run` as a process; `said` is its log so far."""

    def __init__(self, config: Path) -> None:
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge_agent.cli", "run", str(config)], cwd=ROOT, stderr=self._log
        )

    @property
    def said(self) -> list[dict[str, Any]]:
        self._log.seek(0)
        lines = self._log.read().splitlines()
        return [json.loads(line) if line.startswith("{") else {"event": "text", "text": line} for line in lines]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.said if line["event"] == name]

    @property
    def is_up(self) -> bool:
        assert self.process.poll() is None, self.said
        return bool(self.events("agent.started"))

    def get(self, path: str) -> str:
        address = self.events("agent.started")[0]["http"]
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/health"))
        return found

    def metric(self, name: str) -> float:
        values = [line.rpartition(" ")[2] for line in self.get("/metrics").splitlines() if line.startswith(name)]
        return sum(map(float, values))

    def end(self, number: signal.Signals, within_s: float = 5.0) -> int:
        """Send a signal and return the exit status; shows the log unless that is 0."""
        self.process.send_signal(number)
        status = self.process.wait(within_s)
        if status:
            sys.stderr.write("\n".join(map(str, self.said)))
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


@contextlib.contextmanager
def agent(config: Path) -> Iterator[Agent]:
    running = Agent(config)
    try:
        yield running
    finally:
        running.close()


@contextlib.contextmanager
def plant(folder: Path, *options: str) -> Iterator[Path]:
    """A simulated plant; gives the agent config it wrote. Its truth is in `truth.parquet` once the block is left."""
    config = folder / "edge.toml"
    command = [sys.executable, "-m", "edge_agent.simulate", "--port", "0", "--json", "--no-deadbands"]
    files = ["--write-config", str(config), "--truth", str(folder / "truth.parquet")]
    process = subprocess.Popen([*command, *files, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["event"] == "ready"
        # No broker there: an agent ends sooner than with one whose messages nobody takes out.
        text = config.read_text().replace('broker = "embedded"', "")
        config.write_text(f'{text}\n[broker]\nbootstrap_servers = "127.0.0.1:1"\n')
        yield config
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.stdout.readline())["event"] == "summary"
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def sealed(batch: StoredBatch) -> TelemetryBatch | Birth:
    return decode_message(
        seal(batch.schema, Head("a", batch.machine_id, batch.route, batch.epoch, batch.seq, 0), batch.body)
    )


def rows_of(messages: Sequence[TelemetryBatch | Birth]) -> list[Row]:
    births = {one.birth_id: one for one in messages if isinstance(one, Birth)}
    rows: list[Row] = []
    for batch in messages:
        if isinstance(batch, TelemetryBatch):
            tags = {one.alias: one.tag for one in births[batch.birth_id].series}
            found = decode_blocks(batch.blocks, batch.sizes)
            aliases = [alias for alias, count in zip(batch.aliases, found.counts, strict=True) for _ in range(count)]
            rows += [
                (batch.head.machine_id, tags[alias], ts, value, status)
                for alias, ts, value, status in zip(
                    aliases, found.ts.tolist(), found.values.tolist(), found.statuses.tolist(), strict=True
                )
            ]
    return rows


def buffered(folder: Path) -> list[StoredBatch]:
    """Take out all that waits in the buffer of an agent that has ended."""
    buffer = Buffer(folder / "buffer", BufferLimits(), SystemClock())
    try:
        batches: list[StoredBatch] = []
        while found := buffer.claim(10_000, 10**9):
            batches += found
        return batches
    finally:
        buffer.close()


def taken_port() -> socket.socket:
    """A port that somebody listens on and never accepts from: connections are made, and nobody answers."""
    return socket.create_server(("127.0.0.1", 0), backlog=100)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue is full: not even a connection is made, as if no route led there."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        port = int(server.getsockname()[1])
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        yield port
