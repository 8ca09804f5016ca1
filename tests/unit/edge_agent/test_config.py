"""The agent's config: every mistake at once, with its path, and nothing secret on the screen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.config import EmbeddedBroker, KafkaBroker
from common.errors import ConfigError
from edge_agent import cli
from edge_agent.adapters.modbus.config import ModbusDevice
from edge_agent.config import AgentConfig, load
from tests.unit.edge_agent.samples import EXAMPLE, write_config

ROOT = Path(__file__).resolve().parents[3]

TAG = "[[devices.tags]]"

FIVE_MISTAKES = """
broker = "embeded"
[agent]
agent_id = ""
[batching]
flush_interval = 2
[[devices]]
name = "press-1"
adapter = "modbus"
address = "127.0.0.1"
[[devices.tags]]
name = "a"
address = "holding:0"
type = "float16"
[[devices.tags]]
name = "b"
address = "holding:2"
deadband_percent = 1.0
"""


def problems_of(folder: Path, text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(write_config(folder, text))
    return {problem.path: problem.message for problem in caught.value.problems}


def with_tag(*lines: str) -> str:
    return EXAMPLE + "\n".join(lines)


def test_every_mistake_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    found = problems_of(tmp_path, FIVE_MISTAKES)
    assert set(found) == {
        "broker", "agent.agent_id", "batching.flush_interval", "devices[0].address", "devices[0].tags[0].type",
        "devices[0].tags[1]",
    }  # fmt: skip
    assert "'embeded'" in found["broker"]
    assert found["batching.flush_interval"] == "unknown field; check its spelling"
    assert "host:port" in found["devices[0].address"]
    assert "float32" in found["devices[0].tags[0].type"]
    assert "deadband_percent is a share of range" in found["devices[0].tags[1]"]


def test_the_command_prints_them_and_exits_2(tmp_path: Path) -> None:
    path = write_config(tmp_path, FIVE_MISTAKES)
    outcome = subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", "check", str(path)], capture_output=True, text=True, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    lines = outcome.stderr.splitlines()
    assert lines[0] == f"{path}: 6 problems"
    assert len(lines) == 7
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("lines", "path", "says"),
    [
        (["typ = 'bool'"], "devices[0].tags[0].typ", "unknown field"),
        (["type = 'bool'"], "devices[0].tags[0]", "needs bit"),
        (["bit = 3"], "devices[0].tags[0]", "bit needs type bool"),
        (["type = 'bool'", "bit = 16"], "devices[0].tags[0].bit", "less than or equal to 15 (got 16)"),
        (["scale = 0.0"], "devices[0].tags[0]", "every value the same"),
        (["scale = nan"], "devices[0].tags[0].scale", "finite"),
        (["deadband_absolute = -1"], "devices[0].tags[0].deadband_absolute", "greater than or equal to 0"),
        (["deadband_absolute = 1", "deadband_percent = 1", "range = [0, 1]"], "devices[0].tags[0]", "not both"),
        (["heartbeat_s = 5"], "devices[0].tags[0]", "only makes sense with a deadband"),
        (["interval_min_s = 5"], "devices[0].tags[0]", "only makes sense with a deadband"),
        (["deadband_absolute = 1", "interval_min_s = 5", "heartbeat_s = 5"], "devices[0].tags[0]", "shorter than"),
        (["deadband_absolute = 1", "swinging_door = 1"], "devices[0].tags[0]", "not both"),
        (["max_error = 0.1", "resolution = 0.1"], "devices[0].tags[0]", "not both"),
        (["resolution = 0"], "devices[0].tags[0].resolution", "greater than 0"),
        (["range = [5, 5]"], "devices[0].tags[0].range", "low first"),
        (['unit = "a\\u0000"'], "devices[0].tags[0].unit", "pattern"),
        (['machine_id = "a\\nb"'], "devices[0].tags[0].machine_id", "pattern"),
        ([TAG, "name = 't'", "address = 'input:1'"], "devices[0].tags[1].name", "is also devices[0].tags[0]"),
        ([TAG, "name = 'u'", "address = 'holding:65536'"], "devices[0].tags[1].address", "0 to 65535"),
        ([TAG, "name = 'u'", "address = 'holding:65535'", "type = 'int32'"], "devices[0].tags[1]", "beyond"),
        ([TAG, "name = 'u'", "address = 'coil:1'"], "devices[0].tags[1]", "type must be bool"),
        ([TAG, "name = ''", "address = 'input:1'"], "devices[0].tags[1].name", "at least 1"),
        ([TAG, "name = 'u'"], "devices[0].tags[1].address", "required, but missing"),
        (["[[devices]]", "name = 'x'"], "devices[1].adapter", "missing; choose from: modbus"),
        (["[[devices]]", "name = 'x'", "adapter = 'profibus'"], "devices[1].adapter", "'profibus' is not installed"),
        (["[[devices]]", "name = 'x'", "adapter = 'modbus'", "address = 'a:1'"], "devices[1].tags", "required"),
        (["[http]", "port = 70000"], "http.port", "less than or equal to 65535"),
        (["[buffer]", "when_full = 'drop'"], "buffer.when_full", "'drop_oldest' or 'drop_newest'"),
        (["[uplink]", "in_flight_kb_max = 1"], "uplink.in_flight_kb_max", "greater than or equal to 64"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_path(tmp_path: Path, lines: list[str], path: str, says: str) -> None:
    found = problems_of(tmp_path, with_tag(*lines))
    assert list(found) == [path]
    assert says in found[path]


def test_names_and_series_that_clash(tmp_path: Path) -> None:
    second = '\n[[devices]]\nname = "press-1"\nadapter = "modbus"\naddress = "h:1"\nmachine_id = "press-1"\n'
    tags = '[[devices.tags]]\nname = "t"\naddress = "coil:0"\ntype = "bool"\n'
    found = problems_of(tmp_path, EXAMPLE + second + tags)
    assert found == {
        "devices[1].name": "'press-1' is also devices[0]",
        "devices[1].tags[0].name": "tag 't' of machine 'press-1' is also devices[0].tags[0]",
    }


def test_a_clash_is_named_by_its_place_in_the_file_even_after_a_wrong_device(tmp_path: Path) -> None:
    again = EXAMPLE[EXAMPLE.index("[[devices]]") :]
    wrong = again.replace("127.0.0.1:5020", "no port")
    assert set(problems_of(tmp_path, EXAMPLE + wrong + again)) == {
        "devices[1].address", "devices[2].name", "devices[2].tags[0].name",
    }  # fmt: skip


@pytest.mark.parametrize("devices", ["devices = []", "devices = 3", ""])
def test_a_config_needs_devices(tmp_path: Path, devices: str) -> None:
    assert "at least one" in problems_of(tmp_path, f'{devices}\n[agent]\nagent_id = "a"\n')["devices"]


def test_too_many_tags_for_one_birth(tmp_path: Path) -> None:
    name = "t" * 190
    tags = "".join(f'[[devices.tags]]\nname = "{name}{n}"\naddress = "holding:{n}"\n' for n in range(4200))
    assert "split it" in problems_of(tmp_path, EXAMPLE + tags)["devices"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("a = ", "not valid TOML"), ('a = "\\ud800"', "not valid TOML"), (None, "No such file")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "edge.toml" if text is None else write_config(tmp_path, text)
    with pytest.raises(ConfigError, match=says):
        load(path)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(path)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert load(write_config(tmp_path)).agent.data_dir == tmp_path / "forebay-data"
    text = EXAMPLE.replace('agent_id = "gw-1"', 'agent_id = "gw-1"\ndata_dir = "../elsewhere"')
    assert load(write_config(tmp_path, text)).agent.data_dir == tmp_path / "../elsewhere"
    text = EXAMPLE.replace('agent_id = "gw-1"', 'agent_id = "gw-1"\ndata_dir = "/var/lib/forebay"')
    assert load(write_config(tmp_path, text)).agent.data_dir == Path("/var/lib/forebay")


def test_defaults(tmp_path: Path) -> None:
    config = load(write_config(tmp_path))
    assert isinstance(config.broker, EmbeddedBroker)
    assert config.gateway_id == "gw-1"
    (device,) = config.devices
    assert isinstance(device, ModbusDevice)
    assert device.machine_of(device.tags[0]) == "press-1"
    assert config.in_flight_bytes_max <= 4_200_000, "the embedded broker keeps 5 MiB a partition"


KAFKA = '[broker]\nbootstrap_servers = "k:9092"\nsecurity_protocol = "sasl_ssl"\nsasl_username = "u"\n'


def kafka(password: str, **change: str) -> str:
    text = EXAMPLE.replace('broker = "embedded"', "") + KAFKA + f'sasl_password = "{password}"\n'
    for old, new in change.items():
        text = text.replace(old, new)
    return text


def test_secrets_come_from_the_environment_or_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "kafka").write_text("hunter3\n")
    for written, secret in (("env:KAFKA_PASSWORD", "hunter2"), ("credential:kafka", "hunter3")):
        config = load(write_config(tmp_path, kafka(written)))
        assert isinstance(config.broker, KafkaBroker)
        assert config.broker.client_settings()["sasl.password"] == secret
        assert config.broker.client_settings()["bootstrap.servers"] == "k:9092"
        assert secret not in repr(config) + str(config) + config.model_dump_json()


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("env:FOREBAY_NO_SUCH", "environment variable FOREBAY_NO_SUCH is not set"),
        ("credential:kafka", "no credentials folder"),
    ],
)
def test_a_secret_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, says: str) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert says in problems_of(tmp_path, kafka(written))["broker.sasl_password"]


@pytest.mark.parametrize(
    "spoiled",
    [
        kafka("hunter2", k9092="", sasl_ssl="sasl-ssl"),
        kafka("hunter2").replace("sasl_password", "sasl_pasword"),
        kafka("hunter2").replace('sasl_password = "hunter2"', 'sasl_password = ["hunter2"]'),
        kafka("hunter2").replace("[broker]", "[brokr]"),
        kafka("hunter2").replace("[broker]", '[broker]\nkind = "kafak"'),
        kafka("hunter2").replace("[broker]", "[[broker]]"),
        kafka("hunter2").replace('"hunter2"', '"hunter2" oops'),
    ],
)  # fmt: skip
def test_a_wrong_config_does_not_show_the_password(tmp_path: Path, spoiled: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write_config(tmp_path, spoiled))
    assert "hunter2" not in str(caught.value)


def test_the_sample_is_what_is_deployed_and_good(capsys: pytest.CaptureFixture[str]) -> None:
    sample = ROOT / "edge_agent" / "sample.toml"
    deployed = ROOT / "deploy" / "edge" / "edge.toml"
    assert sample.read_text() == deployed.read_text()
    assert cli.main(["check", str(deployed)]) == 0
    assert "press-1: 2 requests for 3 points" in capsys.readouterr().out


def test_init_writes_the_sample_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "edge.toml"
    assert cli.main(["init", str(path)]) == 0
    assert isinstance(load(path), AgentConfig)
    path.write_text("mine")
    assert cli.main(["init", str(path)]) == 1
    assert path.read_text() == "mine"
    assert "not overwritten" in capsys.readouterr().err
    assert cli.main(["init", str(tmp_path / "no" / "edge.toml")]) == 1


def test_check_as_json_gives_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(write_config(tmp_path)), "--json"]) == 0
    assert '"requests": 1' in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["run"], ["test", "x.toml", "--for", "soon"], ["check", "nowhere.toml"], ["buffer"]]
)
def test_bad_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    assert code == 2
    assert capsys.readouterr().out == ""


def test_a_home_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HOME", "/root")
    text = EXAMPLE.replace('agent_id = "gw-1"', 'agent_id = "gw-1"\ndata_dir = "~nobody-here/x"')
    assert "home" in problems_of(tmp_path, text)["agent.data_dir"].lower()
