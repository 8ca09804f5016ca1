"""The adapter for Modbus TCP: one connection, the planned requests one after another, a status code for every point."""

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from common.clock import Clock, SystemClock
from common.config import FrozenModel
from common.errors import DeviceError
from common.model import ReadingFrame, StatusCode
from edge_agent.adapters.modbus.config import ModbusDevice
from edge_agent.adapters.modbus.connection import DeviceRefusedError, ModbusConnection, open_connection
from edge_agent.adapters.modbus.decode import ResponseDecoder
from edge_agent.adapters.modbus.plan import Request, describe, plan_requests

TIMEOUTS_MAX = 2
"""After so many requests in a row without an answer, a poll gives up the rest: the device is gone."""


class ModbusAdapter:
    """Adapter (edge_agent.adapters.contract) for Modbus TCP."""

    device_model: ClassVar[type[FrozenModel]] = ModbusDevice

    def __init__(self, device: ModbusDevice, clock: Clock | None = None) -> None:
        """Make the plan for `device`; `clock` stamps the readings."""
        self._device = device
        self._clock = clock or SystemClock()
        self._requests = plan_requests(device)
        self._decoders = [ResponseDecoder(device, request) for request in self._requests]
        ends = np.cumsum([len(request.points) for request in self._requests])
        self._parts = [
            slice(int(end) - len(one.points), int(end)) for end, one in zip(ends, self._requests, strict=True)
        ]
        self._series = np.concatenate([np.array(request.points, np.int32) for request in self._requests])
        self._silent: set[int] = set()
        self._connection: ModbusConnection | None = None
        self.plan = describe(device, self._requests)
        self.last_error: str | None = None

    async def __aenter__(self) -> Self:
        """Nothing to take before the first poll."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connection, if there is one."""
        self._disconnect()

    async def poll(self) -> ReadingFrame:
        """Read every point once; see the contract.

        Requests that got no answer last time come last, so that one the device is silent about (some are, to an
        address they do not have) costs the others nothing.
        """
        values = np.full(self._series.size, np.nan)
        statuses = np.empty(self._series.size, np.int32)
        ts_us = np.empty(self._series.size, np.int64)
        error: DeviceError | None = None
        gone: DeviceError | None = None
        timeouts = 0
        read_us = 0
        for index in sorted(range(len(self._requests)), key=self._silent.__contains__):
            part = self._parts[index]
            try:
                if gone is not None:
                    raise gone
                values[part] = self._decoders[index].decode(await self._read(self._requests[index]))
                statuses[part] = StatusCode.GOOD
                self._silent.discard(index)
                timeouts = 0
            except DeviceError as failure:
                error = failure
                statuses[part] = failure.status_code
                if gone is None and failure.status_code == StatusCode.BAD_TIMEOUT:
                    self._silent.add(index)
                    timeouts += 1
                if failure.status_code == StatusCode.BAD_NO_COMMUNICATION or timeouts == TIMEOUTS_MAX:
                    gone = failure
            now_us = self._clock.now_us()
            if not 0 <= now_us - read_us < self._device.timestamp_resolution_us:
                read_us = now_us  # else: closer together than the resolution is one time, which a batch stores once
            ts_us[part] = read_us - read_us % self._device.timestamp_resolution_us
        self.last_error = str(error) if error else None
        return ReadingFrame(self._series, ts_us, values, statuses)

    async def _read(self, request: Request) -> Sequence[int]:
        """Ask for `request`, on a new connection after a failed try; raises DeviceError."""
        for _ in range(self._device.retries):
            try:
                return await (await self._connected()).ask(request)
            except DeviceRefusedError:
                raise
            except DeviceError as error:
                if error.status_code == StatusCode.BAD_NO_COMMUNICATION:
                    raise
        return await (await self._connected()).ask(request)

    async def _connected(self) -> ModbusConnection:
        if self._connection is None or not self._connection.is_open:
            self._disconnect()
            self._connection = await open_connection(self._device)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
