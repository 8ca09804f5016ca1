"""Clock, durations, errors, the model and logging."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import structlog

from common.clock import SystemClock, iso8601
from common.config import field_path
from common.duration import duration_s
from common.errors import ConfigError, Problem
from common.logging import configure_logging
from common.model import ReadingFrame, StatusCode, is_bad


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "1970-01-01T00:00:00.000+00:00"),
        (1_767_225_600_123_456, "2026-01-01T00:00:00.123+00:00"),
        (-1_000_000, "1969-12-31T23:59:59.000+00:00"),
        (2**62, f"{2**62} us"),
        (-(2**63), f"{-(2**63)} us"),
    ],
)
def test_iso8601(us: int, text: str) -> None:
    assert iso8601(us) == text


def test_the_system_clock() -> None:
    clock = SystemClock()
    first, later = clock.monotonic(), clock.monotonic()
    assert later >= first
    assert clock.now_us() > 1_767_225_600_000_000


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("10s", 10), ("1.5m", 90), ("1h", 3600), ("2d", 172_800), (" 7 ", 7)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "s", "1 s", "1w", "1e3", "nan", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration"):
        duration_s(text)


def test_a_config_error_lists_its_problems() -> None:
    error = ConfigError("edge.toml", [Problem("a.b", "wrong"), Problem("", "also wrong")])
    assert str(error) == "edge.toml: 2 problems\n  a.b: wrong\n  also wrong"


def test_status_codes_are_int32_and_their_top_bit_means_bad() -> None:
    codes = np.array(list(StatusCode), np.int32)
    assert codes.tolist() == list(StatusCode)
    names = [code.name for code, bad in zip(StatusCode, is_bad(codes), strict=True) if bad]
    assert names == [code.name for code in StatusCode if code.name.startswith("BAD")]
    assert StatusCode.BAD_TIMEOUT & 0xFFFF_FFFF == 0x800A_0000


def test_frames() -> None:
    frame = ReadingFrame(np.arange(3, dtype=np.int32), np.arange(3), np.arange(3.0), np.zeros(3, np.int32))
    assert frame.take(np.array([2, 0])).values.tolist() == [2.0, 0.0]
    assert ReadingFrame.concat([frame]) is frame
    assert len(ReadingFrame.concat([frame, ReadingFrame.empty(), frame])) == 6
    assert len(ReadingFrame.concat([])) == 0
    with pytest.raises(ValueError, match="differ in length"):
        ReadingFrame(np.arange(3, dtype=np.int32), np.arange(2), np.arange(3.0), np.zeros(3, np.int32))


def test_field_paths() -> None:
    assert field_path(["devices", 0, "tags", 3, "type"]) == "devices[0].tags[3].type"
    assert field_path(["broker", "kafka", "bootstrap_servers"]) == "broker.bootstrap_servers"
    assert field_path(["agent", "kafka"]) == "agent.kafka"


def test_logs_are_json_lines_on_stderr_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", json=True)
    try:
        log = structlog.get_logger()
        log.debug("not.shown")
        log.info("uplink.connected", broker="k:9092")
    finally:
        structlog.reset_defaults()
    shown = capsys.readouterr()
    assert shown.out == ""
    line = json.loads(shown.err)
    assert (line["event"], line["level"], line["broker"]) == ("uplink.connected", "info", "k:9092")
    assert line["timestamp"].endswith("Z")


def test_every_status_code_is_documented() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "status-codes.md").read_text("utf-8")
    for code in StatusCode:
        assert f"| `0x{code & 0xFFFF_FFFF:08X}` | `{code.name}` | {int(code)} |" in text
