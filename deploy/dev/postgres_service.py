"""A real PostgreSQL on the loopback, with TimescaleDB if the machine has it: the server class of the embedded store.

In: a Ground. Out: a server that takes a password over TCP. Fails with ServiceError.
"""

import json
import signal
from typing import TYPE_CHECKING, Final

from cloud_ingest.postgres_install import find_installation
from cloud_ingest.postgres_server import DATABASE, ROLE, Access, PostgresServer, processes_of
from deploy.dev.ground import Ground, end, pick_port

if TYPE_CHECKING:
    import subprocess

PORT: Final = 15432
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "512MB",
    "max_connections": "100",
    "max_wal_size": "4GB",
}


class Postgres:
    """The server of a ground. What it stores survives stop, start and kill."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._folder = ground.subfolder("postgres")
        self._data = self._folder / "data"
        self._endpoint = ground.folder / "postgres.json"
        self._process: subprocess.Popen[bytes] | None = None  # kept, so that a killed child is reaped
        self.log: Final = self._folder / "postgres.log"

    def start(self, timeout_s: float) -> dict[str, str]:
        """Start it unless it runs, on its former port if that is free; wait until it takes connections."""
        if self._leader():
            endpoint: dict[str, str] = json.loads(self._endpoint.read_text())
            return endpoint
        version = int((self._data / "PG_VERSION").read_text()) if self._data.exists() else None
        installation = find_installation(version)
        former = json.loads(self._endpoint.read_text()) if self._endpoint.exists() else {}
        port = pick_port(int(former.get("port", PORT)))
        password = self._ground.secret("postgres.password")
        endpoint = {
            "dsn": f"postgresql://{ROLE}:{password}@127.0.0.1:{port}/{DATABASE}",
            "port": str(port),
            "version": str(installation.major),
            "timescaledb": "yes" if installation.timescaledb else "no",
            "log": str(self.log),
        }
        self._endpoint.touch(mode=0o600)
        self._endpoint.write_text(json.dumps(endpoint, indent=1))
        server = PostgresServer(
            installation,
            self._data,
            self._ground.account,
            self.log,
            Access([f"host all {ROLE} 127.0.0.1/32 scram-sha-256"], password=password),
            {**SETTINGS, "port": str(port)},
        )
        server.make()
        self.log.unlink(missing_ok=True)
        self._process = server.spawn(timeout_s, with_parent=False)
        return endpoint

    def stop(self) -> None:
        """End every session and the server, in order."""
        if self._leader():
            end(self._leader, (signal.SIGINT, signal.SIGQUIT))
        end(self.processes, (signal.SIGKILL,))

    def kill(self) -> None:
        """End all its processes as a crash of the machine would."""
        end(self.processes, (signal.SIGKILL,))

    def processes(self) -> list[int]:
        """Return the server's processes, its leader's and those of sessions."""
        if self._process is not None:
            self._process.poll()
        return processes_of(self._data)

    def _leader(self) -> list[int]:
        """Return the postmaster's id, if it is alive; its file alone proves nothing."""
        try:
            written = int((self._data / "postmaster.pid").read_text().split("\n")[0])
        except (OSError, ValueError):
            return []
        return [pid for pid in self.processes() if pid == written]
