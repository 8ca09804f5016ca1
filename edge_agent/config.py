"""The agent's config: TOML into frozen models; every mistake, in every device and tag, reported at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from common.codec import CodecName
from common.config import (
    BrokerConfig,
    EmbeddedBroker,
    FrozenModel,
    HttpConfig,
    LocalPath,
    parse,
    problems_of,
    read_toml,
)
from common.embedded.broker import PARTITION_BYTES
from common.errors import ConfigError, Problem
from common.logging import Level
from common.model import ReportMode, Route
from edge_agent.adapters.contract import adapter_classes

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]

BIRTH_BYTES_MAX = 900_000
"""A birth message carries every tag of a machine, and must fit into one Kafka message of 1 MB."""
_BIRTH_BYTES_PER_TAG = 32


class AgentSection(FrozenModel):
    """`[agent]`: who this agent is and where it keeps its data."""

    agent_id: Name
    gateway_id: Text = ""
    site: Text = ""
    data_dir: LocalPath = Path("forebay-data")
    log_level: Level = "info"


class BatchingSection(FrozenModel):
    """`[batching]`: how long readings gather before they are compressed and made safe."""

    flush_interval_s: Seconds = 1.0
    readings_per_block_max: Annotated[int, Field(ge=1, le=4096)] = 1024
    codec: CodecName = "balanced"


class BufferSection(FrozenModel):
    """`[buffer]`: the local store-and-forward buffer."""

    size_mb_max: Annotated[float, Field(ge=1)] = 1024.0
    history_mb_max: Annotated[float, Field(ge=0)] = 128.0
    segment_mb: Annotated[float, Field(gt=0, le=1024)] = 16.0
    when_full: Literal["drop_oldest", "drop_newest"] = "drop_oldest"


class UplinkSection(FrozenModel):
    """`[uplink]`: how batches are forwarded to Kafka."""

    in_flight_kb_max: Annotated[int, Field(ge=64, le=65_536)] = 4096
    in_flight_batches_max: Annotated[int, Field(ge=1, le=100_000)] = 2000
    linger_ms: Annotated[int, Field(ge=0, le=1000)] = 5
    compression: Literal["zstd", "none"] = "zstd"


class TagConfig(FrozenModel):
    """What every protocol's tags have in common; an adapter adds how the point is addressed."""

    name: Name
    unit: Text = ""
    sensor_type: Text = ""
    machine_id: Text = Field(default="", description="default: the device's machine_id")
    range: tuple[float, float] | None = None
    deadband_absolute: Annotated[float, Field(ge=0)] | None = None
    deadband_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    swinging_door: Annotated[float, Field(gt=0)] | None = None
    interval_min_s: Seconds | None = None
    heartbeat_s: Seconds | None = None
    max_error: Annotated[float, Field(gt=0)] | None = None
    resolution: Annotated[float, Field(gt=0)] | None = None

    @field_validator("range")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("range is [low, high], low first")
        return value

    @model_validator(mode="after")
    def _deadband_makes_sense(self) -> Self:
        if self.deadband_absolute is not None and self.deadband_percent is not None:
            raise ValueError("give deadband_absolute or deadband_percent, not both")
        if self.deadband_percent is not None and self.range is None:
            raise ValueError("deadband_percent is a share of range = [low, high]; give the range")
        if self.swinging_door is not None and self.deadband is not None:
            raise ValueError("give a deadband or swinging_door, not both")
        if self.heartbeat_s is not None and self.mode is ReportMode.PERIODIC:
            raise ValueError("heartbeat_s only makes sense with a deadband; without one every poll is reported")
        if self.interval_min_s is not None and self.deadband is None:
            raise ValueError("interval_min_s only makes sense with a deadband")
        if self.interval_min_s and self.heartbeat_s and self.interval_min_s >= self.heartbeat_s:
            raise ValueError("interval_min_s must be shorter than heartbeat_s")
        return self

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.max_error is not None and self.resolution is not None:
            raise ValueError("give max_error or resolution, not both (resolution r means a max_error of r / 2)")
        return self

    @property
    def deadband(self) -> float | None:
        """The absolute deadband in units of the value, or None where every poll is reported."""
        if self.deadband_percent is not None and self.range is not None:
            return self.deadband_percent / 100.0 * (self.range[1] - self.range[0])
        return self.deadband_absolute

    @property
    def bound(self) -> float:
        """How far off a stored value may be, in units of the value; 0: exact."""
        return self.max_error or (self.resolution or 0.0) / 2

    @property
    def mode(self) -> ReportMode:
        """Whether the tag reports every poll or by exception."""
        every_poll = self.deadband is None and self.swinging_door is None
        return ReportMode.PERIODIC if every_poll else ReportMode.REPORT_BY_EXCEPTION


class DeviceConfig(FrozenModel):
    """What every protocol's devices have in common; an adapter adds how the device is reached, and its tags."""

    name: Name
    adapter: str
    machine_id: Text = ""
    route: Route = Route.STREAM
    poll_interval_s: Annotated[float, Field(ge=0.01, le=86_400)] = 1.0
    timestamp_resolution_us: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    tags: Annotated[tuple[TagConfig, ...], Field(min_length=1)]

    def machine_of(self, tag: TagConfig) -> str:
        """Return the machine a tag belongs to."""
        return tag.machine_id or self.machine_id or self.name


class AgentConfig(FrozenModel):
    """A whole config file; `devices` holds each adapter's own model."""

    agent: AgentSection
    broker: BrokerConfig = EmbeddedBroker()
    batching: BatchingSection = BatchingSection()
    buffer: BufferSection = BufferSection()
    uplink: UplinkSection = UplinkSection()
    http: HttpConfig = HttpConfig()
    devices: tuple[DeviceConfig, ...] = ()

    @property
    def in_flight_bytes_max(self) -> int:
        """How much may be sent and not yet safe; an embedded broker forgets what is above its partitions' size."""
        wanted = self.uplink.in_flight_kb_max * 1000
        return min(wanted, PARTITION_BYTES * 4 // 5) if isinstance(self.broker, EmbeddedBroker) else wanted

    @property
    def gateway_id(self) -> str:
        """The box the agent runs on; the agent itself where nothing else is said."""
        return self.agent.gateway_id or self.agent.agent_id


def load(path: Path) -> AgentConfig:
    """Read and check a config file; raises ConfigError with every problem found."""
    data = read_toml(path)
    raw_devices = data.pop("devices", [])
    problems: list[Problem] = []
    config: AgentConfig | None = None
    try:
        config = parse(AgentConfig, data, path)
    except ConfigError as error:
        problems += error.problems
    devices: dict[int, DeviceConfig] = {}
    if not isinstance(raw_devices, list) or not raw_devices:
        problems.append(Problem("devices", "at least one [[devices]] table is needed"))
    else:
        for index, raw in enumerate(raw_devices):
            device, found = _device(raw, index, path)
            problems += found
            if device is not None:
                devices[index] = device
        problems += _clashes(devices)
    if problems or config is None:
        raise ConfigError(str(path), problems)
    return config.model_copy(update={"devices": tuple(devices.values())})


def _device(raw: Any, index: int, path: Path) -> tuple[DeviceConfig | None, list[Problem]]:  # noqa: ANN401
    where = f"devices[{index}]"
    if not isinstance(raw, dict):
        return None, [Problem(where, "expected a table")]
    known = adapter_classes()
    name = raw.get("adapter")
    if not isinstance(name, str) or name not in known:
        got = "missing" if name is None else f"{name!r} is not installed"
        return None, [Problem(f"{where}.adapter", f"{got}; choose from: {', '.join(sorted(known))}")]
    try:
        device = known[name].device_model.model_validate(raw, context={"base": path.resolve().parent})
    except ValidationError as error:
        return None, problems_of(error, ["devices", index])
    if not isinstance(device, DeviceConfig):
        return None, [Problem(where, f"adapter {name}: its device_model is not a DeviceConfig")]
    return device, []


def _clashes(devices: Mapping[int, DeviceConfig]) -> list[Problem]:
    """Find what only shows in several tags together: names and series used twice, machines with too many tags."""
    problems: list[Problem] = []
    names: dict[str, int] = {}
    series: dict[tuple[str, str], str] = {}
    birth_bytes: dict[str, int] = {}
    for index, device in devices.items():
        if device.name in names:
            problems.append(Problem(f"devices[{index}].name", f"{device.name!r} is also devices[{names[device.name]}]"))
        names.setdefault(device.name, index)
        for position, tag in enumerate(device.tags):
            machine, where = device.machine_of(tag), f"devices[{index}].tags[{position}]"
            first = series.setdefault((machine, tag.name), where)
            if first != where:
                problems.append(Problem(f"{where}.name", f"tag {tag.name!r} of machine {machine!r} is also {first}"))
            text_bytes = sum(len(text.encode()) for text in (tag.name, tag.unit, tag.sensor_type))
            birth_bytes[machine] = birth_bytes.get(machine, 0) + text_bytes + _BIRTH_BYTES_PER_TAG
    problems += [
        Problem("devices", f"machine {machine!r} has too many tags, or too long names: split it into several")
        for machine, size in birth_bytes.items()
        if size > BIRTH_BYTES_MAX
    ]
    return problems
