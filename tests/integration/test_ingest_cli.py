"""The commands as people and scripts call them: exit statuses, output, and services that are not there."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cloud_ingest.embedded_postgres import EmbeddedPostgres
from common.embedded.broker import ensure_embedded_broker
from tests.integration.ingesting import (
    Database,
    Feeder,
    WorkerProcess,
    cloud_ingest,
    config_data,
    free_port,
    make_database,
    stored_rows,
    to_toml,
    truth_rows,
    wait_for,
)
from tests.integration.traffic import BASE_US, FakeAgent


def write(folder: Path, text: str) -> str:
    path = folder / "ingest.toml"
    path.write_text(text)
    return str(path)


def test_init_then_check(folder: Path) -> None:
    path = str(folder / "new.toml")
    assert cloud_ingest("init", path).returncode == 0
    done = cloud_ingest("check", path, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"ok": True, "broker": "embedded", "store": "embedded"}
    again = cloud_ingest("init", path)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert cloud_ingest("init", path, "--force").returncode == 0


def test_every_mistake_of_a_config_is_reported_and_is_exit_2(folder: Path) -> None:
    text = (
        '[ingest]\nspeed = 1\npoll_timeout_ms = -1\n[archive]\nrows_max = 0\nenabled = "perhaps"\n[http]\nport = "x"\n'
    )
    config = write(folder, text)
    paths = {"ingest.speed", "ingest.poll_timeout_ms", "archive.rows_max", "archive.enabled", "http.port"}
    for command in ("check", "run", "migrate", "status"):
        done = cloud_ingest(command, config, "--json")
        assert done.returncode == 2
        assert {one["path"] for one in json.loads(done.stdout)["problems"]} == paths
        assert all(path in done.stderr for path in paths)
    assert cloud_ingest("check", str(folder / "none.toml")).returncode == 2
    assert cloud_ingest("check", write(folder, "= nonsense")).returncode == 2
    assert cloud_ingest("fly").returncode == 2
    for command in ((), ("run",), ("migrate",), ("status",), ("init",), ("check",)):
        assert cloud_ingest(*command, "--help").returncode == 0


def test_migrate_twice_and_status(folder: Path, postgres: EmbeddedPostgres) -> None:
    empty = make_database(postgres.dsn, plain=True)
    for table in ("schema_migrations", "series CASCADE", "readings CASCADE"):
        empty.fetch(f"DROP TABLE {table}")
    empty.fetch("DROP SCHEMA public CASCADE")
    empty.fetch("CREATE SCHEMA public")
    config = write(folder, to_toml(config_data(empty, folder)))
    before = cloud_ingest("status", config)
    assert before.returncode == 1
    assert "migrate" in before.stderr
    dry = cloud_ingest("migrate", config, "--dry-run")
    assert dry.returncode == 0
    assert "CREATE TABLE batch_ledger" in dry.stdout
    assert empty.value("SELECT to_regclass('readings')") is None
    first = json.loads(cloud_ingest("migrate", config, "--json").stdout)
    assert len(first["applied"]) == 4
    assert first["kind"] == ("timescaledb" if postgres.timescaledb else "plain")
    second = json.loads(cloud_ingest("migrate", config, "--json").stdout)
    assert second["applied"] == []
    status = json.loads(cloud_ingest("status", config, "--json").stdout)
    assert status["store"]["kind"] == first["kind"]
    assert status["partitions"] == status["lanes"] == []
    assert status["broker"]["up"]


def test_status_of_a_running_and_a_stopped_worker(folder: Path, plain_database: Database) -> None:
    agent = FakeAgent("press-1")
    with (
        ensure_embedded_broker(folder / "broker") as broker,
        WorkerProcess(config_data(plain_database, folder), folder) as worker,
    ):
        feeder = Feeder(broker.bootstrap_servers)
        sent = [agent.birth(), *(agent.batch(BASE_US + k, 3) for k in range(6))]
        feeder.agent(agent, *sent[:3], *sent[5:], sent[1], b"junk")  # two are missing, one comes twice
        feeder.flush()
        wait_for(lambda: worker.metric("forebay_ingest_repeats_total") == 1)

        def check() -> None:
            status = json.loads(cloud_ingest("status", str(worker.config), "--json").stdout)
            (lane,) = status["lanes"]
            assert (lane["machine_id"], lane["received"], lane["repeated"]) == ("press-1", 5, 1)
            assert (lane["missing"], lane["missing_ranges"], lane["last_seq"]) == (2, [[4, 5]], 7)
            assert status["dead_letters"] == {"not_a_message": 1}
            used = [one for one in status["partitions"] if one["next_offset"] is not None]
            assert [(one["topic"], one["lag"], one["next_offset"]) for one in used] == [("forebay.stream", 0, 7)]
            assert status["windows"]["windows_1m"]["rows"] == 2

        wait_for(lambda: plain_database.value("SELECT count(*) FROM windows_1m") == 2)
        check()
        assert worker.stop() == 0
        check()
        people = cloud_ingest("status", str(worker.config))
        assert people.returncode == 0
        assert "press-1" in people.stdout
        assert "4-5" in people.stdout


def test_services_that_are_not_there_at_the_start(folder: Path, postgres: EmbeddedPostgres) -> None:
    nowhere, database = free_port(), make_database(postgres.dsn, plain=True)
    data = config_data(None, folder, broker={"bootstrap_servers": f"127.0.0.1:{nowhere}"})
    data["store"] = {"dsn": f"postgresql://u:hush@127.0.0.1:{nowhere}/x"}
    with WorkerProcess(data, folder) as worker:
        wait_for(lambda: {"store", "broker"} <= {e.get("service") for e in worker.events()}, 20)
        time.sleep(3)
        said = [event["service"] for event in worker.events() if event["event"] == "service.unreachable"]
        assert sorted(said) == ["broker", "store"]
        health = worker.health()
        assert not health["ok"]
        assert not health["store"]["up"]
        assert "127.0.0.1" in health["broker"]["error"]
        assert worker.metric("forebay_ingest_store_up") == worker.metric("forebay_ingest_broker_up") == 0
        assert "hush" not in worker.log.read_text()
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 5
    status = cloud_ingest("status", str(worker.config))
    assert status.returncode == 1
    assert "store" in status.stderr
    assert "hush" not in status.stderr
    # The store is there, the broker is not: status says so and still shows what is stored.
    config = write(folder, to_toml({**data, "store": {"dsn": database.dsn}}))
    status = cloud_ingest("status", config, "--json")
    assert status.returncode == 0
    assert not json.loads(status.stdout)["broker"]["up"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_within_five_seconds_with_nothing_lost(
    folder: Path, plain_database: Database, number: int
) -> None:
    agent = FakeAgent("m")
    with (
        ensure_embedded_broker(folder / "broker") as broker,
        WorkerProcess(config_data(plain_database, folder), folder) as worker,
    ):
        feeder = Feeder(broker.bootstrap_servers)
        feeder.agent(agent, agent.birth())
        wait_for(lambda: worker.metric("forebay_ingest_births_total") == 1)
        for k in range(400):
            feeder.agent(agent, agent.batch(BASE_US + k * 1_000_000, 10))
        worker.signal(number)
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 5
        feeder.flush()
        worker.start()
        wait_for(lambda: len(stored_rows(plain_database)) == len(truth_rows([agent])))
        assert stored_rows(plain_database) == truth_rows([agent])


def test_a_message_that_the_store_refuses_is_found_and_set_aside(folder: Path, plain_database: Database) -> None:
    good, bad = FakeAgent("good"), FakeAgent("bad", ["x"])
    plain_database.fetch("ALTER TABLE readings ADD CHECK (value <> 666)")
    with (
        ensure_embedded_broker(folder / "broker") as broker,
        WorkerProcess(config_data(plain_database, folder), folder) as worker,
    ):
        feeder = Feeder(broker.bootstrap_servers)
        feeder.agent(good, good.birth())
        feeder.agent(bad, bad.birth())
        for k in range(20):
            feeder.agent(good, good.batch(BASE_US + k * 1_000_000, 5))
            if k in {3, 11}:
                feeder.agent(bad, bad.encode(
                    np.array([BASE_US + k]), np.array([666.0]), np.zeros(1, np.int32), np.array([0, 1])
                ))  # fmt: skip
        feeder.flush()
        wait_for(lambda: len(stored_rows(plain_database)) == len(truth_rows([good])))
        wait_for(lambda: plain_database.value("SELECT count(*) FROM dead_letters") == 2)
        assert stored_rows(plain_database) == truth_rows([good])
        reasons = plain_database.fetch("SELECT DISTINCT reason FROM dead_letters")
        assert [row["reason"] for row in reasons] == ["refused_by_store"]
        assert worker.health()["ok"]
