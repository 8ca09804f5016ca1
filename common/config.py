"""Reading TOML into frozen pydantic models, reporting every mistake at once with its path.

In: a path to a TOML file and the model it should fit. Out: the model. Fails with ConfigError only.
This is the only module that reads the environment: secrets are written in a config as `env:NAME` or
`credential:NAME` (a file in systemd's credentials folder), never as themselves unless in a test.
"""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)

from common.errors import ConfigError, Problem

_SERVICES = {"broker", "store"}

ModelT = TypeVar("ModelT", bound=BaseModel)


class FrozenModel(BaseModel):
    """Base of every config model: frozen, and a field nobody knows is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def _resolve_secret(value: object) -> object:
    if not isinstance(value, str):
        return value
    kind, _, name = value.partition(":")
    if kind == "env" and name:
        if name not in os.environ:
            raise ValueError(f"environment variable {name} is not set")
        return os.environ[name]
    if kind == "credential" and name:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise ValueError(f"credential {name}: no credentials folder; systemd's LoadCredential= provides it")
        try:
            return (Path(folder) / name).read_text("utf-8").strip()
        except OSError as error:
            raise ValueError(f"credential {name}: {error.strerror}") from error
    return value


def _resolve_path(value: object, info: ValidationInfo) -> object:
    base = (info.context or {}).get("base")
    if isinstance(value, str | Path) and base is not None:
        try:
            return Path(base) / Path(value).expanduser()
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    return value


Secret = Annotated[SecretStr, BeforeValidator(_resolve_secret)]
LocalPath = Annotated[Path, BeforeValidator(_resolve_path)]
"""A path; relative ones are taken from the folder of the config file."""


class EmbeddedBroker(FrozenModel):
    """`broker = "embedded"`: librdkafka's built-in broker, in memory, shared by programs with one data_dir."""

    kind: Literal["embedded"] = "embedded"
    consumer_group: str = Field(
        default="forebay-ingest", description="the ingester's group: what it has committed past is safe"
    )


class KafkaBroker(FrozenModel):
    """`[broker]`: a real Kafka cluster."""

    kind: Literal["kafka"] = "kafka"
    bootstrap_servers: Annotated[str, Field(min_length=1, description="host:port, comma separated")]
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: Secret | None = None
    ca_file: LocalPath | None = None

    def client_settings(self) -> dict[str, str]:
        """Return the librdkafka settings that reach this cluster."""
        settings = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl.ca.location": str(self.ca_file) if self.ca_file else None,
        }
        return {name: value for name, value in settings.items() if value is not None}


def _named_kind(value: object) -> object:
    """Let a service be given by one word (`broker = "embedded"`), or by a table that need not repeat the kind."""
    if isinstance(value, str):
        return {"kind": value}
    return value


def _with_default_kind(kind: str) -> BeforeValidator:
    def fill(value: object) -> object:
        value = _named_kind(value)
        return {"kind": kind, **value} if isinstance(value, dict) and "kind" not in value else value

    return BeforeValidator(fill)


BrokerConfig = Annotated[EmbeddedBroker | KafkaBroker, Field(discriminator="kind"), _with_default_kind("kafka")]


class HttpConfig(FrozenModel):
    """`[http]`: where /metrics and /health are served."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="0 picks a free port")] = 0


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a missing, unreadable or malformed one is a ConfigError that says where."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot read it: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [Problem("", f"not valid TOML: {error}")]) from error


def field_path(location: Sequence[int | str]) -> str:
    """Render a pydantic location as people write it: devices[0].tags[3].type."""
    text = ""
    for part, before in zip(location, (None, *location), strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif before not in _SERVICES or part not in {"embedded", "kafka", "postgres"}:  # pydantic names the kind
            text += f".{part}" if text else part
    return text


def problems_of(error: ValidationError, prefix: Sequence[int | str] = ()) -> list[Problem]:
    """Turn pydantic's errors into problems, their paths below `prefix`; never shows a secret's value."""
    found = []
    errors = error.errors(include_url=False)
    for one in errors:
        depth = len(one["loc"])
        if one["type"] == "too_short" and any(
            other["loc"][:depth] == one["loc"] and len(other["loc"]) > depth for other in errors
        ):
            continue  # a list is not too short because its only item is wrong
        message = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            message = "unknown field; check its spelling"
        elif one["type"] == "missing":
            message = "required, but missing"
        elif isinstance(one["input"], str | int | float | bool) and "password" not in str(one["loc"]):
            message = f"{message} (got {one['input']!r})"
        found.append(Problem(field_path([*prefix, *one["loc"]]), message))
    return found


def parse(model: type[ModelT], data: dict[str, Any], source: Path) -> ModelT:
    """Fit `data`, read from `source`, to `model`; raises ConfigError listing every mistake."""
    try:
        return model.model_validate(data, context={"base": source.resolve().parent})
    except ValidationError as error:
        raise ConfigError(str(source), problems_of(error)) from error
