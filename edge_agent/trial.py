"""`edge-agent test`: read the devices for a while and show what they say, storing and sending nothing."""

import asyncio
from dataclasses import dataclass

import numpy as np

from common.clock import SystemClock, iso8601
from common.model import ReadingFrame, StatusCode
from edge_agent.agent import make_adapters
from edge_agent.config import AgentConfig
from edge_agent.poller import DeviceState, Pace, poll_device
from edge_agent.series import build_series_table


@dataclass(frozen=True, slots=True)
class TagReport:
    """What a trial saw of one tag."""

    device: str
    machine_id: str
    tag: str
    unit: str
    readings: int
    last_value: float | None
    last_ts: str | None
    status: str
    error: str | None


def status_words(code: int) -> str:
    """Name a status code in words, or in hexadecimal where it has no name here."""
    try:
        return StatusCode(code).name.lower().replace("_", " ")
    except ValueError:
        return f"0x{code & 0xFFFF_FFFF:08X}"


async def try_devices(config: AgentConfig, seconds: float) -> list[TagReport]:
    """Poll every device of `config` for `seconds`; one report a tag, in config order."""
    table = build_series_table(config.devices)
    readings = np.zeros(len(table), np.int64)
    last_ts = np.zeros(len(table), np.int64)
    last_value = np.full(len(table), np.nan)
    last_status = np.zeros(len(table), np.int32)

    def deliver(frame: ReadingFrame) -> None:
        readings[frame.series] += 1
        last_ts[frame.series] = frame.ts_us
        last_value[frame.series] = frame.values
        last_status[frame.series] = frame.statuses

    states = [DeviceState(device.name, len(device.tags)) for device in config.devices]
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(
            poll_device(adapter, rows, Pace(device.poll_interval_s), state, deliver, SystemClock(), stop)
        )
        for adapter, rows, device, state in zip(
            make_adapters(config), table.rows_of_device, config.devices, states, strict=True
        )
    ]
    await asyncio.wait(tasks, timeout=seconds)
    stop.set()
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return [
        TagReport(
            device=device.name,
            machine_id=device.machine_of(tag),
            tag=tag.name,
            unit=tag.unit,
            readings=int(readings[row]),
            last_value=None if not readings[row] or np.isnan(last_value[row]) else float(last_value[row]),
            last_ts=iso8601(int(last_ts[row])) if readings[row] else None,
            status=status_words(int(last_status[row])) if readings[row] else "no answer yet",
            error=state.last_error if not readings[row] or last_status[row] else None,
        )
        for device, rows, state in zip(config.devices, table.rows_of_device, states, strict=True)
        for tag, row in zip(device.tags, rows, strict=True)
    ]
