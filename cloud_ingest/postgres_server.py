"""One PostgreSQL server on a data folder of ours: made once, started, stopped, and never left half-way.

In: a data folder, an installation, the account to run as and the settings. Out: a running server process.
Fails with ServiceError, which carries the end of the server's log.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cloud_ingest.postgres_install import Account, Installation
from common.errors import ServiceError

ROLE: Final = "forebay"
DATABASE: Final = "forebay"
INITDB_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 3000
PR_SET_PDEATHSIG: Final = 1

# Modest, for a machine that does other things too; nothing here weakens what a commit promises.
SETTINGS: Final = {
    "timezone": "UTC",
    "log_timezone": "UTC",
    "shared_buffers": "128MB",
    "max_connections": "40",
    "max_worker_processes": "24",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "checkpoint_completion_target": "0.9",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
    "jit": "off",
}
TIMESCALEDB_SETTINGS: Final = {
    "shared_preload_libraries": "timescaledb",
    "timescaledb.max_background_workers": "8",
    "timescaledb.telemetry_level": "off",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect: lines of pg_hba.conf and pg_ident.conf, and the password of the role if it has one."""

    hba: Sequence[str]
    ident: Sequence[str] = ()
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A server on `data`. `account` is whom it runs as, None for ourselves; `log` is where it prints."""

    installation: Installation
    data: Path
    account: Account | None
    log: Path
    access: Access
    settings: Mapping[str, str]

    def make(self) -> None:
        """Make the data folder, unless it is there; a `make` that was killed half-way is begun anew."""
        if (self.data / "PG_VERSION").exists():
            return
        unfinished = self.data.with_name(f"{self.data.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700, parents=True)
        self._give(unfinished)
        local_and_host = ["--auth-local=peer", "--auth-host=reject"]  # until _configure writes what is wanted
        form = ["--encoding=UTF8", "--locale=C", "--data-checksums"]
        self._run(["initdb", "-D", str(unfinished), "-U", ROLE, *local_and_host, *form])
        statements = [f"CREATE DATABASE {DATABASE}"]
        if self.access.password:
            statements.append(f"ALTER ROLE {ROLE} PASSWORD '{self.access.password}'")
        for statement in statements:
            self._run(["postgres", "--single", "-j", "-D", str(unfinished), "postgres"], statement)
        unfinished.rename(self.data)

    def spawn(self, timeout_s: float, *, with_parent: bool) -> "subprocess.Popen[bytes]":
        """Start the server and wait until it takes connections; a former one that is still ending is waited for.

        `with_parent`: it ends (orderly) when the thread that called this dies, however that happens.
        """
        deadline = time.monotonic() + timeout_s
        self._configure()
        self._end_former(deadline)
        with self.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own program
                [self.installation.program("postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent() if with_parent else None,  # noqa: PLW1509 - the keeper has one thread
                **self._as_account(),
            )
        while not self.ready(process.pid):
            ended = process.poll() is not None
            if ended or time.monotonic() >= deadline:
                stop_process(process)
                what = "ended at once" if ended else f"took no connections within {timeout_s:.0f} s"
                raise ServiceError(f"PostgreSQL {what}: {self._log_tail()}")
            time.sleep(POLL_S)
        return process

    def ready(self, pid: int) -> bool:
        """Tell whether the server with this process id takes connections."""
        status = _pid_file(self.data)
        return len(status) > 7 and status[0] == str(pid) and status[7] == "ready"  # noqa: PLR2004 - its line 8

    def _configure(self) -> None:
        """Write the configuration anew: it is ours, and follows the installation. A person's wishes go last."""
        settings = {**SETTINGS, **(TIMESCALEDB_SETTINGS if self.installation.timescaledb else {}), **self.settings}
        lines = [f"{name} = '{value}'" for name, value in settings.items()]
        note = "# Written anew at every start; put changes into local.conf, which is kept."
        for name, text in {
            "postgresql.conf": [note, *lines, "include = 'local.conf'"],
            "pg_hba.conf": self.access.hba,
            "pg_ident.conf": self.access.ident,
        }.items():
            path = self.data / name
            path.write_text("\n".join([*text, ""]))
            self._give(path)
        local = self.data / "local.conf"
        local.touch()
        self._give(local)

    def _end_former(self, deadline: float) -> None:
        """Wait for the processes of a server that was here before, then drop the pid file it may have left."""
        leader = _pid_file(self.data)[:1]
        asked = False
        while processes := processes_of(self.data):
            if not asked and leader and int(leader[0]) in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(leader[0]), signal.SIGINT)
                asked = True
            if time.monotonic() >= deadline:
                raise ServiceError(f"an earlier PostgreSQL on {self.data} does not end (processes {processes})")
            time.sleep(POLL_S)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _give(self, path: Path) -> None:
        if self.account:
            os.chown(path, self.account.uid, self.account.gid)

    def _as_account(self) -> dict[str, Any]:
        options: dict[str, Any] = {"cwd": "/", "umask": 0o077, "env": _environment()}
        if self.account:
            options |= {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return options

    def _run(self, command: Sequence[str], text: str = "") -> None:
        program, *arguments = command
        try:
            done = subprocess.run(  # noqa: S603 - PostgreSQL's own programs
                [self.installation.program(program), *arguments],
                input=text.encode(),
                capture_output=True,
                check=False,
                timeout=INITDB_TIMEOUT_S,
                **self._as_account(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServiceError(f"{program}: {error}") from error
        if done.returncode != 0:
            raise ServiceError(f"{program} failed: {(done.stderr or done.stdout).decode(errors='replace').strip()}")

    def _log_tail(self) -> str:
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip() or "it printed nothing"


def stop_process(process: "subprocess.Popen[bytes]") -> None:
    """End a server and wait: first closing every session in order, at last by force (its log then repairs it)."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)


def processes_of(data: Path) -> list[int]:
    """Return the server processes of a data folder, also those whose leader was killed: all work inside it."""
    folder = str(data.resolve())
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _works_in(entry, folder)]


def _works_in(entry: Path, folder: str) -> bool:
    try:
        return str((entry / "cwd").readlink()) == folder and (entry / "comm").read_text().strip() == "postgres"
    except OSError:
        return False


def _pid_file(data: Path) -> list[str]:
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except OSError:
        return []


def _environment() -> dict[str, str]:
    """Return ours without what would steer PostgreSQL's programs elsewhere (PGDATA, PGPORT, a missing locale)."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}


def _end_with_parent() -> Callable[[], None]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGINT)

    return ask_kernel
