"""Edge to cloud with the broker away for 20 s and the agent and the ingester each killed -9 once.

The same story on the embedded default and on a real Kafka and PostgreSQL. The judge is deploy/demo/reconcile.py,
which shares no code with what it judges.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from cloud_ingest.embedded_postgres import EmbeddedPostgres
from common.embedded.broker import EmbeddedBroker, ensure_embedded_broker
from deploy.demo.reconcile import Reconciliation, reconcile
from deploy.demo.rig import Rig, RigOptions
from tests.scenarios.real_services import RealServices, real_services

SEED = int(os.environ.get("FOREBAY_SEED", "20261122"))
OUTAGE_S = 20.0
CALM_S = 6.0


class Broker(Protocol):
    def stop(self) -> None: ...

    def start(self) -> None: ...


class FrozenKeeper:
    """Stops the embedded broker's process without ending it: it is memory, as a paused machine would be."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker

    def stop(self) -> None:
        os.kill(self._broker.pid, signal.SIGSTOP)

    def start(self) -> None:
        os.kill(self._broker.pid, signal.SIGCONT)


class KilledKeeper:
    """Kills the embedded broker's process: its memory is gone, a new one is started by whoever notices."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker

    def stop(self) -> None:
        os.kill(self._broker.pid, signal.SIGKILL)

    def start(self) -> None:
        self._broker.refresh()


def play(rig: Rig, broker: Broker, outage_s: float) -> None:
    """The story; every step waits for the programs to be where the next one expects them."""
    time.sleep(CALM_S)
    broker.stop()
    time.sleep(outage_s / 2)
    rig.kill_agent()
    rig.start_agent()
    time.sleep(outage_s / 2)
    broker.start()
    time.sleep(CALM_S)
    rig.ingest.kill()
    rig.start_ingest()
    time.sleep(CALM_S)


def finish(rig: Rig, dsn: str) -> Reconciliation:
    rig.wait("the backlog to be sent", lambda: waiting_batches(rig) <= 2 * rig.options.machines, 60, rig.agent)
    assert rig.agent.stop(signal.SIGINT) < 5.0, "Ctrl-C must end the agent within 5 s"
    stored: list[float] = []

    def settled() -> bool:
        stored.append(rig.metrics(rig.ingest_port).get("forebay_ingest_readings_total", -1.0))
        time.sleep(0.5)
        return len(stored) > 20 and len(set(stored[-20:])) == 1

    rig.wait("the last batches to be stored", settled, 90, rig.ingest)
    assert rig.ingest.stop() < 5.0, "SIGTERM must end the ingester within 5 s"
    rig.plant.stop()
    return reconcile(rig.truth, rig.edge_config, dsn, rig.data_dir / "archive", rig.agent_kills_us)


def waiting_batches(rig: Rig) -> float:
    return rig.metrics(rig.edge_port).get("forebay_edge_buffer_waiting_batches", 1e9)


def assert_nothing_lost(rig: Rig, result: Reconciliation) -> None:
    told = f"seed {SEED}, folder {rig.folder}\n{result}"
    assert result.problems == [], told
    assert (result.lost, result.duplicated, result.wrong) == (0, 0, 0), told
    assert result.accepted == result.stored == result.archived, told
    assert result.windows > 0, told
    assert result.windows_differing == 0, told
    assert result.dead_letters == 0, told
    assert result.stored > 1000, told


def options(**more: object) -> RigOptions:
    return RigOptions(machines=5, seed=SEED, poll_interval="500ms", chaos="spikes,drift,loss=0.01", **more)  # type: ignore[arg-type]


@contextmanager
def embedded_rig(folder: Path) -> Iterator[tuple[Rig, EmbeddedBroker, str]]:
    with Rig(folder, options()) as rig:
        rig.start_plant()
        with ensure_embedded_broker(rig.data_dir / "broker") as broker:
            rig.start_ingest()
            postgres = EmbeddedPostgres(rig.data_dir / "postgres")
            try:
                dsn = postgres.start()
                rig.start_agent()
                yield rig, broker, dsn
            finally:
                postgres.stop()


def test_embedded_default_broker_stops_and_both_programs_are_killed(tmp_path: Path) -> None:
    with embedded_rig(tmp_path) as (rig, broker, dsn):
        play(rig, FrozenKeeper(broker), OUTAGE_S)
        assert_nothing_lost(rig, finish(rig, dsn))


@pytest.mark.slow
def test_embedded_broker_that_forgets_everything_costs_nothing(tmp_path: Path) -> None:
    with embedded_rig(tmp_path) as (rig, broker, dsn):
        play(rig, KilledKeeper(broker), 4.0)
        assert_nothing_lost(rig, finish(rig, dsn))


@pytest.fixture
def services() -> Iterator[RealServices]:
    with real_services() as found:
        yield found


@pytest.mark.services
def test_real_kafka_stops_and_both_programs_are_killed(tmp_path: Path, services: RealServices) -> None:
    with Rig(tmp_path, options(kafka=services.bootstrap_servers, dsn=services.dsn)) as rig:
        rig.start_plant()
        rig.start_ingest()
        rig.start_agent()
        play(rig, services.kafka, OUTAGE_S)
        assert_nothing_lost(rig, finish(rig, services.dsn))
