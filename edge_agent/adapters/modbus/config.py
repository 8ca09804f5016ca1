"""The config of a Modbus device and its tags."""

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from edge_agent.config import DeviceConfig, Seconds, TagConfig

Order = Literal["big", "little"]
REGISTERS_PER_REQUEST_MAX = 125
BITS_PER_REQUEST_MAX = 2000
ADDRESS_MAX = 65_535
_ADDRESS = re.compile(r"(holding|input|coil|discrete):(\d{1,5})")
_HOST_PORT = re.compile(r"([^\s:]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
_PORT_MAX = 65_535


class Table(StrEnum):
    """The four Modbus tables; a number is 0-based within its table (40001 on a data sheet is holding:0)."""

    HOLDING = "holding"
    INPUT = "input"
    COIL = "coil"
    DISCRETE = "discrete"

    @property
    def is_bits(self) -> bool:
        """Whether the table holds bits rather than 16-bit registers."""
        return self in {Table.COIL, Table.DISCRETE}


class ValueType(StrEnum):
    """How registers become a number."""

    BOOL = "bool"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"
    UINT32 = "uint32"
    INT64 = "int64"
    UINT64 = "uint64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def registers(self) -> int:
        """How many 16-bit registers one value takes."""
        return {"16": 1, "32": 2, "64": 4}.get(self.value[-2:], 1)


class ModbusTag(TagConfig):
    """One point: engineering value = raw * scale + offset, in float64 (64-bit integers above 2**53 are rounded)."""

    address: Annotated[str, Field(description="holding|input|coil|discrete : 0-based number")]
    type: ValueType = ValueType.UINT16
    bit: Annotated[int, Field(ge=0, le=15)] | None = None
    scale: float = 1.0
    offset: float = 0.0
    byte_order: Order | None = None
    word_order: Order | None = None

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        match = _ADDRESS.fullmatch(value)
        if match is None or int(match[2]) > ADDRESS_MAX:
            raise ValueError("expected holding:N, input:N, coil:N or discrete:N with N from 0 to 65535")
        return value

    @model_validator(mode="after")
    def _type_fits_the_table(self) -> Self:
        if self.table.is_bits:
            if self.type is not ValueType.BOOL or self.bit is not None:
                raise ValueError(f"a {self.table} is one bit: type must be bool, without bit")
        elif (self.type is ValueType.BOOL) != (self.bit is not None):
            raise ValueError("type bool in a register needs bit = 0..15, and bit needs type bool")
        if self.number + self.width - 1 > ADDRESS_MAX:
            raise ValueError(f"{self.type} at {self.address} reaches beyond address 65535")
        if self.scale == 0.0:
            raise ValueError("scale 0 makes every value the same")
        return self

    @property
    def table(self) -> Table:
        """Which of the four tables the point is in."""
        return Table(self.address.partition(":")[0])

    @property
    def number(self) -> int:
        """0-based number of the point's first register or bit."""
        return int(self.address.partition(":")[2])

    @property
    def width(self) -> int:
        """How many registers (or bits, in a bit table) the point takes."""
        return 1 if self.table.is_bits else self.type.registers


class ModbusDevice(DeviceConfig):
    """One Modbus TCP server (or one unit behind a gateway)."""

    adapter: Literal["modbus"] = "modbus"
    address: Annotated[str, Field(description="host:port")]
    unit_id: Annotated[int, Field(ge=0, le=255)] = 1
    timeout_s: Seconds = 1.0
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    byte_order: Order = "big"
    word_order: Order = "big"
    gap_max: Annotated[int, Field(ge=0, le=124, description="unused registers worth reading to save a request")] = 8
    registers_per_request_max: Annotated[int, Field(ge=4, le=REGISTERS_PER_REQUEST_MAX)] = REGISTERS_PER_REQUEST_MAX
    bits_per_request_max: Annotated[int, Field(ge=1, le=BITS_PER_REQUEST_MAX)] = BITS_PER_REQUEST_MAX
    tags: Annotated[tuple[ModbusTag, ...], Field(min_length=1)]

    @field_validator("address")
    @classmethod
    def _is_host_and_port(cls, value: str) -> str:
        match = _HOST_PORT.fullmatch(value)
        if match is None or not 1 <= int(match[2]) <= _PORT_MAX:
            raise ValueError("expected host:port, for example 192.0.2.10:502")
        return value

    @property
    def host(self) -> str:
        """Host name or IP address."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """TCP port."""
        return int(self.address.rpartition(":")[2])
