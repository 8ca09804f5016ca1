"""A Modbus TCP server for one machine: read functions 1 to 4 over an image of the plant.

In: requests from sockets, the plant's current snapshot, a decision per request whether its response is lost. Out:
responses, and one Served record for each that held values: which rows, from which snapshot, at which microsecond,
delivered or not. A request the map cannot answer gets exception 1 (function), 2 (address) or 3 (count); a connection
that does not speak Modbus TCP is closed. Any unit identifier is answered. Fails at start only, see `start`.

Written here instead of using pymodbus's server because the truth needs what that server (3.16.1, by its source; its CPU
was not measured) does not offer: its hooks (SimDevice.action, trace_pdu, trace_packet) are not told which connection
they serve, so that with two clients a response cannot be tied to its request, and none can reset a connection. It also
checks registers one by one in Python. As a bonus the agent's pymodbus client meets a peer with which it shares no code.
Specification: MODBUS Application Protocol 1.1b3, 6.1 to 6.4; MODBUS Messaging on TCP/IP 1.0b, 3.1.3 (MBAP).
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.clock import Clock
from common.errors import ConfigError, Problem, ServiceError
from edge_agent.simulate.faults import LinkFaults, Loss
from edge_agent.simulate.registers import Area, Image, Space

_HEADER = struct.Struct(">HHHB")
_READ = struct.Struct(">BHH")
_HEADER_LENGTH = _HEADER.size
_ADU_LENGTH_MAX = 254
"""Unit identifier and PDU: what the MBAP length field may say."""

_SPACE_OF = {1: Space.COIL, 2: Space.DISCRETE, 3: Space.HOLDING, 4: Space.INPUT}
_COUNT_MAX = {Space.COIL: 2000, Space.DISCRETE: 2000, Space.HOLDING: 125, Space.INPUT: 125}
_ILLEGAL_FUNCTION, _ILLEGAL_ADDRESS, _ILLEGAL_VALUE = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The plant at one moment; `held` and `injected` (per row of the map) only where a truth is kept."""

    image: Image
    held: NDArray[np.float64] | None = None
    injected: NDArray[np.uint8] | None = None


class Served(NamedTuple):
    """One response that held values: rows [low, high) of `snapshot`."""

    served_us: int
    snapshot: Snapshot
    low: int
    high: int
    loss: Loss


class Answer(NamedTuple):
    """A response PDU, and the rows it shows; none (0, 0) for an exception."""

    pdu: bytes
    low: int
    high: int


@dataclass(slots=True)
class Counts:
    """What a server has done so far."""

    requests: int = 0
    responses: int = 0
    exceptions: int = 0
    lost: int = 0
    resets: int = 0
    connections: int = 0


def answer(pdu: bytes, areas: dict[Space, Area], image: Image) -> Answer:
    """Answer one request PDU from one consistent image; pure."""
    function = pdu[0]
    space = _SPACE_OF.get(function)
    if space is None:
        return _exception(function, _ILLEGAL_FUNCTION)
    if len(pdu) != _READ.size:
        return _exception(function, _ILLEGAL_VALUE)
    _, address, count = _READ.unpack(pdu)
    if not 1 <= count <= _COUNT_MAX[space]:
        return _exception(function, _ILLEGAL_VALUE)
    area = areas[space]
    if address + count > area.size:
        return _exception(function, _ILLEGAL_ADDRESS)
    start = area.base + address
    if space.is_bits:
        bits = np.frombuffer(image.bits, np.uint8, count, start)
        data = np.packbits(bits, bitorder="little").tobytes()
    else:
        data = image.registers[2 * start : 2 * (start + count)]
    return Answer(bytes((function, len(data))) + data, *area.covered(address, count))


def _exception(function: int, code: int) -> Answer:
    return Answer(bytes((function | 0x80, code)), 0, 0)


class ModbusServer:
    """One machine's server.

    Args:
        areas: the machine's part of the register map.
        snapshot: gives the plant as it is now.
        link: decides which responses are lost.
        clock: stamps responses.
        record: takes each Served, or None where no truth is kept.
    """

    def __init__(
        self,
        areas: dict[Space, Area],
        snapshot: Callable[[], Snapshot],
        link: LinkFaults,
        clock: Clock,
        record: Callable[[Served], None] | None = None,
    ) -> None:
        self._areas, self._snapshot, self._link, self._clock, self._record = areas, snapshot, link, clock, record
        self._server: asyncio.Server | None = None
        self.counts = Counts()
        self.connections: set[_Connection] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, any free one if 0. ServiceError if it is taken, ConfigError for a bad host."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ConfigError("--host", [Problem(host, f"not an address of this machine: {error.strerror}")]) from error
        address = found[0][4][0]
        try:
            self._server = await loop.create_server(lambda: _Connection(self), str(address), port)
        except OSError as error:
            reason = (error.strerror or str(error)).rpartition(": ")[2].rstrip(")")
            raise ServiceError(f"cannot listen on {host}:{port}: {reason}") from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self.connections):
            connection.close()
        await self._server.wait_closed()
        self._server = None

    def respond(self, transaction: int, unit: int, pdu: bytes, transport: asyncio.Transport) -> bool:
        """Answer one request on `transport`; returns whether the connection is still of use."""
        number = self.counts.requests
        self.counts.requests += 1
        snapshot = self._snapshot()
        response, low, high = answer(pdu, self._areas, snapshot.image)
        loss = self._link.lost(number)
        served_us = self._clock.now_us()
        if loss is Loss.NONE:
            transport.write(_HEADER.pack(transaction, 0, len(response) + 1, unit) + response)
            self.counts.responses += 1
            self.counts.exceptions += response[0] >> 7
        else:
            self.counts.lost += 1
            self.counts.resets += loss is Loss.RESET
        if self._record is not None and high > low:
            self._record(Served(served_us, snapshot, low, high, loss))
        return loss is not Loss.RESET


class _Connection(asyncio.Protocol):
    """One client's connection: cuts the byte stream into requests, and stops reading while the client does."""

    def __init__(self, server: ModbusServer) -> None:
        self._server = server
        self._pending = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            self._server.connections.add(self)
            self._server.counts.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.connections.discard(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        pending = self._pending + data
        while len(pending) > _HEADER_LENGTH and self._transport is not None:
            transaction, protocol, length, unit = _HEADER.unpack_from(pending)
            if protocol != 0 or not 1 < length <= _ADU_LENGTH_MAX:
                self.close()
                return
            end = _HEADER_LENGTH - 1 + length
            if len(pending) < end:
                break
            if not self._server.respond(transaction, unit, pending[_HEADER_LENGTH:end], self._transport):
                self._reset()
                return
            pending = pending[end:]
        self._pending = pending

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """End the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _reset(self) -> None:
        """End the connection with a TCP reset (linger 0), as a failing switch or a rebooting device does."""
        if self._transport is not None:
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
