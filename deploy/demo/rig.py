"""A whole Forebay on one machine: the real programs as processes, that can be stopped, frozen and killed.

In: a folder, and which broker and store (embedded unless given). Out: running programs, their health and metrics.
Fails with RigError, which holds the tail of the log of the program that misbehaved. Used by the demo, the scenario
tests and the benchmarks.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

STOP_TIMEOUT_S = 20.0


class RigError(RuntimeError):
    """A program did not do what it was asked to."""


class Program:
    """One of our programs; its output goes to `<folder>/<name>.log`."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name, self._command = name, list(command)
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process."""
        if self._process is None:
            raise RigError(f"{self.name} was never started")
        return self._process.pid

    def start(self) -> None:
        """Start it, appending to its log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        """End it with kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait(STOP_TIMEOUT_S)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Ask it to end; returns the seconds that took. Raises RigError when it does not, or ends badly."""
        started = time.monotonic()
        os.kill(self.pid, number)
        code = self._wait(STOP_TIMEOUT_S)
        if code != 0:
            raise RigError(f"{self.name} ended with exit code {code}\n{self.tail()}")
        return time.monotonic() - started

    def end(self) -> None:
        """Make sure that it does not run any more, whatever it is doing."""
        if self._process is not None and self.alive:
            self._process.kill()
            self._process.wait()

    def tail(self, lines: int = 15) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _wait(self, timeout_s: float) -> int:
        if self._process is None:
            raise RigError(f"{self.name} was never started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RigError(f"{self.name} did not end within {timeout_s:.0f} s\n{self.tail()}") from error


@dataclass(frozen=True)
class RigOptions:
    """What the plant is like and where its readings go."""

    machines: int = 10
    seed: int = 1
    poll_interval: str = "1s"
    chaos: str = ""
    replay: Path | None = None
    replay_speed: float = 1.0
    tags: int | None = None
    kafka: str | None = None
    dsn: str | None = None
    flush_interval_s: float = 1.0
    heartbeat_margin_s: float = 3.0
    ingest: dict[str, Any] = field(default_factory=dict)


class Rig:
    """Plant, agent and ingester in one folder; use as a context manager, so that nothing is left running."""

    def __init__(self, folder: Path, options: RigOptions) -> None:
        self.folder, self.options = folder, options
        self.data_dir = folder / "data"
        self.truth = folder / "truth.parquet"
        self.edge_config = folder / "edge.toml"
        self.ingest_config = folder / "ingest.toml"
        self.edge_port, self.ingest_port = free_port(), free_port()
        self.plant = Program("plant", ["-m", "edge_agent.cli", "simulate", *self._plant_arguments()], folder)
        self.agent = Program("agent", ["-m", "edge_agent.cli", "run", str(self.edge_config)], folder)
        self.ingest = Program("ingest", ["-m", "cloud_ingest.cli", "run", str(self.ingest_config)], folder)
        self.programs = (self.plant, self.agent, self.ingest)
        self.agent_kills_us: list[int] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self.programs):
            program.end()

    # -- starting, in the order in which readings flow backwards: who receives is there first -------------------------

    def start_plant(self) -> None:
        """Start the plant and wait until every machine listens; its agent config is completed for this rig."""
        self.plant.start()
        self.wait("the plant to listen", lambda: "ready" in self.plant.tail(200), 60, self.plant)
        text = self.edge_config.read_text()
        if self.options.kafka:
            inline = f'broker = {{ bootstrap_servers = "{self.options.kafka}" }}'
            text = text.replace('broker = "embedded"', inline)
        text = text.replace("flush_interval_s = 1.0", f"flush_interval_s = {self.options.flush_interval_s}")
        self.edge_config.write_text(f"{text}\n[http]\nport = {self.edge_port}\n")

    def start_ingest(self) -> None:
        """Start the ingester and wait until it has its store and its broker."""
        self.write_ingest_config()
        self.ingest.start()
        self.wait("the ingester", self.ingest_ready, 90, self.ingest)

    def start_agent(self) -> None:
        """Start the agent and wait until it answers."""
        self.agent.start()
        self.wait("the agent", lambda: bool(self.health(self.edge_port)), 30, self.agent)

    def kill_agent(self) -> None:
        """Kill -9 the agent; what it had read but not made safe is noted as in its hands."""
        self.agent_kills_us.append(time.time_ns() // 1000)
        self.agent.kill()

    def write_ingest_config(self) -> None:
        """Write the ingester's config for this rig."""
        broker = f'{{ bootstrap_servers = "{self.options.kafka}" }}' if self.options.kafka else '"embedded"'
        store = f'{{ dsn = "{self.options.dsn}" }}' if self.options.dsn else '"embedded"'
        ingest = {"idle_timeout_s": 5.0, **self.options.ingest}
        settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in ingest.items())
        self.ingest_config.write_text(
            f'broker = {broker}\nstore = {store}\ndata_dir = "{self.data_dir}"\n\n[ingest]\n{settings}\n\n'
            f"[archive]\ninterval_s = 10\n\n[http]\nport = {self.ingest_port}\n"
        )

    # -- looking ------------------------------------------------------------------------------------------------------

    def health(self, port: int) -> dict[str, Any]:
        """Return what /health says, empty while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))
        except (OSError, ValueError):
            return {}

    def metrics(self, port: int) -> dict[str, float]:
        """Return every metric summed over its labels, empty while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def ingest_ready(self) -> bool:
        """Whether the ingester reports that store and broker are there."""
        return bool(self.health(self.ingest_port).get("ok"))

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float, program: Program | None = None) -> None:
        """Wait for a condition; raises RigError when it does not come, or `program` ends meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if program is not None and not program.alive:
                raise RigError(f"{program.name} ended while starting\n{program.tail()}")
            if time.monotonic() > deadline:
                tail = program.tail() if program else ""
                raise RigError(f"waited {timeout_s:.0f} s for {what} in vain\n{tail}")
            time.sleep(0.1)

    def _plant_arguments(self) -> list[str]:
        options = self.options
        arguments = ["--seed", str(options.seed), "--port", "0", "--poll-interval", options.poll_interval]
        arguments += ["--truth", str(self.truth), "--write-config", str(self.edge_config)]
        arguments += ["--data-dir", str(self.data_dir)]
        if options.chaos:
            arguments += ["--chaos", options.chaos]
        if options.replay is not None:
            return [*arguments, "--replay", str(options.replay), "--speed", str(options.replay_speed)]
        if options.tags is not None:
            arguments += ["--tags", str(options.tags)]
        return [*arguments, "--machines", str(options.machines)]


def free_port() -> int:
    """Return a TCP port of the loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
