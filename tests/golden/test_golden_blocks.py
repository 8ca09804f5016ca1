"""Blocks that were written once and must decode for ever. Nothing here writes: a file that fails is never made anew."""

import json
from pathlib import Path

import numpy as np
import pytest

from common import codec
from tests import oracle_block

BLOCKS = sorted((Path(__file__).parent / "blocks").glob("*.block"))


def test_the_files_are_there() -> None:
    assert len(BLOCKS) >= 40


@pytest.mark.parametrize("path", BLOCKS, ids=lambda path: path.stem)
def test_an_old_block_decodes_to_what_it_held(path: Path) -> None:
    block = path.read_bytes()
    expected = json.loads(path.with_suffix(".json").read_text("utf-8"))
    decoded = codec.decode_blocks(block, np.array([len(block)]))
    assert decoded.counts.tolist() == [len(expected["timestamps"])]
    assert decoded.ts.tolist() == expected["timestamps"]
    assert decoded.statuses.tolist() == expected["statuses"]
    assert [f"{bits:016x}" for bits in decoded.values.view(np.uint64).tolist()] == expected["value_bits"]


@pytest.mark.parametrize("path", BLOCKS, ids=lambda path: path.stem)
def test_the_oracle_agrees(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text("utf-8"))
    block = oracle_block.decode(path.read_bytes())
    assert block.codecs == (expected["timestamp_codec"], expected["status_codec"], expected["value_codec"])
    assert block.timestamps == expected["timestamps"]
    assert block.statuses == expected["statuses"]
    assert [f"{bits:016x}" for bits in block.value_bits] == expected["value_bits"]


def test_an_old_group_decodes_to_what_it_held() -> None:
    path = Path(__file__).parent / "groups" / "shared_timestamps.blocks"
    expected = json.loads(path.with_suffix(".json").read_text("utf-8"))
    decoded = codec.decode_blocks(path.read_bytes(), np.array(expected["sizes"]))
    blocks = expected["blocks"]
    assert decoded.counts.tolist() == [len(block["timestamps"]) for block in blocks]
    assert decoded.ts.tolist() == [timestamp for block in blocks for timestamp in block["timestamps"]]
    bits = [f"{bits:016x}" for bits in decoded.values.view(np.uint64).tolist()]
    assert bits == [value for block in blocks for value in block["value_bits"]]
    oracle = oracle_block.decode_all(path.read_bytes(), expected["sizes"])
    assert [block.codecs[0] for block in oracle] == [oracle_block.STEPS, oracle_block.SHARED, oracle_block.SHARED]
