"""One suite for every adapter: what the contract promises, against real servers.

A later adapter joins by adding a peer to PEERS.
"""

import asyncio
import socket
import struct
import time
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from common.model import StatusCode, is_bad
from edge_agent.adapters.contract import Adapter, adapter_classes
from edge_agent.config import DeviceConfig
from edge_agent.simulate.agent_config import render
from edge_agent.simulate.plant import PhysicsSource, build_machines
from edge_agent.simulate.simulation import Settings, Simulation

PORT_TRIES = 50


class Peer(Protocol):
    """A server on a port, holding values that stand still."""

    adapter: str

    def __init__(self, port: int) -> None: ...

    def device(self, timeout_s: float) -> dict[str, Any]:
        """Return the config of a device that reads every value, in any order."""
        ...

    def expected(self) -> dict[str, float]:
        """Return what each tag holds."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class StillPlant:
    """The plant of the simulator, on a photograph."""

    def __init__(self, tags: int) -> None:
        self._values = PhysicsSource(3, 1, tags).values(40)

    def values(self, _tick: int) -> NDArray[np.float64]:
        return self._values


class SimulatedMachine:
    adapter = "modbus"
    tags = 300

    def __init__(self, port: int) -> None:
        self._port, self._source, self._machines = port, StillPlant(self.tags), build_machines(1, self.tags)

    def device(self, timeout_s: float) -> dict[str, Any]:
        text = render(self._machines, [("127.0.0.1", self._port)], poll_interval_s=1.0)
        (device,) = tomllib.loads(text)["devices"]
        return {**device, "timeout_s": timeout_s}

    def expected(self) -> dict[str, float]:
        plant = Simulation(self._machines, self._source, Settings()).register_map
        held = plant.held(plant.raw(self._source.values(0)))
        return dict(zip([tag.name for tag in plant.tags], held.tolist(), strict=True))

    async def start(self) -> None:
        self._stop = asyncio.Event()
        self._plant = Simulation(self._machines, self._source, Settings(port=self._port))
        await self._plant.start()
        self._running = asyncio.create_task(self._plant.run(self._stop))

    async def stop(self) -> None:
        self._stop.set()
        await self._running
        await self._plant.close()


class PymodbusServer:
    """pymodbus's own server, in the four tables and two word orders."""

    adapter = "modbus"

    def __init__(self, port: int) -> None:
        self._port = port
        chance = np.random.default_rng(5)
        self._floats = chance.normal(size=40).astype(np.float32)
        self._ints = chance.integers(-(2**31), 2**31, size=60).astype(np.int32)
        self._coils = chance.random(50) < 0.5

    def device(self, timeout_s: float) -> dict[str, Any]:
        tags: list[dict[str, Any]] = [
            {"name": f"f{n}", "address": f"holding:{100 + 2 * n}", "type": "float32", "word_order": "little"}
            for n in range(40)
        ]
        tags += [
            {"name": f"i{n}", "address": f"input:{2 * n}", "type": "int32", "scale": 0.5, "offset": -1.0}
            for n in range(60)
        ]
        tags += [{"name": f"c{n}", "address": f"coil:{n}", "type": "bool"} for n in range(50)]
        tags += [{"name": f"d{n}", "address": f"discrete:{n}", "type": "bool"} for n in range(50)]
        return {
            "name": "p", "adapter": "modbus", "address": f"127.0.0.1:{self._port}", "unit_id": 7,
            "timeout_s": timeout_s, "tags": tags[::-1],
        }  # fmt: skip

    def expected(self) -> dict[str, float]:
        held = {f"f{n}": float(value) for n, value in enumerate(self._floats)}
        held |= {f"i{n}": int(value) * 0.5 - 1.0 for n, value in enumerate(self._ints)}
        held |= {f"c{n}": float(value) for n, value in enumerate(self._coils)}
        return held | {f"d{n}": float(not value) for n, value in enumerate(self._coils)}

    async def start(self) -> None:
        swapped = [word for value in self._floats for word in struct.unpack(">HH", struct.pack(">f", value))[::-1]]
        straight = [word for value in self._ints for word in struct.unpack(">HH", struct.pack(">i", value))]
        tables = (
            [SimData(0, values=[bool(value) for value in self._coils], datatype=DataType.BITS)],
            [SimData(0, values=[not value for value in self._coils], datatype=DataType.BITS)],
            [SimData(100, values=swapped, datatype=DataType.REGISTERS)],
            [SimData(0, values=straight, datatype=DataType.REGISTERS)],
        )
        self._server = ModbusTcpServer(SimDevice(7, simdata=tables), address=("127.0.0.1", self._port))
        await self._server.serve_forever(background=True)

    async def stop(self) -> None:
        await self._server.shutdown()  # type: ignore[no-untyped-call]


PEERS: list[type[Peer]] = [SimulatedMachine, PymodbusServer]


@pytest.fixture(params=PEERS, ids=lambda peer: peer.__name__)
def peer(request: pytest.FixtureRequest) -> Peer:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    made: Peer = request.param(port)
    return made


@pytest.fixture
async def served(peer: Peer) -> AsyncIterator[Peer]:
    await peer.start()
    yield peer
    await peer.stop()


@pytest.fixture
def make() -> Callable[..., tuple[Adapter, list[str]]]:
    def make_adapter(peer: Peer, timeout_s: float = 1.0) -> tuple[Adapter, list[str]]:
        kind = adapter_classes()[peer.adapter]
        device = kind.device_model.model_validate(peer.device(timeout_s))
        assert isinstance(device, DeviceConfig)
        return kind(device), [tag.name for tag in device.tags]

    return make_adapter


Make = Callable[..., tuple[Adapter, list[str]]]


@asynccontextmanager
async def no_longer_than(seconds: float) -> AsyncIterator[None]:
    started = time.monotonic()
    async with asyncio.timeout(seconds + 5):
        yield
    assert time.monotonic() - started < seconds


async def test_a_poll_reads_every_tag_once_and_exactly(served: Peer, make: Make) -> None:
    adapter, names = make(served)
    before_us = time.time_ns() // 1000
    async with adapter:
        for _ in range(3):
            frame = await adapter.poll()
    assert sorted(frame.series.tolist()) == list(range(len(names)))
    assert not frame.statuses.any()
    assert {names[row]: value for row, value in zip(frame.series, frame.values, strict=True)} == served.expected()
    assert np.all(frame.ts_us > before_us - 1000)
    assert np.all(frame.ts_us <= time.time_ns() // 1000)
    assert adapter.last_error is None


def test_a_plan_is_made_without_a_server(peer: Peer, make: Make) -> None:
    adapter, names = make(peer)
    assert adapter.plan.points == len(names)
    assert 1 <= adapter.plan.requests < len(names) / 3
    assert len(adapter.plan.lines) == adapter.plan.requests
    assert adapter.last_error is None


async def test_nobody_there_gives_bad_readings_and_says_why(peer: Peer, make: Make) -> None:
    adapter, names = make(peer)
    async with no_longer_than(3.0), adapter:
        frame = await adapter.poll()
    assert sorted(frame.series.tolist()) == list(range(len(names)))
    assert np.all(frame.statuses == StatusCode.BAD_NO_COMMUNICATION)
    assert np.isnan(frame.values).all()
    assert adapter.last_error is not None
    assert "127.0.0.1" in adapter.last_error


async def test_it_recovers_when_the_server_comes_back(peer: Peer, make: Make) -> None:
    adapter, _ = make(peer)
    async with adapter:
        for _ in range(2):
            assert is_bad((await adapter.poll()).statuses).all()
            await peer.start()
            assert not (await adapter.poll()).statuses.any()
            assert adapter.last_error is None
            await peer.stop()


async def test_leaving_closes_the_connection_and_it_may_be_entered_again(served: Peer, make: Make) -> None:
    adapter, _ = make(served)
    for _ in range(2):
        async with adapter:
            assert not (await adapter.poll()).statuses.any()


async def test_a_poll_can_be_cancelled_at_any_moment(served: Peer, make: Make) -> None:
    adapter, _ = make(served)
    async with adapter:
        for step in range(30):
            poll = asyncio.create_task(adapter.poll())
            for _ in range(step):
                await asyncio.sleep(0)
            poll.cancel()
            done, _ = await asyncio.wait([poll], timeout=2)
            assert done
        # What the cancelled requests left behind is not taken for an answer.
        adapter_frame = await adapter.poll()
        if adapter_frame.statuses.any():
            adapter_frame = await adapter.poll()
    assert not adapter_frame.statuses.any()
    assert sorted(adapter_frame.values) == sorted(served.expected().values())
