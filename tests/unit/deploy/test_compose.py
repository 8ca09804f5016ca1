"""What can be known about deploy/cloud without a container engine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_ingest.config import PostgresStore, load
from common.config import KafkaBroker

ROOT = Path(__file__).resolve().parents[3]
CLOUD = ROOT / "deploy/cloud"
MEMORY_MIB_MAX = 8 * 1024


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLOUD / "compose.yaml").read_text())
    return loaded


def memory_mib(service: dict[str, Any]) -> int:
    limit = service["deploy"]["resources"]["limits"]["memory"]
    assert re.fullmatch(r"\d+M", limit)
    return int(limit[:-1])


def test_all_services_together_fit_into_8_gb(compose: dict[str, Any]) -> None:
    limits = {name: memory_mib(service) for name, service in compose["services"].items()}
    assert sum(limits.values()) <= MEMORY_MIB_MAX, limits


def test_every_service_says_when_it_is_healthy_and_bounds_its_log(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["logging"]["options"]["max-size"], name


def test_images_are_pinned_and_nothing_is_published_beyond_the_loopback(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "build" in service or re.search(r":\d+\.\d+", service["image"]), name
        for port in service.get("ports", ()):
            assert port.startswith(("127.0.0.1:", "${KAFKA_EXTERNAL_BIND:-127.0.0.1}:")), (name, port)


def test_what_depends_on_a_service_waits_until_it_is_healthy(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for needed, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert needed in compose["services"]


def test_the_env_example_names_every_variable_and_holds_no_secret() -> None:
    used = set(re.findall(r"\$\{(\w+)", (CLOUD / "compose.yaml").read_text()))
    example = dict(re.findall(r"^#?(\w+)=(.*)$", (CLOUD / ".env.example").read_text(), re.MULTILINE))
    assert set(example) == used
    assert not any(value for name, value in example.items() if "PASSWORD" in name)


def test_every_mounted_file_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (CLOUD / source).exists(), source
            else:
                assert source in compose["volumes"]


def test_the_ingesters_config_is_valid_and_agrees_with_the_services(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = compose["services"]["ingest"]["environment"]["FOREBAY_STORE_DSN"]
    monkeypatch.setenv("FOREBAY_STORE_DSN", dsn)
    config = load(CLOUD / "compose.ingest.toml")
    assert isinstance(config.broker, KafkaBroker)
    assert config.broker.bootstrap_servers.split(":")[0] in compose["services"]
    assert isinstance(config.store, PostgresStore)
    assert "@timescaledb:5432/forebay" in config.store.dsn.get_secret_value()
    assert any(f":{config.http.port}/health" in word for word in compose["services"]["ingest"]["healthcheck"]["test"])
    assert f"ingest-data:{config.data_dir}" in compose["services"]["ingest"]["volumes"]


def test_the_image_is_made_of_files_that_are_there() -> None:
    allowed = re.findall(r"^!(.+)$", (CLOUD / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert [path for path in allowed if not (ROOT / path).exists()] == []
    assert "USER forebay" in (CLOUD / "Dockerfile").read_text()


def test_dashboards_use_the_provisioned_datasource_and_read_only() -> None:
    provisioned = yaml.safe_load((ROOT / "grafana/provisioning/datasources/forebay.yaml").read_text())
    uids = {source["uid"] for source in provisioned["datasources"]}
    for path in (ROOT / "grafana/dashboards").glob("*.json"):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            assert panel["datasource"]["uid"] in uids
            assert all(target["rawSql"].startswith("SELECT ") for target in panel["targets"]), panel["title"]
