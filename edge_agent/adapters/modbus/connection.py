"""One Modbus TCP connection: a request, and the answer to exactly that request.

In: planned requests. Out: registers or bits, as many as asked for. Fails with DeviceError, whose text names the
request. After any failure but a refusal by the device the connection is closed for good, so that a late reply can
never be taken for the answer to a later request. pymodbus does the framing; what it would wait for or log with a
traceback (a foreign protocol, a broken frame, bytes that nobody asked for) is caught here before it gets there.
"""

import asyncio
import logging
from collections.abc import Sequence

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ExceptionResponse, ModbusPDU

from common.errors import DeviceError
from common.model import StatusCode
from edge_agent.adapters.modbus.config import ModbusDevice, Table
from edge_agent.adapters.modbus.plan import Request
from edge_agent.adapters.resolve import resolve

logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # last_error says it, once

_EXCEPTIONS = {
    1: ("illegal function: the device does not know this kind of read", StatusCode.BAD_NOT_SUPPORTED),
    2: ("illegal address: not all of these registers exist", StatusCode.BAD_CONFIGURATION_ERROR),
    3: ("illegal value: the device refuses this many registers at once", StatusCode.BAD_CONFIGURATION_ERROR),
    4: ("device failure", StatusCode.BAD_DEVICE_FAILURE),
    5: ("acknowledged, still working", StatusCode.BAD_DEVICE_FAILURE),
    6: ("device busy", StatusCode.BAD_DEVICE_FAILURE),
    8: ("memory parity error", StatusCode.BAD_DEVICE_FAILURE),
    10: ("gateway has no path to the unit", StatusCode.BAD_NO_COMMUNICATION),
    11: ("unit behind the gateway does not answer", StatusCode.BAD_NO_COMMUNICATION),
}
_FUNCTIONS = {Table.COIL: 1, Table.DISCRETE: 2, Table.HOLDING: 3, Table.INPUT: 4}
_HEADER_BYTES = 9
"""MBAP header, function code, and the byte count or exception code."""
_EXCEPTION_BIT = 0x80


class ModbusConnection:
    """Open until something goes wrong on it; made by `open_connection`."""

    def __init__(self, device: ModbusDevice, host: str) -> None:
        """Nothing is sent yet."""
        self._device = device
        self._asked: Request | None = None
        self._fault: str | None = None
        self._client = AsyncModbusTcpClient(
            host,
            port=device.port,
            name=device.name,
            timeout=device.timeout_s,
            retries=0,
            reconnect_delay=0,  # reconnecting is decided at a poll
            trace_packet=self._on_packet,
            trace_connect=self._on_connect,
        )

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self._fault is None and bool(self._client.connected)

    async def connect(self) -> bool:
        """Connect; returns whether that worked."""
        try:
            async with asyncio.timeout(self._device.timeout_s):
                return bool(await self._client.connect())
        except (ModbusException, OSError):
            return False

    async def ask(self, request: Request) -> Sequence[int]:
        """Return the `request.count` registers or bits, perhaps with padding bits; raises DeviceError."""
        self._asked = request
        try:
            async with asyncio.timeout(self._device.timeout_s):
                response = await self._read(request)
        except (ModbusException, OSError) as error:
            raise self._broken(request) from error
        except BaseException:
            self.close()  # cancelled: the answer that is still to come belongs to nobody
            raise
        finally:
            self._asked = None
        if isinstance(response, ExceptionResponse):
            code = response.exception_code
            words, status = _EXCEPTIONS.get(code, (f"exception code {code}", StatusCode.BAD))
            raise DeviceRefusedError(f"{self._device.address} refused {request}: {words}", status)
        data: Sequence[int] = response.bits if request.table.is_bits else response.registers
        if len(data) < request.count:
            self._fault = f"{len(data)} values"
            raise self._broken(request)
        return data

    def close(self) -> None:
        """Close it, whatever state it is in."""
        self._fault = self._fault or "closed"
        self._client.close()

    async def _read(self, request: Request) -> ModbusPDU:
        read = {
            Table.HOLDING: self._client.read_holding_registers,
            Table.INPUT: self._client.read_input_registers,
            Table.COIL: self._client.read_coils,
            Table.DISCRETE: self._client.read_discrete_inputs,
        }[request.table]
        return await read(request.number, count=request.count, device_id=self._device.unit_id)

    def _broken(self, request: Request) -> DeviceError:
        fault, address = self._fault, self._device.address
        self.close()
        if fault is None:
            why = f"{address} did not answer {request} within {self._device.timeout_s:g} s"
            return DeviceError(why, StatusCode.BAD_TIMEOUT)
        return DeviceError(f"{address} answered {request} with {fault}", StatusCode.BAD_COMMUNICATION_ERROR)

    # -- what pymodbus tells ---------------------------------------------------------------------------------------

    def _on_packet(self, sending: bool, data: bytes) -> bytes:  # noqa: FBT001 - pymodbus's signature
        """See all bytes received and not yet used; after a fault, none get through."""
        if sending:
            return data
        if self._fault is None:
            fault = "bytes that nobody asked for" if self._asked is None else _fault_in(data, self._asked)
            if fault is None:
                return data
            self._fail(fault)
        return b""

    def _on_connect(self, connected: bool) -> None:  # noqa: FBT001 - pymodbus's signature
        if not connected and self._fault is None:
            self._fail("the end of the connection")

    def _fail(self, fault: str) -> None:
        """Close, and let whoever waits for an answer wait no longer."""
        self._fault = fault
        answer = self._client.ctx.response_future
        if self._asked is not None and not answer.done():
            answer.set_exception(ModbusException(fault))
        self._client.close()


class DeviceRefusedError(DeviceError):
    """The device answered that it will not: the connection is good, asking again at once is useless."""


async def open_connection(device: ModbusDevice) -> ModbusConnection:
    """Connect to `device` within its timeout; raises DeviceError."""
    try:
        host = await resolve(device.host, device.timeout_s)
    except OSError as error:
        why = f"cannot find the address of {device.host}: {error.strerror or 'no answer from the name server'}"
        raise DeviceError(why, StatusCode.BAD_NO_COMMUNICATION) from error
    connection = ModbusConnection(device, host)
    try:
        if await connection.connect():
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    raise DeviceError(f"cannot connect to {device.address}", StatusCode.BAD_NO_COMMUNICATION)


def _fault_in(data: bytes, asked: Request) -> str | None:
    """Say what is wrong with the beginning of an answer to `asked`; None while nothing is.

    Transaction and unit are not looked at: pymodbus skips what belongs to others and waits for the right one.
    """
    if any(data[2:4]):
        return "something that is not Modbus"
    if len(data) < _HEADER_BYTES:
        return None
    length, function, size = int.from_bytes(data[4:6]), data[7], data[8]
    if function & ~_EXCEPTION_BIT != _FUNCTIONS[asked.table]:
        return f"function {function}"
    wanted = (asked.count + 7) // 8 if asked.table.is_bits else 2 * asked.count
    if not function & _EXCEPTION_BIT and (size != wanted or length != wanted + 3):
        return f"{size} bytes in a frame of {length} instead of {wanted} bytes"
    return None
