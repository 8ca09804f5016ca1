"""Made-up agents for tests: messages as an edge agent sends them, and the truth of what was in them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.codec import encode_blocks
from common.model import ReportMode, Route, SeriesDefinition
from common.wire import BIRTH, TELEMETRY_BATCH, Head, encode_batch_body, encode_birth_body, seal

BASE_US = 1_767_225_600_000_000  # 2026-01-01


@dataclass(slots=True)
class Columns:
    """Readings as the truth knows them; series by (machine, tag)."""

    machine: list[str] = field(default_factory=list)
    tag: list[str] = field(default_factory=list)
    ts_us: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str, int, str, int]]:
        """Sorted rows; values by their bits, so that NaN equals NaN and 0.0 is not -0.0."""
        bits = np.array(self.value, np.float64).view(np.uint64).tolist()
        return sorted(zip(self.machine, self.tag, self.ts_us, map(hex, bits), self.status, strict=True))


class FakeAgent:
    """One lane: agent, machine, route, epoch; numbers its messages from 1."""

    def __init__(
        self,
        machine_id: str,
        tags: Sequence[str] = ("temperature", "pressure"),
        *,
        agent_id: str = "gw-1",
        route: Route = Route.STREAM,
        epoch: int = 1,
        seed: int = 0,
    ) -> None:
        self.machine_id = machine_id
        self.agent_id = agent_id
        self.route = route
        self.epoch = epoch
        self.tags = tuple(tags)
        self.topic = f"forebay.{route.value}"
        self.seq = 0
        self.truth = Columns()
        self._rng = np.random.default_rng(seed)
        series = tuple(
            SeriesDefinition(alias, tag, "test", "degC", ReportMode.PERIODIC, 1_000_000)
            for alias, tag in enumerate(self.tags)
        )
        self.birth_id, self._birth_body = encode_birth_body("site", f"{agent_id}-box", series)

    def head(self, *, replayed: bool = False) -> Head:
        self.seq += 1
        return Head(
            self.agent_id, self.machine_id, self.route, self.epoch, self.seq, BASE_US + self.seq, replayed=replayed
        )

    def birth(self) -> bytes:
        return seal(BIRTH, self.head(), self._birth_body)

    def batch(
        self,
        from_us: int,
        count: int,
        step_us: int = 100_000,
        *,
        values: NDArray[np.float64] | None = None,
        statuses: NDArray[np.int32] | None = None,
    ) -> bytes:
        """Return a batch with `count` readings of every tag; the truth takes note of them."""
        n = len(self.tags) * count
        ts = np.tile(from_us + np.arange(count, dtype=np.int64) * step_us, len(self.tags))
        if values is None:
            values = np.round(self._rng.normal(50, 10, n), 3)
        if statuses is None:
            statuses = np.zeros(n, np.int32)
        self.truth.machine += [self.machine_id] * n
        self.truth.tag += np.repeat(self.tags, count).tolist()
        self.truth.ts_us += ts.tolist()
        self.truth.value += values.tolist()
        self.truth.status += statuses.tolist()
        return self.encode(ts, values, statuses, np.arange(len(self.tags) + 1, dtype=np.int64) * count)

    def encode(
        self,
        ts: NDArray[np.int64],
        values: NDArray[np.float64],
        statuses: NDArray[np.int32],
        offsets: NDArray[np.int64],
        aliases: NDArray[np.int32] | None = None,
    ) -> bytes:
        blocks = encode_blocks(ts, values, statuses, offsets)
        span = (int(ts.min()), int(ts.max())) if ts.size else (0, 0)
        if aliases is None:
            aliases = np.arange(offsets.size - 1, dtype=np.int32)
        body = encode_batch_body(self.birth_id, span, ts.size, aliases, (blocks.data, blocks.sizes))
        return seal(TELEMETRY_BATCH, self.head(), body)
