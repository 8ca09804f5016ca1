"""The record of what every response held: `--truth FILE.parquet`, one row per tag and served response.

In: Served records. Out: the Parquet file, published atomically on close:

    served_us int64      when the response was handed to the socket (or lost), microseconds since the epoch
    machine_id, tag      text
    value float64        the engineering value that a correct agent decodes from the bytes
    delivered bool       false = chaos lost the response
    injected text        "" or words of spike, drift, loss, comma separated; spike, drift where they changed the bytes
    sensor_type text
    status_code int32    0, or what a correct agent reports where the response never came

Memory is bounded: records gather for about a second, then go to a DuckDB file beside FILE (`FILE.part.duckdb`), which
is removed on close. Raises ConfigError if FILE cannot be written there, ServiceError if writing fails later (then the
DuckDB file stays).
"""

from pathlib import Path
from threading import Lock
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, Problem, ServiceError
from common.model import StatusCode
from edge_agent.simulate.faults import Injected, Loss
from edge_agent.simulate.modbus_server import Served
from edge_agent.simulate.registers import RegisterMap

ROWS_PENDING_MAX = 200_000

_COPY = """
    COPY (
        SELECT served_us, machine_id, tag, value, NOT lost AS delivered, label AS injected, sensor_type,
               CASE WHEN lost THEN {timeout} ELSE 0 END::INTEGER AS status_code
        FROM served JOIN tags USING (row_number) JOIN labels USING (code)
    ) TO '{target}' (FORMAT parquet, COMPRESSION zstd)
"""


class TruthWriter:
    """Collects Served records; `record`, `take` and `close` from one thread, `write` from any."""

    def __init__(self, path: Path, register_map: RegisterMap) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part.duckdb")
        self._pending: list[Served] = []
        self._rows_pending = 0
        self._lock = Lock()
        self.rows = 0
        try:
            self._remove_part()
            self._database = duckdb.connect(str(self._part), config={"threads": 1, "memory_limit": "512MB"})
        except (OSError, duckdb.Error) as error:
            message = f"cannot write beside it: {str(error).splitlines()[0]}"
            raise ConfigError(f"--truth {path}", [Problem("", message)]) from error
        self._create(register_map)

    def _create(self, register_map: RegisterMap) -> None:
        self._database.execute(
            "CREATE TABLE served (served_us BIGINT, row_number INTEGER, value DOUBLE, lost BOOLEAN, code UTINYINT);"
            "CREATE TABLE tags (row_number INTEGER, machine_id VARCHAR, tag VARCHAR, sensor_type VARCHAR);"
            "CREATE TABLE labels (code UTINYINT, label VARCHAR)"
        )
        machines = [register_map.machines[index].machine_id for index in register_map.machine_of]
        named = {  # noqa: F841 - DuckDB finds the arrays by the variable's name
            "row_number": np.arange(len(register_map), dtype=np.int32),
            "machine_id": np.array(machines, object),
            "tag": np.array([tag.name for tag in register_map.tags], object),
            "sensor_type": np.array([tag.sensor_type for tag in register_map.tags], object),
        }
        self._database.execute("INSERT INTO tags SELECT * FROM named")
        labels = [(code, Injected(code).label()) for code in range(8)]
        self._database.executemany("INSERT INTO labels VALUES (?, ?)", labels)

    def record(self, served: Served) -> None:
        """Take one record; writes at once, holding up the caller, if too many are pending."""
        self._pending.append(served)
        self._rows_pending += served.high - served.low
        if self._rows_pending >= ROWS_PENDING_MAX:
            self.write(self.take())

    def take(self) -> list[Served]:
        """Hand over what is pending, for `write`."""
        batch, self._pending, self._rows_pending = self._pending, [], 0
        return batch

    def write(self, batch: list[Served]) -> None:
        """Append records to the file on disk; raises ServiceError if the disk refuses."""
        if not batch:
            return
        with self._lock:
            try:
                self._insert(batch)
            except duckdb.Error as error:
                raise ServiceError(f"cannot write the truth to {self._part}: {str(error).splitlines()[0]}") from error

    def _insert(self, batch: list[Served]) -> None:
        sizes = [served.high - served.low for served in batch]
        lost = np.repeat([served.loss is not Loss.NONE for served in batch], sizes)
        injected = np.concatenate([_part(served.snapshot.injected, served) for served in batch])
        batch_columns = {  # noqa: F841 - DuckDB finds the arrays by the variable's name
            "served_us": np.repeat(np.array([served.served_us for served in batch], np.int64), sizes),
            "row_number": np.concatenate([np.arange(served.low, served.high, dtype=np.int32) for served in batch]),
            "value": np.concatenate([_part(served.snapshot.held, served) for served in batch]),
            "lost": lost,
            "code": injected | lost.astype(np.uint8) * np.uint8(Injected.LOSS),
        }
        # DuckDB reads a NaN in a numpy array as null.
        self._database.execute(
            "INSERT INTO served "
            "SELECT served_us, row_number, coalesce(value, 'nan'::DOUBLE), lost, code FROM batch_columns"
        )
        self.rows += lost.size

    def close(self) -> None:
        """Write FILE, complete or not at all, and remove the working file."""
        self.write(self.take())
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        quoted = str(temporary).replace("'", "''")
        try:
            self._database.execute(_COPY.format(timeout=int(StatusCode.BAD_TIMEOUT), target=quoted))
            self._database.close()
            temporary.replace(self._path)
        except (OSError, duckdb.Error) as error:
            raise ServiceError(f"cannot write the truth to {self._path}: {str(error).splitlines()[0]}") from error
        self._remove_part()

    def abandon(self) -> None:
        """Close without writing FILE."""
        self._database.close()
        self._remove_part()

    def _remove_part(self) -> None:
        for leftover in (self._part, self._part.with_name(f"{self._part.name}.wal")):
            leftover.unlink(missing_ok=True)


def _part(column: NDArray[Any] | None, served: Served) -> NDArray[Any]:
    if column is None:
        raise ValueError("a truth needs snapshots that hold their values")
    return column[served.low : served.high]
