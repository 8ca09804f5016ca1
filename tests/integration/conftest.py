"""What integration tests share: databases, brokers, real worker processes. See tests/integration/ingesting.py."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_ingest.embedded_postgres import EmbeddedPostgres
from tests.integration.ingesting import Database, make_database


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path that other users may enter: servers run as one, and put sockets there."""
    path = Path(tempfile.mkdtemp(prefix="forebay-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of the session's own."""
    path = Path(tempfile.mkdtemp(prefix="forebay-"))
    path.chmod(0o755)
    with EmbeddedPostgres(path) as server:
        yield server
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["plain", "timescaledb"])
def database(request: pytest.FixtureRequest, postgres: EmbeddedPostgres) -> Database:
    """An empty database with our tables; once per kind of store."""
    if request.param == "timescaledb" and not postgres.timescaledb:
        pytest.skip("TimescaleDB is not installed: NOT tested on hypertables")
    return make_database(postgres.dsn, plain=request.param == "plain")


@pytest.fixture
def plain_database(postgres: EmbeddedPostgres) -> Database:
    """An empty database with the tables of plain PostgreSQL."""
    return make_database(postgres.dsn, plain=True)
