"""A small process that keeps one server for several clients and ends when the last of them is gone.

In: a folder, the server's name there, and the server. Out: its address, published for `common.embedded.lease`.
Fails by reporting the reason to the client that spawned it, and ending with status 1.

A server that must outlive a `kill -9` of the program that uses it, and yet must not stay when nobody uses it,
cannot be that program's child. So it gets a process of its own, and the kernel counts its clients by file locks
(see `places`):

- A client takes the shared lock on `clients_lock`. If `keeper_lock` is free, it spawns a keeper. Of two keepers
  that race, one finds the lock taken and ends.
- The keeper locks, starts the server, publishes. Each second it tries the exclusive lock on `clients_lock`; once
  that has worked for GRACE_S it keeps this lock and ends. A client that comes just then waits for its shared
  lock until the keeper is gone, so it is never handed the address of a server that is shutting down.
- However either side dies, the kernel drops its locks: nothing is stale but the address file, which a client
  removes while it holds the keeper's lock.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from common.embedded.places import Address, Places, open_lock, try_exclusive, unlock
from common.errors import ForebayError

GRACE_S: Final = 5.0
CHECK_S: Final = 1.0
LOG_BYTES_MAX: Final = 4 * 1024 * 1024


class Server(Protocol):
    """The server inside a keeper; each method is called on the main thread of the process."""

    def start(self) -> Address:
        """Start, wait until clients can use it and say how to reach it. Raises ServiceError."""

    def alive(self) -> bool:
        """Tell whether it still serves; asked every CHECK_S. When it does not, the keeper ends."""

    def stop(self) -> None:
        """End it; also called after a `start` that failed half-way."""


def keep(folder: Path, name: str, server: Server) -> int:
    """Serve until SIGTERM, until the server dies or until nobody holds it; returns the exit status.

    Called by a module's `main` before it starts any thread, as it forks to leave its parent. The first line on
    stdout reports to the parent: `address`, or `error`, or neither when another keeper serves.
    """
    if os.fork() > 0:
        os._exit(0)  # its client reaps this one at once: a keeper belongs to init and is nobody's zombie
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    places = Places(folder, name)
    keeper_lock = open_lock(places.keeper_lock)
    if not try_exclusive(keeper_lock):
        _report({})
        return 0
    places.address.unlink(missing_ok=True)
    try:
        address = {**server.start(), "pid": str(os.getpid()), "incarnation": uuid.uuid4().hex}
        _publish(places.address, address)
        _report({"address": address})
        _serve_while_wanted(places, server, stop)
    except (ForebayError, OSError) as error:
        _report({"error": str(error)})
        return 1
    finally:
        places.address.unlink(missing_ok=True)  # first: nobody shall read the address of a server that ends
        server.stop()
    return 0


def _serve_while_wanted(places: Places, server: Server, stop: threading.Event) -> None:
    clients = open_lock(places.clients_lock)
    idle_since: float | None = None
    while not stop.wait(CHECK_S) and server.alive():
        _bound(places.log)
        if not try_exclusive(clients):
            idle_since = None
            continue
        now = time.monotonic()
        idle_since = now if idle_since is None else idle_since
        if now - idle_since >= GRACE_S:
            return  # still locked: the end of the process frees it, after the server has stopped
        unlock(clients)


def _publish(path: Path, address: Address) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(address, indent=1))
    temporary.replace(path)


def _bound(log: Path) -> None:
    """Set a log that has grown aside; whoever writes to it goes on, as it is open for appending."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)


def _report(message: Mapping[str, object]) -> None:
    """Tell the client that spawned this keeper, once, and leave its pipe; it may have stopped listening."""
    if sys.__stdout__ is None:
        return
    with contextlib.suppress(OSError):
        os.write(sys.__stdout__.fileno(), json.dumps(message).encode() + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.__stdout__.fileno())
    os.close(null)
