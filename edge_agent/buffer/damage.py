"""What to do with a segment file that fails: tell a bad file from a bad moment, save what can be, set the rest aside.

In: a path and what DuckDB said. Out: the file's contents, or None with the file renamed to `*.damaged`, so that
somebody may look at it later. Fails with ServiceError when the disk, not the file, is the trouble.
"""

import errno
import os
import re
from itertools import count
from pathlib import Path
from typing import Final

import duckdb
import structlog

from common.errors import ServiceError
from edge_agent.buffer.segment import SUFFIX, UNFINISHED, Contents, Segment, remove, wal_of

log = structlog.get_logger()

_MOMENTS: Final = tuple(
    os.strerror(number)
    for number in (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
        *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
    )
)
_TORN_LOG: Final = re.compile(r"Corrupt WAL file: entry at byte position (\d+)")


def inspect(path: Path) -> tuple[Contents | None, bool]:
    """Read a whole segment file: what it holds, None if it had to be set aside, and whether it is undamaged."""
    try:
        return _contents(path), True
    except duckdb.Error as error:
        raise_unless_damaged(path, error)
        torn = _TORN_LOG.search(str(error))
        contents = _cut_log(path, int(torn[1])) if torn else None
        if contents is None:
            set_aside(path, error)
        return contents, False


def raise_unless_damaged(path: Path, error: duckdb.Error) -> None:
    """Raise ServiceError when `error` is about the moment, not the file: it says so, or a new file fails as well."""
    says_so = isinstance(error, duckdb.OutOfMemoryException) or any(words in str(error) for words in _MOMENTS)
    if says_so or not _a_new_file_works(path.parent):
        raise unavailable(path, error) from error


def unavailable(path: Path, error: Exception) -> ServiceError:
    """Put a failure of the disk in one line."""
    return ServiceError(f"buffer {path}: {first_line(error)}")


def set_aside(path: Path, error: Exception) -> None:
    """Rename a file and its write-ahead log, never over an earlier one."""
    try:
        for part in (path, wal_of(path)):
            if part.exists():
                part.rename(_unused(part))
    except OSError as refused:
        raise ServiceError(f"buffer {path}: damaged, and cannot be renamed: {refused.strerror}") from error
    log.error("buffer.segment_set_aside", segment=path.name, why=first_line(error), kept_as=f"{path.name}.damaged")


def first_line(error: Exception) -> str:
    """Return what of an error message is for people."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _a_new_file_works(folder: Path) -> bool:
    """Try DuckDB on a file that nobody can have damaged."""
    probe = folder / f"probe{SUFFIX}{UNFINISHED}"
    try:
        remove(probe)
        connection = duckdb.connect(str(probe))
        try:
            connection.execute("CREATE TABLE probe AS SELECT 1")
        finally:
            connection.close()
        remove(probe)
    except (duckdb.Error, OSError, RuntimeError):
        return False
    return True


def _contents(path: Path) -> Contents:
    segment = Segment(path)
    try:
        return segment.contents()
    finally:
        segment.close()


def _cut_log(path: Path, good_bytes: int) -> Contents | None:
    """Keep what a write-ahead log holds before its first bad byte; a copy of the whole is set aside."""
    wal = wal_of(path)
    try:
        _unused(wal).write_bytes(wal.read_bytes())
        os.truncate(wal, good_bytes)
        contents = _contents(path)
    except OSError as refused:
        raise unavailable(wal, refused) from refused
    except duckdb.Error as error:
        raise_unless_damaged(path, error)
        return None
    log.error("buffer.log_cut", segment=path.name, bad_from_byte=good_bytes, next_position=contents.next_position)
    return contents


def _unused(path: Path) -> Path:
    """Return a name to set `path` aside under that nothing has yet."""
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in count())
    return next(name for name in names if not name.exists())
