"""The HTTP side: metrics, health, and callers that misbehave."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from common import metrics
from common.errors import ServiceError
from common.metrics import Health, MetricsServer


class Sick:
    ok = True

    def __call__(self) -> Health:
        return Health(self.ok, {"buffer": {"waiting": 3}})


@pytest.fixture
def health() -> Sick:
    return Sick()


@pytest.fixture
def server(health: Sick) -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Counter("forebay_edge_things_total", "Things", registry=registry).inc(2)
    made = MetricsServer("127.0.0.1", 0, registry, health)
    yield made
    made.close()


def get(server: MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_and_health(server: MetricsServer, health: Sick) -> None:
    assert "forebay_edge_things_total 2.0" in get(server, "/metrics")[1]
    status, body = get(server, "/health")
    assert (status, json.loads(body)) == (200, {"ok": True, "buffer": {"waiting": 3}})
    health.ok = False
    assert get(server, "/health")[0] == 503
    assert get(server, "/elsewhere")[0] == 404


def test_a_taken_port_is_named(server: MetricsServer, health: Sick) -> None:
    host, _, port = server.address.partition(":")
    with pytest.raises(ServiceError, match=f"cannot listen on {server.address}: Address already in use"):
        MetricsServer(host, int(port), CollectorRegistry(), health)


def test_callers_that_say_nothing_are_not_waited_for(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REQUEST_TIMEOUT_S", 0.2)
    quick = MetricsServer("127.0.0.1", 0, CollectorRegistry(), lambda: Health(ok=True))
    host, _, port = quick.address.partition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(10)]
    assert get(quick, "/health")[0] == 200
    for one in silent:
        one.settimeout(5)
        assert one.recv(1) == b""  # hung up on
        one.close()
    quick.close()
    del server


def test_closing_frees_the_port_and_ends_the_thread(health: Sick) -> None:
    server = MetricsServer("127.0.0.1", 0, CollectorRegistry(), health)
    host, _, port = server.address.partition(":")
    started = time.monotonic()
    server.close()
    assert time.monotonic() - started < 1
    assert not any(thread.name == "http" and thread is server._thread for thread in threading.enumerate())
    again = MetricsServer(host, int(port), CollectorRegistry(), health)
    again.close()
