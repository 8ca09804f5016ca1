from pathlib import Path

import pytest

from cloud_ingest.config import EmbeddedStore, PostgresStore, load
from common.config import EmbeddedBroker, KafkaBroker
from common.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, text: str) -> Path:
    path = folder / "ingest.toml"
    path.write_text(text)
    return path


def test_nothing_said_means_embedded(tmp_path: Path) -> None:
    config = load(write(tmp_path, ""))
    assert isinstance(config.broker, EmbeddedBroker)
    assert isinstance(config.store, EmbeddedStore)
    assert config.data_dir == tmp_path / "forebay-data"
    assert config.archive_folder == tmp_path / "forebay-data/archive"


def test_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_DSN", "postgresql://u:secret@h/db")
    text = '[broker]\nbootstrap_servers = "k:9092"\n[store]\ndsn = "env:THE_DSN"\n[archive]\nfolder = "/arch"\n'
    config = load(write(tmp_path, text))
    assert isinstance(config.broker, KafkaBroker)
    assert isinstance(config.store, PostgresStore)
    assert config.store.dsn.get_secret_value() == "postgresql://u:secret@h/db"
    assert "secret" not in repr(config)
    assert config.archive_folder == Path("/arch")


def test_five_mistakes_are_reported_at_once_with_their_paths(tmp_path: Path) -> None:
    text = """
store = "sqlite"
[ingest]
poll_timeout_ms = 0
consumer_grup = "x"
[archive]
rows_max = "many"
[http]
port = 99999
"""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {"store", "ingest.poll_timeout_ms", "ingest.consumer_grup", "archive.rows_max", "http.port"}


def test_the_sample_is_the_defaults_and_the_deployed_copy_is_the_same(tmp_path: Path) -> None:
    text = (ROOT / "cloud_ingest/sample.toml").read_text()
    assert text == (ROOT / "deploy/cloud/ingest.toml").read_text()
    assert load(write(tmp_path, text)) == load(write(tmp_path, ""))
