"""Envelopes as they were sent once: every version of Forebay must decode them to the same. Never regenerated.

Each `envelopes/NAME.bin` has a `NAME.json` beside it that says what it holds, block bytes in hexadecimal (those have
golden files of their own).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from common.model import ReportMode
from common.wire import Birth, decode, decode_message

HERE = Path(__file__).parent / "envelopes"
NAMES = sorted(path.stem for path in HERE.glob("*.bin"))


def golden(name: str) -> tuple[bytes, dict[str, Any]]:
    return (HERE / f"{name}.bin").read_bytes(), json.loads((HERE / f"{name}.json").read_text("utf-8"))


def test_there_are_golden_envelopes() -> None:
    assert len(NAMES) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_envelope_decodes_for_ever(name: str) -> None:
    data, told = golden(name)
    schema, record = decode(data)
    assert schema == told["schema"]
    if "blocks" in record:
        record = record | {"blocks": record["blocks"].hex()}
    assert record == told["record"]


def test_a_golden_birth() -> None:
    data, _ = golden("birth")
    birth = decode_message(data)
    assert isinstance(birth, Birth)
    assert (birth.site, birth.gateway_id, birth.birth_id) == ("werk-süd", "gw-7", 146_659_678_662_326)
    assert [one.tag for one in birth.series] == ["oil_temperature", "druck_öl"]
    assert birth.series[1].mode is ReportMode.REPORT_BY_EXCEPTION
    assert (birth.series[1].deadband, birth.series[1].heartbeat_us) == (0.1, 60_000_000)
    assert [one.max_error for one in birth.series] == [0.0, 0.005]
