from pathlib import Path

import duckdb
import numpy as np
import pytest

from common.errors import ConfigError
from edge_agent.simulate.replay import Recording, ReplaySource, build_machines, load_recordings

SIGNALS = Path(__file__).resolve().parents[5] / "shared/data/signals/development.parquet"


def write(path: Path, select: str) -> Path:
    duckdb.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return path


@pytest.mark.skipif(not SIGNALS.is_file(), reason=f"NO REAL SIGNALS at {SIGNALS}: exactness on them is not checked")
def test_real_signals_are_read_exactly_and_in_source_order() -> None:
    recordings = load_recordings(SIGNALS)
    rows = duckdb.execute("SELECT series, ts_ms, value FROM read_parquet(?)", [str(SIGNALS)]).fetchnumpy()
    assert len(recordings) == 16
    for recording in recordings:
        mine = rows["series"] == recording.name
        assert recording.values.tobytes() == rows["value"][mine].tobytes()
        stamps = rows["ts_ms"][mine]
        ahead = (stamps - np.maximum.accumulate(stamps)) == 0
        np.testing.assert_array_equal(recording.at_s[ahead], ((stamps - stamps[0]) / 1000.0)[ahead])
    machines = build_machines(SIGNALS, recordings)
    assert [machine.machine_id for machine in machines] == ["cnc", "femto", "nab", "obspy", "occ", "pv", "skab"]
    assert machines[-1].tags[-1].name == "pressure_bar"


def test_plays_at_its_own_pace_and_loops() -> None:
    recording = Recording.of("m.t", np.array([1000, 2000, 3000, 4000]), np.array([1.0, 2.0, np.nan, -0.0]))
    assert recording.length_s == 4.0
    played = [recording.value_at(time_s) for time_s in (0.0, 0.9, 1.0, 1.99, 3.5, 4.0, 5.2)]
    assert np.array(played).tobytes() == np.array([1.0, 1.0, 2.0, 2.0, -0.0, 1.0, 2.0]).tobytes()
    assert np.isnan(recording.value_at(2.5))
    twice = ReplaySource([recording], 2.0)
    assert [twice.values(tick)[0] for tick in (0, 4, 5, 9)] == [1.0, 1.0, 2.0, 2.0]


def test_duplicate_and_backward_timestamps_show_the_later_row() -> None:
    recording = Recording.of("m.t", np.array([0, 1000, 1000, 500, 2000]), np.arange(5.0))
    assert [recording.value_at(time_s) for time_s in (0.5, 1.0, 2.0)] == [0.0, 3.0, 4.0]
    assert Recording.of("m.t", np.array([5]), np.array([7.0])).value_at(123.0) == 7.0


def test_names_become_machines_and_tags(tmp_path: Path) -> None:
    file = write(
        tmp_path / "names.parquet",
        "SELECT unnest(['b.x.y', 'a.z', 'lonely', 'a-b.q']) AS series, 0 AS ts_ms, "
        "unnest([1.0, 2, 3, 4])::DOUBLE AS value",
    )
    recordings = load_recordings(file)
    machines = build_machines(file, recordings)
    assert {machine.machine_id: [tag.name for tag in machine.tags] for machine in machines} == {
        "a": ["z"],
        "a-b": ["q"],
        "b": ["x.y"],
        "lonely": ["value"],
    }
    order = [machine.machine_id for machine in machines]
    values = dict(zip(order, ReplaySource(recordings, 1.0).values(0), strict=True))
    assert values == {"b": 1.0, "a": 2.0, "lonely": 3.0, "a-b": 4.0}


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("SELECT 'a.b' AS series, 1 AS ts_ms", "column value missing"),
        ("SELECT 1 AS x", "column series and ts_ms and value missing"),
        ("SELECT 'a.b' AS series, 1.5 AS ts_ms, 1.0::DOUBLE AS value", "column ts_ms is DECIMAL"),
        ("SELECT 'a.b' AS series, 1 AS ts_ms, 'x' AS value", "column value is VARCHAR, expected a float"),
        ("SELECT 'a.b' AS series, NULL::BIGINT AS ts_ms, 1.0::DOUBLE AS value", "1 rows have a null"),
        ("SELECT 'a.b' AS series, 1 AS ts_ms, 1.0::DOUBLE AS value LIMIT 0", "holds no readings"),
    ],
)
def test_a_wrong_file_is_one_clear_message(tmp_path: Path, select: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recordings(write(tmp_path / "wrong.parquet", select))


def test_a_file_that_is_no_parquet_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("series,ts_ms,value\n")
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        load_recordings(tmp_path / "text.parquet")
    with pytest.raises(ConfigError, match="no such file"):
        load_recordings(tmp_path / "none.parquet")


@pytest.mark.parametrize("names", [["a", "a.value"], [".x"], ["a."]])
def test_names_that_clash_or_are_empty(tmp_path: Path, names: list[str]) -> None:
    file = write(tmp_path / "x.parquet", f"SELECT unnest({names}) AS series, 0 AS ts_ms, 1.0::DOUBLE AS value")
    with pytest.raises(ConfigError, match="series"):
        build_machines(file, load_recordings(file))
