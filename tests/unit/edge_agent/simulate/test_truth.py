from pathlib import Path

import duckdb
import numpy as np
import pytest

from common.errors import ConfigError
from edge_agent.simulate import truth as truth_module
from edge_agent.simulate.faults import Injected, Loss
from edge_agent.simulate.modbus_server import Served, Snapshot
from edge_agent.simulate.registers import Image, Machine, RegisterMap, Space, Tag, ValueType
from edge_agent.simulate.truth import TruthWriter

PLAN = RegisterMap(
    [
        Machine(name, tuple(Tag(f"t{index}", Space.HOLDING, index, ValueType.INT16, "flow") for index in range(3)))
        for name in ("a", "b")
    ]
)
SNAPSHOT = Snapshot(
    Image(b"", b""),
    np.array([1.5, -0.0, np.nan, np.inf, 5e-324, 6.0]),
    np.array([0, Injected.SPIKE, 0, Injected.DRIFT, 0, 0], np.uint8),
)


def rows_of(path: Path) -> int:
    return len(duckdb.read_parquet(str(path)).fetchall())


def test_every_column_of_every_row(tmp_path: Path) -> None:
    path = tmp_path / "it's truth.parquet"
    truth = TruthWriter(path, PLAN)
    truth.record(Served(100, SNAPSHOT, 0, 3, Loss.NONE))
    truth.write(truth.take())
    truth.record(Served(200, SNAPSHOT, 3, 5, Loss.DROP))
    truth.record(Served(300, SNAPSHOT, 5, 6, Loss.RESET))
    truth.close()
    assert truth.rows == 6
    rows = duckdb.read_parquet(str(path)).order("served_us, tag")
    assert dict(zip(rows.columns, map(str, rows.types), strict=True)) == {
        "served_us": "BIGINT", "machine_id": "VARCHAR", "tag": "VARCHAR", "value": "DOUBLE", "delivered": "BOOLEAN",
        "injected": "VARCHAR", "sensor_type": "VARCHAR", "status_code": "INTEGER",
    }  # fmt: skip
    got = rows.fetchall()
    assert [row[:3] for row in got] == [
        (100, "a", "t0"), (100, "a", "t1"), (100, "a", "t2"), (200, "b", "t0"), (200, "b", "t1"), (300, "b", "t2"),
    ]  # fmt: skip
    assert np.array([row[3] for row in got]).tobytes() == SNAPSHOT.held.tobytes()
    assert [row[4:6] for row in got] == [
        (True, ""), (True, "spike"), (True, ""), (False, "drift,loss"), (False, "loss"), (False, "loss"),
    ]  # fmt: skip
    assert {row[7] for row in got if row[4]} == {0}
    assert {row[7] for row in got if not row[4]} == {0x800A_0000 - (1 << 32)}
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing is left behind"


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth_module, "ROWS_PENDING_MAX", 10)
    truth = TruthWriter(tmp_path / "t.parquet", PLAN)
    for at in range(100):
        truth.record(Served(at, SNAPSHOT, 0, 3, Loss.NONE))
        assert len(truth._pending) < 4
    truth.close()
    assert rows_of(tmp_path / "t.parquet") == 300


def test_a_leftover_of_a_killed_run_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "t.parquet.part.duckdb").write_bytes(b"rubbish")
    truth = TruthWriter(tmp_path / "t.parquet", PLAN)
    truth.close()
    assert rows_of(tmp_path / "t.parquet") == 0


def test_abandon_leaves_nothing(tmp_path: Path) -> None:
    TruthWriter(tmp_path / "t.parquet", PLAN).abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        TruthWriter(tmp_path / "none" / "t.parquet", PLAN)
