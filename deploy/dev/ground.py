"""What both development services stand on: their folder, ports, and processes found without trusting pid files.

In: the checkout, and the environment variable FOREBAY_SERVICES_DIR. Out: paths, ports, process ids.
Fails with ServiceError.
"""

import contextlib
import hashlib
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cloud_ingest.postgres_install import Account, server_account
from common.errors import ServiceError

CHECKOUT: Final = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 3000


class Service(Protocol):
    """A development service. Each method may be called in any state and in any process."""

    def start(self, timeout_s: float) -> dict[str, str]:
        """Start it unless it runs, wait until it serves, and return how to reach it."""

    def stop(self) -> None:
        """End it in order, and wait."""

    def kill(self) -> None:
        """End it as a crash would, and wait."""

    def processes(self) -> list[int]:
        """Return its processes."""


@dataclass(frozen=True, slots=True)
class Ground:
    """`folder` holds data, logs and programs; servers run as `account` (None: as ourselves)."""

    folder: Path
    account: Account | None

    def subfolder(self, *names: str) -> Path:
        """Return a folder that the servers may write to, made when absent."""
        folder = self.folder.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
        if self.account:
            os.chown(folder, self.account.uid, self.account.gid)
        return folder

    def secret(self, name: str) -> str:
        """Return a word that only we can read, made up the first time."""
        path = self.folder / name
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(16))
        return path.read_text()


def ground(folder: Path | None = None) -> Ground:
    """Return where services live: `folder`, else FOREBAY_SERVICES_DIR, else `.forebay/services` of the checkout.

    Servers do not run as root. When we are root and their user cannot reach that folder, as below /root, a folder
    among the temporary files named after it takes its place.
    """
    wanted = folder or Path(os.environ.get("FOREBAY_SERVICES_DIR") or CHECKOUT / ".forebay/services")
    wanted = wanted.absolute()
    account = server_account()
    if account and not account.can_reach(wanted):
        name = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
        wanted = Path(tempfile.gettempdir()) / f"forebay-{name}"
    try:
        wanted.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(
            f"cannot make {wanted}: {error}; set FOREBAY_SERVICES_DIR to a folder of your own"
        ) from error
    if wanted.is_symlink() or wanted.stat().st_uid != os.geteuid():
        raise ServiceError(f"{wanted} belongs to another user; set FOREBAY_SERVICES_DIR to a folder of your own")
    return Ground(wanted, account)


def pick_port(*candidates: int | None) -> int:
    """Return the first candidate that is free on the loopback, else any port that is."""
    for port in (*candidates, 0):
        if port is None:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: waiting sockets do not matter
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ServiceError("no free port on 127.0.0.1")


def wait_for(holds: Callable[[], bool], timeout_s: float) -> bool:
    """Tell whether it came to hold in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def end(processes: Callable[[], list[int]], signals: Iterable[int]) -> None:
    """Send the signals, one after another with time to act, until no process is left and their ports are free."""
    left: set[int] = set()

    def all_gone() -> bool:
        return all(ended(pid) for pid in left) and not processes()

    for number in signals:
        if all_gone():
            return
        left.update(processes())
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        wait_for(all_gone, STOP_TIMEOUT_S)
    if not all_gone():
        raise ServiceError(f"processes {processes()} do not end, not even by {signal.Signals(number).name}")


def ended(pid: int) -> bool:
    """Tell whether a process is gone, threads and open files too; a killed one looks dead before its threads are."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z" and len(list(Path(f"/proc/{pid}/task").iterdir())) <= 1
    except OSError:
        return True


def log_tail(log: Path) -> str:
    """Return the end of a log, for a person."""
    with contextlib.suppress(OSError):
        return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    return f"{log} is empty"
