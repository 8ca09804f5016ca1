"""A ready agent config (TOML) for exactly this plant: `--write-config FILE`.

In: the machines, where each is served, and a few choices. Out: the text; edge_agent/config.py is what reads it.
"""

import json
from collections.abc import Iterator, Sequence

from edge_agent.simulate.registers import Machine, Tag

HEARTBEAT_S = 60


def _text(value: str) -> str:
    """Quote a string; TOML's basic strings are JSON's, DEL excepted."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def render(
    machines: Sequence[Machine],
    addresses: Sequence[tuple[str, int]],
    *,
    poll_interval_s: float,
    data_dir: str = "./forebay-data",
    deadbands: bool = True,
) -> str:
    """Return the config; `addresses` are host and port per machine, without `deadbands` every poll is reported."""
    lines = [
        "# Written by `edge-agent simulate --write-config` for the plant that it serves.",
        'broker = "embedded"',
        "",
        "[agent]",
        'agent_id = "agent-1"',
        'gateway_id = "gateway-1"',
        'site = "simulated"',
        f"data_dir = {_text(data_dir)}",
        "",
        "[batching]",
        "flush_interval_s = 1.0",
    ]
    for machine, (host, port) in zip(machines, addresses, strict=True):
        lines += _device(machine, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", poll_interval_s)
        for tag in machine.tags:
            lines += _tag(tag, deadbands=deadbands)
    return "\n".join(lines) + "\n"


def _device(machine: Machine, address: str, poll_interval_s: float) -> Iterator[str]:
    yield from ("", "[[devices]]")
    yield f"name = {_text(machine.machine_id)}"
    yield 'adapter = "modbus"'
    yield f"machine_id = {_text(machine.machine_id)}"
    yield f"address = {_text(address)}"
    yield "unit_id = 1"
    yield f"poll_interval_s = {poll_interval_s!r}"
    yield "timeout_s = 1.0"
    yield f'byte_order = "{machine.byte_order}"'
    yield f'word_order = "{machine.word_order}"'


def _tag(tag: Tag, *, deadbands: bool) -> Iterator[str]:
    yield from ("", "[[devices.tags]]")
    yield f"name = {_text(tag.name)}"
    yield f'address = "{tag.space}:{tag.address}"'
    yield f'type = "{tag.type}"'
    if (tag.scale, tag.offset) != (1.0, 0.0):
        yield f"scale = {float(tag.scale)!r}"
        yield f"offset = {float(tag.offset)!r}"
    if tag.unit:
        yield f"unit = {_text(tag.unit)}"
    yield f"sensor_type = {_text(tag.sensor_type)}"
    if deadbands and tag.deadband is not None:
        yield f"deadband_absolute = {float(tag.deadband)!r}"
        yield f"heartbeat_s = {HEARTBEAT_S}"
