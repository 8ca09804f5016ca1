"""The config of cloud-ingest: a TOML file into frozen models.

In: a path. Out: IngestConfig. Fails with ConfigError, which lists every mistake with its path.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from common.config import BrokerConfig, EmbeddedBroker, FrozenModel, HttpConfig, LocalPath, Secret, parse, read_toml

Seconds = Annotated[float, Field(gt=0)]


class EmbeddedStore(FrozenModel):
    """`store = "embedded"`: a private PostgreSQL in the data folder."""

    kind: Literal["embedded"] = "embedded"


class PostgresStore(FrozenModel):
    """`[store]`: a PostgreSQL server, with TimescaleDB or without."""

    kind: Literal["postgres"] = "postgres"
    dsn: Annotated[Secret, Field(description="postgresql://..., or env:NAME, or credential:NAME")]
    connect_timeout_s: Seconds = 5.0
    statement_timeout_s: Seconds = 60.0


def _store(value: object) -> object:
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "postgres", **value} if isinstance(value, dict) and "kind" not in value else value


StoreConfig = Annotated[EmbeddedStore | PostgresStore, Field(discriminator="kind"), BeforeValidator(_store)]


class IngestSettings(FrozenModel):
    """`[ingest]`: consuming and windows."""

    consumer_group: Annotated[str, Field(min_length=1, max_length=200)] = "forebay-ingest"
    worker_id: Annotated[str, Field(min_length=1, description="static member of the group; one per worker")] | None = (
        None
    )
    poll_timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = 100
    readings_per_flush_max: Annotated[int, Field(ge=1_000, le=5_000_000)] = 200_000
    allowed_lateness_s: Annotated[float, Field(ge=0, le=240)] = 10.0
    idle_timeout_s: Annotated[float, Field(ge=0.1)] = 30.0
    session_timeout_s: Annotated[float, Field(ge=6, le=300)] = 10.0
    topic_partitions: Annotated[int, Field(ge=1, le=1000, description="of topics this program creates")] = 4
    topic_replication: Annotated[int, Field(ge=1, le=9)] = 1
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class ArchiveSettings(FrozenModel):
    """`[archive]`: Parquet files by day. A file is written when any of the limits is reached."""

    enabled: bool = True
    folder: LocalPath | None = None
    rows_max: Annotated[int, Field(ge=1, le=20_000_000)] = 1_000_000
    bytes_max: Annotated[int, Field(ge=1_024, description="of messages not archived yet")] = 64 * 1024 * 1024
    interval_s: Seconds = 60.0


class RetentionSettings(FrozenModel):
    """`[retention]`: how long the store keeps what; 0 = for ever. The archive is never deleted."""

    readings_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    windows_days: Annotated[int, Field(ge=0, le=36_500)] = 730
    ledger_days: Annotated[int, Field(ge=0, le=36_500)] = 30
    dead_letters_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    columnstore_after_hours: Annotated[int, Field(ge=1, le=8_760)] = 24


class IngestConfig(FrozenModel):
    """The whole file."""

    broker: BrokerConfig = Field(default_factory=EmbeddedBroker)
    store: StoreConfig = Field(default_factory=EmbeddedStore)
    data_dir: LocalPath = Path("forebay-data")
    ingest: IngestSettings = Field(default_factory=IngestSettings)
    archive: ArchiveSettings = Field(default_factory=ArchiveSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    http: HttpConfig = Field(default_factory=HttpConfig)

    @model_validator(mode="after")
    def _retention_covers_columnstore(self) -> Self:
        days = self.retention.readings_days
        if days and days * 24 < self.retention.columnstore_after_hours:
            raise ValueError("retention.columnstore_after_hours is longer than retention.readings_days")
        return self

    @property
    def archive_folder(self) -> Path:
        """Where the archive is: `[archive] folder`, else `archive` in the data folder."""
        return self.archive.folder or self.data_dir / "archive"

    @property
    def embedded_broker(self) -> bool:
        """Whether the broker is librdkafka's, in memory."""
        return isinstance(self.broker, EmbeddedBroker)


def load(path: Path) -> IngestConfig:
    """Read a config file; raises ConfigError."""
    return parse(IngestConfig, read_toml(path), path)
