"""The four files by which the clients of an embedded server and its keeper find each other, and their locks.

In: a folder and a server's name. Out: paths, and file descriptors with a flock. Fails with OSError only.
"""

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Address: TypeAlias = Mapping[str, str]
"""What a client needs to reach a server, besides the keeper's `pid` and its `incarnation`."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything about one embedded server is."""

    folder: Path
    name: str

    @property
    def clients_lock(self) -> Path:
        """Every client holds a shared flock on it; the kernel drops it however the client ends."""
        return self.folder / f"{self.name}.clients.lock"

    @property
    def keeper_lock(self) -> Path:
        """The keeper holds it exclusively while it lives: whoever can lock it knows that nobody serves."""
        return self.folder / f"{self.name}.lock"

    @property
    def address(self) -> Path:
        """The address as JSON, written atomically once the server serves and removed before it stops."""
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What the keeper and its server print."""
        return self.folder / f"{self.name}.log"


def open_lock(path: Path) -> int:
    """Open a lock file, made when absent; closing the descriptor drops its lock. Children do not inherit it."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_shared(descriptor: int) -> bool:
    """Take a shared lock if nobody holds an exclusive one."""
    return _try(descriptor, fcntl.LOCK_SH)


def try_exclusive(descriptor: int) -> bool:
    """Take an exclusive lock if nobody holds any."""
    return _try(descriptor, fcntl.LOCK_EX)


def unlock(descriptor: int) -> None:
    """Drop the lock and keep the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
