"""The simulated plant over real sockets, asked by pymodbus, and the truth it keeps of what it said."""

import asyncio
import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from pymodbus import FramerType
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from common.errors import ServiceError
from edge_agent.simulate import replay
from edge_agent.simulate.agent_config import render
from edge_agent.simulate.faults import Rates
from edge_agent.simulate.plant import NATURAL, PhysicsSource, build_machines
from edge_agent.simulate.registers import Machine
from edge_agent.simulate.simulation import Settings, Simulation, Source

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = ROOT.parent / "shared/data/signals/development.parquet"
FORMATS = {"int16": "h", "uint16": "H", "uint32": "I", "float32": "f", "float64": "d"}


@contextlib.asynccontextmanager
async def serving(machines: list[Machine], source: Source, settings: Settings) -> AsyncIterator[Simulation]:
    simulation, stop = Simulation(machines, source, settings), asyncio.Event()
    await simulation.start()
    running = asyncio.create_task(simulation.run(stop))
    try:
        yield simulation
    finally:
        stop.set()
        await running
        await simulation.close()


@contextlib.asynccontextmanager
async def client_of(port: int, timeout_s: float = 1.0) -> AsyncIterator[AsyncModbusTcpClient]:
    client = AsyncModbusTcpClient("127.0.0.1", port=port, framer=FramerType.SOCKET, timeout=timeout_s, retries=0)
    assert await client.connect()
    try:
        yield client
    finally:
        client.close()


def decode(registers: list[int], tag: dict[str, Any], device: dict[str, Any]) -> float:
    """Decode as a config file says: an oracle that shares nothing with registers.py."""
    words = registers if device["word_order"] == "big" else registers[::-1]
    data = b"".join(word.to_bytes(2, device["byte_order"]) for word in words)
    raw = float(struct.unpack(">" + FORMATS[tag["type"]], data)[0])
    return raw * tag["scale"] + tag.get("offset", 0.0) if "scale" in tag else raw


async def read(client: AsyncModbusTcpClient, tag: dict[str, Any], device: dict[str, Any]) -> float:
    space, _, number = tag["address"].partition(":")
    if tag["type"] == "bool":
        return float((await client.read_coils(int(number), count=1)).bits[0])
    count = struct.calcsize(FORMATS[tag["type"]]) // 2
    ask = client.read_holding_registers if space == "holding" else client.read_input_registers
    return decode((await ask(int(number), count=count)).registers, tag, device)


def config_of(machines: list[Machine], ports: list[int]) -> list[dict[str, Any]]:
    text = render(machines, [("127.0.0.1", port) for port in ports], poll_interval_s=1.0)
    devices: list[dict[str, Any]] = tomllib.loads(text)["devices"]
    return devices


def truth_of(path: Path) -> list[tuple[Any, ...]]:
    columns = "served_us, machine_id, tag, value, delivered, injected"
    return duckdb.read_parquet(str(path)).project(columns).fetchall()


def bits(values: list[float]) -> bytes:
    return np.array(values, np.float64).tobytes()


async def test_truth_is_what_a_client_decodes_bit_for_bit(tmp_path: Path) -> None:
    machines = build_machines(4, len(NATURAL) + 8)
    source = PhysicsSource(1, 4, len(NATURAL) + 8)
    settings = Settings(rates=Rates(spikes=0.1, drift=0.5), truth=tmp_path / "truth.parquet")
    told: dict[tuple[str, str], list[float]] = {}
    before_us = time.time_ns() // 1000
    async with serving(machines, source, settings) as plant:
        for device, port in zip(config_of(machines, plant.ports), plant.ports, strict=True):
            async with client_of(port) as client:
                for _ in range(4):
                    for tag in device["tags"]:
                        value = await read(client, tag, device)
                        told.setdefault((device["machine_id"], tag["name"]), []).append(value)
                    await asyncio.sleep(0.1)
    after_us = time.time_ns() // 1000
    rows = truth_of(tmp_path / "truth.parquet")
    assert len(rows) == 4 * 4 * (len(NATURAL) + 8)
    for key, values in told.items():
        mine = sorted(row for row in rows if row[1:3] == key)
        assert bits([row[3] for row in mine]) == bits(values), key
    assert all(before_us <= row[0] <= after_us and row[4] for row in rows)
    assert {"spike", "drift"} <= {row[5] for row in rows}


async def test_one_response_is_one_moment(tmp_path: Path) -> None:
    """62 float32 tags at once while the plant moves: all of one tick, told again by the truth."""
    settings = Settings(truth=tmp_path / "truth.parquet")
    answers = []
    async with (
        serving(build_machines(1, 200), PhysicsSource(1, 1, 200), settings) as plant,
        client_of(plant.ports[0]) as client,
    ):
        for _ in range(30):
            answers.append((await client.read_holding_registers(21, count=125)).registers)
            await asyncio.sleep(0.01)
    rows = truth_of(tmp_path / "truth.parquet")
    assert len(rows) == 30 * 62, "the half of a value at the start is no value"
    stamps = sorted({row[0] for row in rows})
    for at_us, registers in zip(stamps, answers, strict=True):
        data = b"".join(word.to_bytes(2, "big") for word in registers[1:])
        told = {row[2]: row[3] for row in rows if row[0] == at_us}
        assert bits(list(told.values())) == bits(list(struct.unpack(">62f", data)))


async def test_exceptions_reach_the_client_and_not_the_truth(tmp_path: Path) -> None:
    settings = Settings(truth=tmp_path / "truth.parquet")
    async with (
        serving(build_machines(1, 12), PhysicsSource(1, 1, 12), settings) as plant,
        client_of(plant.ports[0]) as client,
    ):
        assert (await client.read_holding_registers(1000, count=2)).exception_code == 2
        assert (await client.read_discrete_inputs(0, count=1)).exception_code == 2
        assert (await client.write_register(0, 1)).exception_code == 1
        assert (await client.read_holding_registers(9, count=3)).registers == [0, 0, 0], "a gap reads as zero"
        assert plant.counts().exceptions == 3
    assert truth_of(tmp_path / "truth.parquet") == []


async def test_lost_responses_are_the_ones_the_truth_says(tmp_path: Path) -> None:
    settings = Settings(rates=Rates(loss=0.3), seed=11, truth=tmp_path / "truth.parquet")
    came: list[bool] = []
    async with serving(build_machines(1, 12), PhysicsSource(11, 1, 12), settings) as plant:
        while len(came) < 40:
            async with client_of(plant.ports[0], timeout_s=0.15) as client:
                while len(came) < 40 and client.connected:
                    try:
                        came.append(not (await client.read_holding_registers(0, count=2)).isError())
                    except ModbusException:
                        came.append(False)
                        break
        counts = plant.counts()
    rows = sorted(truth_of(tmp_path / "truth.parquet"))
    assert [row[4] for row in rows] == came
    assert [row[5] == "loss" for row in rows] == [not one for one in came]
    assert 4 <= counts.lost <= 22
    assert counts.requests == 40 == counts.responses + counts.lost


async def test_a_reset_is_a_reset_and_other_loss_keeps_the_connection() -> None:
    """Raw sockets: every response is lost, one in ten resets the connection."""
    request = struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, 0, 2)
    settings = Settings(rates=Rates(loss=1.0), seed=3)
    async with serving(build_machines(1, 12), PhysicsSource(1, 1, 12), settings) as plant:
        silent = 0
        reader, writer = await asyncio.open_connection("127.0.0.1", plant.ports[0])

        async def ask() -> bytes:
            writer.write(request)
            return await reader.read(1)

        with pytest.raises(ConnectionResetError):  # noqa: PT012 - the loop is the point
            while silent < 200:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ask(), 0.005)
                silent += 1
        assert plant.counts().resets == 1
        assert plant.counts().lost == silent + 1


async def test_requests_may_come_in_pieces_or_many_at_once_but_not_in_another_protocol() -> None:
    request = struct.pack(">HHHBBHH", 7, 0, 6, 9, 3, 0, 1)
    async with serving(build_machines(1, 12), PhysicsSource(1, 1, 12), Settings()) as plant:
        reader, writer = await asyncio.open_connection("127.0.0.1", plant.ports[0])
        for byte in request:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)
        assert (await reader.readexactly(11))[:9] == struct.pack(">HHHBBB", 7, 0, 5, 9, 3, 2)
        writer.write(request * 50)
        assert len(await reader.readexactly(50 * 11)) == 550
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        async with client_of(plant.ports[0]) as client:
            assert not (await client.read_holding_registers(0, count=1)).isError()


async def test_a_port_that_is_taken_is_a_service_error_and_nothing_stays_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(port=port, truth=tmp_path / "truth.parquet")
        with pytest.raises(ServiceError, match=f"127.0.0.1:{port}"):
            await Simulation(build_machines(1, 1), PhysicsSource(1, 1, 1), settings).start()
    assert not any(path.exists() for path in (settings.truth, tmp_path / "truth.parquet.part.duckdb"))


@pytest.mark.skipif(not SIGNALS.is_file(), reason=f"NO REAL SIGNALS at {SIGNALS}: replay of them is not checked")
async def test_real_signals_arrive_exactly_as_recorded(tmp_path: Path) -> None:
    recordings = replay.load_recordings(SIGNALS)
    machines = replay.build_machines(SIGNALS, recordings)
    settings = Settings(truth=tmp_path / "truth.parquet")
    seen: dict[str, list[float]] = {}
    async with serving(machines, replay.ReplaySource(recordings, 20.0), settings) as plant:
        for _ in range(10):
            for device, port in zip(config_of(machines, plant.ports), plant.ports, strict=True):
                async with client_of(port) as client:
                    for tag in device["tags"]:
                        name = f"{device['machine_id']}.{tag['name']}"
                        seen.setdefault(name, []).append(await read(client, tag, device))
            await asyncio.sleep(0.1)
    source = duckdb.execute("SELECT series, value FROM read_parquet(?)", [str(SIGNALS)]).fetchnumpy()
    assert set(seen) == set(source["series"])
    for name, values in seen.items():
        recorded = set(source["value"][source["series"] == name].view(np.int64).tolist())
        assert set(np.array(values).view(np.int64).tolist()) <= recorded, name
    assert len(set(seen["skab.accel1_rms_g"])) > 5, "it moves"
    told = truth_of(tmp_path / "truth.parquet")
    for name, values in seen.items():
        mine = [row[3] for row in sorted(told) if f"{row[1]}.{row[2]}" == name]
        assert bits(mine) == bits(values), name


def start_program(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_agent.simulate", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_program_serves_writes_its_config_and_keeps_the_truth_on_sigterm(tmp_path: Path) -> None:
    config, truth = tmp_path / "agent.toml", tmp_path / "truth.parquet"
    words = ["--machines", "2", "--port", "0", "--json", "--write-config", str(config), "--truth", str(truth)]
    program = start_program(*words, "--data-dir", "somewhere")
    assert program.stdout is not None
    ready = json.loads(program.stdout.readline())
    assert ready["event"] == "ready"
    devices = tomllib.loads(config.read_text())["devices"]
    assert [device["address"] for device in devices] == [f"127.0.0.1:{port}" for port in ready["ports"]]

    async def poll() -> float:
        async with client_of(ready["ports"][1]) as client:
            return await read(client, devices[1]["tags"][0], devices[1])

    value = asyncio.run(poll())
    program.send_signal(signal.SIGTERM)
    out, err = program.communicate(timeout=10)
    assert program.returncode == 0, err
    assert err == ""
    summary = json.loads(out)
    assert (summary["event"], summary["responses"], summary["truth_rows"]) == ("summary", 1, 1)
    [row] = truth_of(truth)
    assert row[1:] == ("press-2", "temperature", value, True, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.toml", "truth.parquet"]


def test_the_program_stops_after_its_duration_and_says_ready_to_people() -> None:
    program = start_program("--machines", "1", "--port", "0", "--duration", "200ms", "--scenario", "demo")
    out, err = program.communicate(timeout=10)
    assert program.returncode == 0
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["machine", "address", "tags"]
    assert lines[1].split()[0] == "press-1"
    assert "ready" in lines
    assert lines[-1].startswith("served 0 of 0 requests")


def test_the_program_fails_with_1_if_a_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = start_program("--machines", "1", "--port", str(taken.getsockname()[1]))
        out, err = program.communicate(timeout=10)
    assert program.returncode == 1
    assert out == ""
    assert err.count("\n") == 1
    assert "in use" in err
