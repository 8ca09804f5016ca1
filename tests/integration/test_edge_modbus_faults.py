"""The Modbus adapter against servers that misbehave: a status code and a sentence, never an exception, never a hang."""

import asyncio
import gc
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import psutil
import pytest

from common.model import ReadingFrame, StatusCode
from edge_agent.adapters.modbus import ModbusAdapter
from tests.unit.edge_agent.samples import modbus_device

TIMEOUT_S = 0.3
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame_of(request: bytes, pdu: bytes, **change: int) -> bytes:
    transaction, unit = struct.unpack(">H", request[:2])[0], request[6]
    header: bytes = struct.pack(
        ">HHHB",
        change.get("transaction", transaction), change.get("protocol", 0), change.get("length", len(pdu) + 1),
        change.get("unit", unit),
    )  # fmt: skip
    return bytes(header + pdu)


def good_pdu(request: bytes, fill: int = 1) -> bytes:
    function, _, count = struct.unpack(">BHH", request[7:12])
    if function <= 2:
        return bytes([function, (count + 7) // 8]) + bytes([0xFF] * ((count + 7) // 8))
    return bytes([function, 2 * count]) + struct.pack(">H", fill) * count


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    listening = await asyncio.start_server(guarded, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.sleep(0)


def answering(reply: Callable[[bytes], bytes]) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.readexactly(12):
            writer.write(reply(request))
            await writer.drain()

    return handle


def adapter_for(port: int, registers: int = 4, **fields: object) -> ModbusAdapter:
    tags = [{"address": f"holding:{number}"} for number in range(registers)]
    device = modbus_device(tags, address=f"127.0.0.1:{port}", **{"timeout_s": TIMEOUT_S, "retries": 0, **fields})
    return ModbusAdapter(device)


async def poll_once(handler: Handler, within_s: float = TIMEOUT_S + 0.6, **fields: object) -> tuple[ReadingFrame, str]:
    async with server(handler) as port:
        adapter = adapter_for(port, **fields)  # type: ignore[arg-type]
        async with adapter:
            started = time.monotonic()
            frame = await adapter.poll()
            assert time.monotonic() - started < within_s
        assert len(frame) == 4
        return frame, adapter.last_error or ""


MISBEHAVIOUR: dict[str, tuple[Callable[[bytes], bytes], StatusCode, str]] = {
    "never answers": (lambda _: b"", StatusCode.BAD_TIMEOUT, "did not answer holding:0-3 within 0.3 s"),
    "another transaction": (
        lambda request: frame_of(request, good_pdu(request), transaction=9999),
        StatusCode.BAD_TIMEOUT, "did not answer",
    ),
    "another unit": (
        lambda request: frame_of(request, good_pdu(request), unit=9), StatusCode.BAD_TIMEOUT, "did not answer",
    ),
    "another protocol": (
        lambda request: frame_of(request, good_pdu(request), protocol=5),
        StatusCode.BAD_COMMUNICATION_ERROR, "something that is not Modbus",
    ),
    "another function": (
        lambda request: frame_of(request, b"\x04" + good_pdu(request)[1:]),
        StatusCode.BAD_COMMUNICATION_ERROR, "function 4",
    ),
    "too few registers": (
        lambda request: frame_of(request, b"\x03\x04\0\1\0\1"), StatusCode.BAD_COMMUNICATION_ERROR, "4 bytes",
    ),
    "too many registers": (
        lambda request: frame_of(request, b"\x03\x0a" + b"\0\1" * 5), StatusCode.BAD_COMMUNICATION_ERROR, "10 bytes",
    ),
    "an odd byte count": (
        lambda request: frame_of(request, b"\x03\x07" + b"\0" * 7), StatusCode.BAD_COMMUNICATION_ERROR, "7 bytes",
    ),
    "a byte count that lies": (
        lambda request: frame_of(request, b"\x03\x08" + b"\0" * 4), StatusCode.BAD_COMMUNICATION_ERROR, "frame of 7",
    ),
    "half a frame": (
        lambda request: frame_of(request, good_pdu(request))[:13], StatusCode.BAD_TIMEOUT, "did not answer",
    ),
    "a frame that says it is huge": (
        lambda request: frame_of(request, good_pdu(request), length=65_535),
        StatusCode.BAD_COMMUNICATION_ERROR, "frame of 65535",
    ),
    "an HTTP server": (
        lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", StatusCode.BAD_COMMUNICATION_ERROR, "not Modbus",
    ),
    "zeros": (lambda _: bytes(100), StatusCode.BAD_COMMUNICATION_ERROR, "function 0"),
    "more than any frame": (lambda _: bytes(2000), StatusCode.BAD_TIMEOUT, "did not answer"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISBEHAVIOUR)
async def test_a_wrong_answer_is_a_status_code(what: str) -> None:
    reply, status, words = MISBEHAVIOUR[what]
    frame, error = await poll_once(answering(reply))
    assert set(frame.statuses.tolist()) == {status}
    assert np.isnan(frame.values).all()
    assert words in error
    assert "127.0.0.1" in error


@pytest.mark.parametrize("code", range(256))
async def test_every_exception_code(code: int) -> None:
    reply = answering(lambda request: frame_of(request, bytes([0x83, code])))
    frame, error = await poll_once(reply, within_s=5.0, timeout_s=5.0)
    assert (frame.statuses < 0).all()
    assert "refused holding:0-3" in error
    known = {
        1: "function",
        2: "address",
        3: "this many",
        4: "failure",
        6: "busy",
        10: "no path",
        11: "behind the gateway",
    }
    assert known.get(code, "") in error


async def test_a_connection_closed_in_the_middle_of_a_frame_is_noticed_at_once() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(12)
        writer.write(frame_of(request, good_pdu(request))[:11])
        await writer.drain()

    frame, error = await poll_once(handle, within_s=0.5, timeout_s=5.0)
    assert set(frame.statuses.tolist()) == {StatusCode.BAD_COMMUNICATION_ERROR}
    assert "end of the connection" in error


async def test_a_flood_of_random_bytes() -> None:
    chance = random.Random(4)

    async def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(chance.randbytes(20_000))
            await writer.drain()
            await asyncio.sleep(0)

    frame, error = await poll_once(handle)
    assert (frame.statuses < 0).all()
    assert error


async def test_a_busy_device_keeps_its_connection() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answering(lambda request: frame_of(request, b"\x83\x06"))(reader, writer)

    async with server(handle) as port:
        adapter = adapter_for(port, retries=3)
        async with adapter:
            for _ in range(5):
                assert set((await adapter.poll()).statuses.tolist()) == {StatusCode.BAD_DEVICE_FAILURE}
    assert connections == 1


@pytest.mark.parametrize("late_s", [0.35, 0.5])
async def test_a_late_reply_is_never_taken_for_the_next_answer(late_s: float) -> None:
    """The third answer comes too late; every answer holds the number of its request."""
    asked = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while request := await reader.readexactly(12):
            asked += 1
            # Some devices answer with a transaction id of their own making: 0.
            reply = frame_of(request, good_pdu(request, fill=asked), transaction=0)
            if asked == 3:
                asyncio.get_running_loop().call_later(late_s, writer.write, reply)
            else:
                writer.write(reply)

    async with server(handle) as port:
        adapter = adapter_for(port)
        seen = []
        async with adapter:
            for _ in range(8):
                frame = await adapter.poll()
                seen.append(None if frame.statuses.any() else set(frame.values.tolist()))
                await asyncio.sleep(0.03)
    assert seen == [{1.0}, {2.0}, None, {4.0}, {5.0}, {6.0}, {7.0}, {8.0}]


async def test_a_retry_hides_a_single_loss() -> None:
    asked = 0

    def reply(request: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return b"" if asked == 1 else frame_of(request, good_pdu(request))

    frame, error = await poll_once(answering(reply), within_s=2 * TIMEOUT_S + 0.6, retries=1)
    assert not frame.statuses.any()
    assert error == ""


async def test_a_black_hole_with_many_requests_costs_two_timeouts_not_all() -> None:
    async with server(answering(lambda _: b"")) as port:
        tags = [{"address": f"holding:{number * 200}"} for number in range(100)]
        device = modbus_device(tags, address=f"127.0.0.1:{port}", timeout_s=TIMEOUT_S, retries=0)
        async with ModbusAdapter(device) as adapter:
            assert adapter.plan.requests == 100
            started = time.monotonic()
            frame = await adapter.poll()
            assert time.monotonic() - started < 2 * TIMEOUT_S + 0.6
    assert set(frame.statuses.tolist()) == {StatusCode.BAD_TIMEOUT}


async def test_silence_about_some_addresses_costs_the_others_nothing() -> None:
    def reply(request: bytes) -> bytes:
        (number,) = struct.unpack(">H", request[8:10])
        return frame_of(request, good_pdu(request)) if number >= 600 else b""

    async with server(answering(reply)) as port:
        tags = [{"address": f"holding:{number * 200}"} for number in range(10)]
        device = modbus_device(tags, address=f"127.0.0.1:{port}", timeout_s=TIMEOUT_S, retries=0)
        async with ModbusAdapter(device) as adapter:
            for _ in range(3):
                frame = await adapter.poll()
    good = frame.series[frame.statuses == 0]
    assert sorted(good.tolist()) == list(range(3, 10))


async def test_one_refused_request_leaves_the_others_good() -> None:
    def reply(request: bytes) -> bytes:
        (number,) = struct.unpack(">H", request[8:10])
        return frame_of(request, b"\x83\x02" if number == 200 else good_pdu(request))

    async with server(answering(reply)) as port:
        tags = [{"address": f"holding:{number * 200}"} for number in range(3)]
        device = modbus_device(tags, address=f"127.0.0.1:{port}", timeout_s=TIMEOUT_S, retries=0)
        async with ModbusAdapter(device) as adapter:
            frame = await adapter.poll()
            assert "holding:200-200: illegal address" in str(adapter.last_error)
    assert frame.statuses.tolist() == [0, StatusCode.BAD_CONFIGURATION_ERROR, 0]


async def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> list[object]:
        time.sleep(1.0)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", slow)
    device = modbus_device([{"address": "holding:0"}], address="plc.example:502", timeout_s=TIMEOUT_S, retries=0)
    async with ModbusAdapter(device) as adapter:
        started = time.monotonic()
        frame = await adapter.poll()
        assert time.monotonic() - started < TIMEOUT_S + 0.6
        assert adapter.last_error is not None
        assert "cannot find the address of plc.example" in adapter.last_error
    assert set(frame.statuses.tolist()) == {StatusCode.BAD_NO_COMMUNICATION}


async def test_memory_stays_flat_over_thousands_of_reconnects() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)
        writer.write(b"garbage that is not Modbus")
        writer.transport.abort()

    process = psutil.Process()
    async with server(slam) as port, adapter_for(port, retries=1) as adapter:
        for _ in range(300):
            await adapter.poll()
        gc.collect()
        before, objects, files = process.memory_info().rss, len(gc.get_objects()), process.num_fds()
        for _ in range(1500):
            await adapter.poll()
        gc.collect()
        assert process.memory_info().rss - before < 3_000_000
        assert len(gc.get_objects()) - objects < 1000
        assert process.num_fds() - files < 10
        assert len(asyncio.all_tasks()) < 20
