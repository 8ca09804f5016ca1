import tomllib

from edge_agent.simulate.agent_config import render
from edge_agent.simulate.plant import NATURAL, build_machines
from edge_agent.simulate.registers import Machine, Space, Tag, ValueType


def test_the_config_says_what_the_plant_is() -> None:
    machines = build_machines(3, len(NATURAL))
    config = tomllib.loads(render(machines, [("127.0.0.1", 7), ("::1", 8), ("h", 9)], poll_interval_s=0.5))
    assert config["broker"] == "embedded"
    assert [device["address"] for device in config["devices"]] == ["127.0.0.1:7", "[::1]:8", "h:9"]
    assert {device["poll_interval_s"] for device in config["devices"]} == {0.5}
    for device, machine in zip(config["devices"], machines, strict=True):
        assert (device["machine_id"], device["byte_order"], device["word_order"]) == (
            machine.machine_id, machine.byte_order, machine.word_order,
        )  # fmt: skip
        for written, tag in zip(device["tags"], machine.tags, strict=True):
            assert written["name"] == tag.name
            assert written["address"] == f"{tag.space}:{tag.address}"
            assert written["type"] == tag.type
            assert (written.get("scale", 1.0), written.get("offset", 0.0)) == (tag.scale, tag.offset)
            assert written["deadband_absolute"] > 0.0
            assert written["heartbeat_s"] == 60


def test_without_deadbands_and_with_odd_names() -> None:
    odd = Machine('a"b\\c\x7f', (Tag("tälk\t1", Space.HOLDING, 0, ValueType.FLOAT64, "x", deadband=1.0),))
    config = tomllib.loads(render([odd], [("h", 1)], poll_interval_s=1.0, data_dir="/d\\x", deadbands=False))
    [device] = config["devices"]
    assert device["machine_id"] == odd.machine_id
    assert config["agent"]["data_dir"] == "/d\\x"
    assert device["tags"] == [{"name": "tälk\t1", "address": "holding:0", "type": "float64", "sensor_type": "x"}]
