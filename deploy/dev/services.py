"""Real services for tests and benchmarks, without containers: `python -m deploy.dev.services up`.

A Kafka broker (KRaft, 4.x) and a PostgreSQL (with TimescaleDB if installed), on the loopback, with their data and
logs in `.forebay/services` of the checkout, or in FOREBAY_SERVICES_DIR. `up` may be said twice; what is stored
survives `down`. From Python: `Services().up()`, and `.kafka.kill()` in the middle of a test.

Exit status: 0, or 1 with the reason and the end of the server's log on stderr.
"""

import argparse
import fcntl
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import ServiceError
from deploy.dev.ground import Service, ground
from deploy.dev.kafka_service import Kafka
from deploy.dev.postgres_service import Postgres

START_TIMEOUT_S: Final = 90.0
Endpoints = dict[str, dict[str, str]]


class Services:
    """Both services of one folder; safe to use from several processes at once."""

    def __init__(self, folder: Path | None = None) -> None:
        self._ground = ground(folder)
        self.folder: Final = self._ground.folder
        self.kafka: Final = Kafka(self._ground)
        self.postgres: Final = Postgres(self._ground)
        self._record = self.folder / "services.json"

    @property
    def by_name(self) -> dict[str, Service]:
        """The services by the names people use."""
        return {"kafka": self.kafka, "postgres": self.postgres}

    def up(self) -> Endpoints:
        """Start what does not run and return how to reach each: `bootstrap_servers` and `dsn`, among others."""
        return self.start(*self.by_name)

    def start(self, *names: str) -> Endpoints:
        """Start some services unless they run."""
        with self._alone():
            endpoints = self.endpoints()
            for name in names:
                endpoints[name] = self.by_name[name].start(START_TIMEOUT_S)
            self._record.touch(mode=0o600)  # it holds the development password
            self._record.write_text(json.dumps(endpoints, indent=1))
        return endpoints

    def down(self) -> None:
        """Stop both in order; nothing of them is left running."""
        with self._alone():
            for service in self.by_name.values():
                service.stop()

    def endpoints(self) -> Endpoints:
        """Return how to reach the services as of their last start, whether or not they run now."""
        if not self._record.exists():
            return {}
        endpoints: Endpoints = json.loads(self._record.read_text())
        return endpoints

    def running(self) -> dict[str, bool]:
        """Tell which services have a process."""
        return {name: bool(service.processes()) for name, service in self.by_name.items()}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self.folder / "services.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def variables(endpoints: Endpoints) -> dict[str, str]:
    """Return what tests and benchmarks find the services by."""
    names = {"kafka": ("FOREBAY_KAFKA", "bootstrap_servers"), "postgres": ("FOREBAY_POSTGRES_DSN", "dsn")}
    return {variable: endpoints[name][key] for name, (variable, key) in names.items() if name in endpoints}


def _show_status(services: Services, *, as_json: bool) -> None:
    running, endpoints = services.running(), services.endpoints()
    if as_json:
        status = {name: {**endpoints.get(name, {}), "running": up} for name, up in running.items()}
        print(json.dumps(status, indent=1))
        return
    for name, up in running.items():
        endpoint = endpoints.get(name, {})
        extras = f" with TimescaleDB: {endpoint['timescaledb']}" if "timescaledb" in endpoint else ""
        where = (
            f"{endpoint['version']} on 127.0.0.1:{endpoint['port']}{extras}; log {endpoint['log']}" if endpoint else ""
        )
        print(f"{name:9} {'up  ' if up else 'down'} {where}")


def _show_environment(services: Services, *, as_json: bool) -> None:
    values = variables(services.endpoints())
    if as_json:
        print(json.dumps(values, indent=1))
        return
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m deploy.dev.services", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start both services and wait until they serve")
    commands.add_parser("down", help="stop both services; their data stay")
    for command, text in {"status": "what runs and where", "env": "shell lines that export the addresses"}.items():
        commands.add_parser(command, help=text).add_argument("--json", action="store_true", help="for machines")
    for name in ("kafka", "postgres"):
        one = commands.add_parser(name, help=f"stop, start or kill {name} alone")
        one.add_argument("action", choices=("start", "stop", "kill"))
    options = parser.parse_args(arguments)
    try:
        services = Services()
        match options.command:
            case "up":
                services.up()
                _show_status(services, as_json=False)
            case "down":
                services.down()
            case "status":
                _show_status(services, as_json=options.json)
            case "env":
                _show_environment(services, as_json=options.json)
            case name if options.action == "start":
                services.start(name)
            case name:
                getattr(services.by_name[name], options.action)()
    except ServiceError as error:
        print(f"services: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
