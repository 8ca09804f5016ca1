"""What the tests of the edge agent are made of: a clock that can be set, drafts, and devices."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.model import Route
from common.wire import TELEMETRY_BATCH
from edge_agent.adapters.modbus.config import ModbusDevice
from edge_agent.batching import DraftBatch

EXAMPLE = """
broker = "embedded"
[agent]
agent_id = "gw-1"
[[devices]]
name = "press-1"
adapter = "modbus"
address = "127.0.0.1:5020"
[[devices.tags]]
name = "t"
address = "holding:0"
"""


@dataclass(slots=True)
class FakeClock:
    us: int = 1_700_000_000_000_000
    seconds: float = 0.0

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.seconds


def draft(machine_id: str = "m", size: int = 100, readings: int = 10, route: Route = Route.STREAM) -> DraftBatch:
    return DraftBatch(TELEMETRY_BATCH, machine_id, route, 1, 2, readings, bytes([size % 251]) * size)


def modbus_device(tags: list[dict[str, Any]], **fields: Any) -> ModbusDevice:
    named = [{"name": f"t{number}", **tag} for number, tag in enumerate(tags)]
    return ModbusDevice.model_validate({"name": "d", "address": "127.0.0.1:5020", "tags": named, **fields})


def write_config(folder: Path, text: str = EXAMPLE) -> Path:
    path = folder / "edge.toml"
    path.write_text(text)
    return path
