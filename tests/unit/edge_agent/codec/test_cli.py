"""`edge-agent codec`: what it prints, and how it refuses what is not a file of signals."""

import argparse
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from common import codec
from edge_agent.codec import measure
from edge_agent.codec.cli import add_parser


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["codec", *map(str, arguments)])
    exit_code: int = args.func(args)
    return exit_code


def write(path: Path, sql: str) -> Path:
    duckdb.sql(f"copy ({sql}) to '{path}' (format parquet)")
    return path


@pytest.fixture
def signals(tmp_path: Path) -> Path:
    rows = """
        select 'b' as series, 1700000000000 + k * 1000 as ts_ms, round(sin(k / 9.0) * 20, 1)::double as value
        from range(3000) t(k)
        union all select 'a', 1700000000000 - k * 7, case when k % 50 = 7 then 'nan'::double else k / 3.0 end
        from range(500) t(k)
    """
    return write(tmp_path / "signals.parquet", rows)


def test_bench_prints_each_series_and_all_together(signals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", signals, "--json", "--block", 128) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["series"] for one in report["series"]] == ["b", "a"]
    assert [one["readings"] for one in report["series"]] == [3000, 500]
    assert report["pooled"]["readings"] == 3500
    assert report["pooled"]["bytes"] == sum(one["bytes"] for one in report["series"])
    assert report["pooled"]["ratio"] == pytest.approx(16 * 3500 / report["pooled"]["bytes"], abs=1e-3)
    assert all(one["verified"] and one["codecs"] and one["encode_m_per_s"] > 0 for one in report["series"])
    assert run("bench", signals) == 0
    assert "pooled" in capsys.readouterr().out


def test_a_bound_is_kept_and_told(signals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", signals, "--json", "--max-error-span", "0.01") == 0
    loss = {one["series"]: one["loss"] for one in json.loads(capsys.readouterr().out)["series"]}
    assert 0 < loss["b"]["max_error"] <= loss["b"]["bound"] == pytest.approx(0.4)
    assert set(loss["b"]) == {"bound", "max_error", "rmse", "difference_variance", "minimum", "maximum"}
    assert run("bench", signals, "--max-error-span", "0.01") == 0
    assert "rmse" in capsys.readouterr().out


@pytest.mark.parametrize("level", ["fast", "balanced", "gorilla", "raw"])
def test_every_level_is_measured(signals: Path, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", signals, "--level", level) == 0
    assert "NO" not in capsys.readouterr().out


def test_microseconds_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "us.parquet", "select 'a' as series, k as ts_us, 1.5::double as value from range(9) t(k)")
    assert run("bench", file) == 0


def test_explain_says_why(signals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", signals) == 0
    out = capsys.readouterr().out
    assert "integer/10" in out
    assert "whole numbers bring them back" in out
    assert "timestamps: regular" in out


GOOD = "select 'a' as series, 1::bigint as ts_ms, 1.5::double as value"


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("select 'a' as series, 1.5::double as value", "column ts_ms or ts_us is missing"),
        ("select 1::bigint as ts_ms, 1.5::double as value", "column series is missing"),
        ("select 'a' as series, 1::integer as ts_ms, 1.5::double as value", "column ts_ms must be int64"),
        ("select 'a' as series, 1::bigint as ts_ms, 1.5::float as value", "column value must be float64"),
        ("select 1 as series, 1::bigint as ts_ms, 1.5::double as value", "column series must be text"),
        (f"{GOOD} union all select null, 1, 1.5", "column series holds nulls"),
        (f"{GOOD} union all select 'a', null, 1.5", "column ts_ms holds nulls"),
        (f"{GOOD} union all select 'a', 1, null", "column value holds nulls"),
        (f"{GOOD} where false", "there are no rows"),
        ("select 'a' as series, 9223372036854775807::bigint as ts_ms, 1.5::double as value", "64 bits"),
    ],
)
def test_what_is_not_signals_is_refused(sql: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "wrong.parquet", sql)
    assert run("bench", file) == 2
    captured = capsys.readouterr()
    assert why in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_what_is_not_parquet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.parquet").write_text("hello", "utf-8")
    for name in ("text.parquet", "missing.parquet"):
        assert run("bench", tmp_path / name) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("options", [["--block", "0"], ["--block", "4097"], ["--max-error-span", "-1"]])
def test_impossible_options_are_refused(options: list[str], signals: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("bench", signals, *options)
    assert stopped.value.code == 2


def test_a_block_that_does_not_come_back_fails(
    signals: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_off(*arguments: Any, **options: Any) -> codec.Readings:
        decoded = codec.decode_blocks(*arguments, **options)
        decoded.values[0] = np.nextafter(decoded.values[0], 1e9)
        return decoded

    class Broken:
        decode_blocks = staticmethod(one_off)
        __getattr__ = staticmethod(lambda name: getattr(codec, name))

    monkeypatch.setattr(measure, "codec", Broken())
    assert run("bench", signals) == 1
    assert "did not come back" in capsys.readouterr().err
