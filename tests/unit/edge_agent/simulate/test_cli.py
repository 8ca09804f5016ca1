import argparse
from pathlib import Path

import pytest

from edge_agent.simulate.cli import SCENARIO_NAMES, TAGS_DEFAULT, add_parser, seconds
from edge_agent.simulate.faults import SCENARIOS
from edge_agent.simulate.plant import NATURAL


def simulate(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["simulate", *words])
    return int(args.func(args))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("60s", 60.0), ("10m", 600.0), ("1h", 3600.0), ("500ms", 0.5), ("1.5", 1.5), ("2d", 172_800.0)],
)
def test_durations(text: str, expected: float) -> None:
    assert seconds("--duration", text) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["--duration", "soon"],
        ["--duration", "0s"],
        ["--poll-interval=-1s"],
        ["--machines", "0"],
        ["--tags", "-3"],
        ["--tags", "40000"],
        ["--port", "65535", "--machines", "2"],
        ["--port", "-1"],
        ["--chaos", "typhoon"],
        ["--chaos", "loss=2"],
        ["--seed", "-1"],
        ["--speed", "2"],
        ["--replay", "nowhere.parquet"],
        ["--replay", "nowhere.parquet", "--machines", "3"],
        ["--truth", "no/such/folder/t.parquet"],
        ["--write-config", "no/such/folder/c.toml"],
        ["--host", "no.such.host.invalid", "--port", "0"],
    ],
)
def test_bad_usage_is_one_clear_line_and_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("simulate: --") or "machine press-1" in err
    assert err.count("\n") == 1


def test_what_the_parser_says_is_what_the_plant_has() -> None:
    assert set(SCENARIO_NAMES) == set(SCENARIOS)
    assert len(NATURAL) == TAGS_DEFAULT


def test_an_unknown_scenario_is_argparses_to_refuse() -> None:
    with pytest.raises(SystemExit) as stopped:
        simulate("--scenario", "apocalypse")
    assert stopped.value.code == 2


def test_nothing_is_left_when_the_config_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "c.toml"
    folder.mkdir()
    assert simulate("--port", "0", "--write-config", str(folder), "--truth", str(tmp_path / "t.parquet")) == 2
    assert list(tmp_path.iterdir()) == [folder]
