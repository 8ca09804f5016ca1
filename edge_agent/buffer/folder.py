"""The buffer's folder, owned by one process, and a note in its lock file of how far the segments go.

Fails with InUseError (another process owns it) and ServiceError (it cannot be made or opened).
"""

import contextlib
import fcntl
import os
import re
from pathlib import Path

from common.errors import InUseError, ServiceError


class OwnedFolder:
    """Owned until `close`; the kernel gives it back when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Make the folder if need be, and take it."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ServiceError(f"buffer folder {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            if not isinstance(error, BlockingIOError):
                raise ServiceError(f"buffer folder {path}: cannot lock it: {error.strerror}") from error
            raise InUseError(f"buffer folder {path} is in use by another agent that runs with this data_dir") from error

    @property
    def is_open(self) -> bool:
        """Whether it is owned still."""
        return self._file is not None

    def read_note(self) -> tuple[int, int]:
        """Return (next position, epoch) as last noted; zeros where nobody noted them."""
        if self._file is None:
            return 0, 0
        match = re.fullmatch(rb" *(\d{1,16}) +(\d{1,16})\n", os.pread(self._file, 64, 0))
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def write_note(self, next_position: int, epoch: int) -> None:
        """Note how far the segments go: seqs must not be used twice when a segment is cut short or lost.

        Not synced: after a loss of power it may lag behind, and then says less, never something wrong.
        """
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._file, f"{next_position:20d} {epoch:20d}\n".encode(), 0)

    def close(self) -> None:
        """Give it back. Harmless when given back already."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
