"""What an adapter is: the one seam between the agent and a protocol.

Call order, for each device:

    adapter = AdapterClass(device)         pure: no socket is opened, a plan is made
    adapter.plan                           may be read at any time
    async with adapter:                    nothing is sent yet; leaving closes the connection
        frame = await adapter.poll()       connects when needed; repeated at the device's poll interval

A poll never raises for what the world does: a device that is gone, slow or confused gives its points a bad status
code and `adapter.last_error` a sentence for people. Cancellation always goes through.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, Self

from common.config import FrozenModel
from common.errors import ConfigError, Problem
from common.model import ReadingFrame


@dataclass(frozen=True, slots=True)
class Plan:
    """How a device will be read, in words and numbers a technician understands."""

    requests: int
    points: int
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.requests} request{'s' * (self.requests != 1)} for {self.points} points"


class Adapter(Protocol):
    """Reads the points of one device. Point k of a frame's `series` column is tag k of the device."""

    device_model: ClassVar[type[FrozenModel]]
    """The config of a device of this kind: a subclass of edge_agent.config.DeviceConfig."""

    plan: Plan
    last_error: str | None
    """Why the last poll was not wholly good, in plain words that name the request; None after a good one."""

    def __init__(self, device: Any) -> None:  # noqa: ANN401 - an instance of the adapter's own device_model
        """Make the plan for `device`."""
        ...

    async def __aenter__(self) -> Self:
        """Take what a connection will need; does no input or output."""
        ...

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connection, if there is one."""
        ...

    async def poll(self) -> ReadingFrame:
        """Read every point once: one reading a point, `series` = index of the device's tag, in plan order."""
        ...


@cache
def adapter_classes() -> dict[str, type[Adapter]]:
    """Return every installed adapter by name; one that cannot be imported is a ConfigError naming its package."""
    found: dict[str, type[Adapter]] = {}
    for entry in entry_points(group="forebay.adapters"):
        try:
            found[entry.name] = entry.load()
        except ImportError as error:
            raise ConfigError(f"adapter {entry.name}", [Problem("", f"cannot be loaded: {error}")]) from error
    return found
