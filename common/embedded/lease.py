"""A client's hold on an embedded server that a keeper process serves (see `keeper` for how the two agree).

In: a folder, the server's name there and the module that is its keeper. Out: the server's address.
Fails with ServiceError: the folder cannot be used, or the server did not start, or not in time.
"""

import contextlib
import json
import os
import select
import site
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, Self

from common.embedded.places import Address, Places, open_lock, try_exclusive, try_shared
from common.errors import ServiceError

POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 2000


class Lease:
    """As long as it is open, in whatever process, the keeper stays; a dead process holds nothing.

    `module` is run as `python -m MODULE --folder FOLDER` and calls `keeper.keep(FOLDER, name, ...)`.
    `refresh` and `close` may be called from any thread.
    """

    def __init__(self, folder: Path, name: str, module: str) -> None:
        self._places = Places(folder.absolute(), name)
        self._module = module
        self._one_at_a_time = threading.Lock()
        self._clients: int | None = None

    def open(self, timeout_s: float) -> Address:
        """Hold the server, starting it when nobody serves, and return its address. May be called again."""
        if self._clients is not None:
            return self.refresh(timeout_s)
        deadline = time.monotonic() + timeout_s
        places = self._places
        try:
            places.folder.mkdir(parents=True, exist_ok=True)
            clients = open_lock(places.clients_lock)
        except OSError as error:
            raise ServiceError(f"cannot use the folder {places.folder}: {error}") from error
        try:
            while not try_shared(clients):  # only a keeper that is just ending holds it against us
                self._wait(deadline, "an earlier one is still shutting down")
            self._clients = clients
            return self.refresh(deadline - time.monotonic())
        except BaseException:
            self._clients = None
            os.close(clients)
            raise

    def refresh(self, timeout_s: float) -> Address:
        """Return the current address, after starting the server anew if it has died."""
        deadline = time.monotonic() + timeout_s
        with self._one_at_a_time:
            if self._clients is None:
                raise ServiceError(f"embedded {self._places.name}: already closed")
            while True:
                try:
                    address = self._spawn(deadline) if self._nobody_serves() else self._published()
                except OSError as error:
                    raise ServiceError(f"embedded {self._places.name}: {error}") from error
                if address is not None:
                    return address
                self._wait(deadline, f"see {self._places.log}")

    def close(self) -> None:
        """Let go; the keeper ends some seconds after its last client. Harmless when closed already."""
        with self._one_at_a_time:
            if self._clients is not None:
                os.close(self._clients)
                self._clients = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _nobody_serves(self) -> bool:
        probe = open_lock(self._places.keeper_lock)
        try:
            if not try_exclusive(probe):
                return False
            # What a killed keeper left must not be read once the next one holds the lock.
            self._places.address.unlink(missing_ok=True)
            return True
        finally:
            os.close(probe)

    def _published(self) -> Address | None:
        """Return what a running keeper wrote; None while it is starting or ending."""
        try:
            address = json.loads(self._places.address.read_text())
        except FileNotFoundError:
            return None
        return {str(key): str(value) for key, value in address.items()}

    def _spawn(self, deadline: float) -> Address | None:
        """Start a keeper and wait for its report; None when another keeper was faster."""
        places = self._places
        with places.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
                [sys.executable, "-P", "-m", self._module, "--folder", str(places.folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        if process.stdout is None:
            raise AssertionError("PIPE was asked for")
        with process.stdout as pipe:
            line = _read_line(pipe.fileno(), deadline)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))  # it forks and ends at once
        if not line:
            what = "ended" if time.monotonic() < deadline else "was not ready in time"
            raise ServiceError(f"embedded {places.name} {what}: {self._log_tail() or 'it printed nothing'}")
        report: dict[str, dict[str, str]] = json.loads(line)
        if "error" in report:
            raise ServiceError(f"embedded {places.name} did not start: {report['error']}")
        return report.get("address")

    def _wait(self, deadline: float, why: str) -> None:
        if time.monotonic() >= deadline:
            places = self._places
            raise ServiceError(f"embedded {places.name} in {places.folder} was not ready in time: {why}")
        time.sleep(POLL_S)

    def _log_tail(self) -> str:
        return self._places.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()


def _read_line(descriptor: int, deadline: float) -> bytes:
    """Read up to a newline, the end of the pipe or the deadline; an incomplete line counts as none."""
    received = b""
    while not received.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, 65536) if ready else b""
        if not chunk:
            return b""
        received += chunk
    return received


def _environment() -> dict[str, str]:
    """Return our environment, with the folder of our packages on the path unless they are installed."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    if root not in site.getsitepackages():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return environment
