"""Wires the simulated plant: source -> faults -> registers -> servers -> truth, all in one event loop.

In: a source of values, its machines and the settings. Out: served machines, counts, and the truth file where one is
asked for. Fails with ServiceError (a port is taken) and ConfigError (a host or file that cannot be used).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.clock import Clock, SystemClock
from edge_agent.simulate.faults import SCENARIOS, Injected, LinkFaults, Rates, SensorFaults, key_of
from edge_agent.simulate.modbus_server import Counts, ModbusServer, Snapshot
from edge_agent.simulate.plant import STEP_S
from edge_agent.simulate.registers import Machine, RegisterMap
from edge_agent.simulate.truth import TruthWriter

FLUSH_INTERVAL_S = 1.0


class Source(Protocol):
    """Where the values of a plant come from."""

    def values(self, tick: int) -> NDArray[np.float64]:
        """Return float64[tags] in map order at tick `tick` (of STEP_S, from 0), which never goes back."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How a plant is served."""

    host: str = "127.0.0.1"
    port: int = 0
    rates: Rates = SCENARIOS["calm"]
    seed: int = 0
    spike_s: float = 1.0
    truth: Path | None = None


class Simulation:
    """A plant at work: `start`, then `run` until its event is set, then `close`, always in this order.

    `ports` are the machines' ports once started.
    """

    def __init__(
        self, machines: Sequence[Machine], source: Source, settings: Settings, clock: Clock | None = None
    ) -> None:
        self.register_map = RegisterMap(machines)
        self.ports: list[int] = []
        self._source, self._settings, self._clock = source, settings, clock or SystemClock()
        tags = self.register_map.tags
        names = [
            f"{self.register_map.machines[index].machine_id}/{tag.name}"
            for index, tag in zip(self.register_map.machine_of, tags, strict=True)
        ]
        self._faults = SensorFaults(
            settings.seed,
            settings.rates,
            np.array([key_of(name) for name in names], np.uint64),
            np.array([tag.low for tag in tags]),
            np.array([tag.high for tag in tags]),
            settings.spike_s,
        )
        self._keeps_truth = settings.truth is not None
        self.truth: TruthWriter | None = None
        self._snapshot = self._snapshot_at(0)
        self._started = 0.0
        self._servers: list[ModbusServer] = []

    async def start(self) -> None:
        """Open the truth file and every port; on failure closes what was opened."""
        if self._settings.truth is not None:
            self.truth = TruthWriter(self._settings.truth, self.register_map)
        try:
            for index, machine in enumerate(self.register_map.machines):
                server = ModbusServer(
                    self.register_map.areas[index],
                    lambda: self._snapshot,
                    LinkFaults(self._settings.seed, self._settings.rates, key_of(machine.machine_id)),
                    self._clock,
                    self.truth.record if self.truth else None,
                )
                port = self._settings.port + index if self._settings.port else 0
                self.ports.append(await server.start(self._settings.host, port))
                self._servers.append(server)
        except BaseException:
            await self._stop_servers()
            if self.truth is not None:
                self.truth.abandon()
            raise
        self._started = self._clock.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Move the plant and write the truth until `stop` is set; ServiceError if the truth cannot be written."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._move(stop))
                if self.truth is not None:
                    tasks.create_task(self._write_truth(self.truth, stop))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    async def close(self) -> None:
        """Stop serving, then write the truth file."""
        await self._stop_servers()
        if self.truth is not None:
            await asyncio.to_thread(self.truth.close)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock.monotonic() - self._started

    @property
    def connected(self) -> int:
        """How many machines have a client now."""
        return sum(bool(server.connections) for server in self._servers)

    def counts(self) -> Counts:
        """Return what all servers together have done so far."""
        rows = [astuple(server.counts) for server in self._servers]
        return Counts(*(sum(column) for column in zip(*rows, strict=True)))

    async def _move(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            tick = int(self.elapsed_s / STEP_S) + 1
            await _wait(stop, tick * STEP_S - self.elapsed_s)
            self._snapshot = self._snapshot_at(tick)

    async def _write_truth(self, truth: TruthWriter, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await _wait(stop, FLUSH_INTERVAL_S)
            await asyncio.to_thread(truth.write, truth.take())

    async def _stop_servers(self) -> None:
        for server in self._servers:
            await server.stop()

    def _snapshot_at(self, tick: int) -> Snapshot:
        healthy = self._source.values(tick)
        shown, injected = self._faults.apply(healthy, tick * STEP_S)
        raw = self.register_map.raw(shown)
        image = self.register_map.pack(raw)
        if not self._keeps_truth:
            return Snapshot(image)
        held = self.register_map.held(raw)
        if injected.any():
            unharmed = self.register_map.held(self.register_map.raw(healthy))
            injected[held == unharmed] = Injected.NONE
        return Snapshot(image, held, injected)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Wait for `stop`, at most `seconds`."""
    try:
        async with asyncio.timeout(max(seconds, 0.0)):
            await stop.wait()
    except TimeoutError:
        pass
