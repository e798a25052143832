"""An empty migrated database for each test, on SQLite and on Postgres: both must pass them all.

The tables are built once and emptied before each test; who needs a database of its own, to break
it or to migrate it, asks for `database_url`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import migrations
from core.jobs.database import Database, open_database
from core.jobs.tables import Base
from tests.fixtures.services import fresh_postgres_database
from tests.integration.jobs.engine import Engine


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def shared_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from _migrated(f"sqlite:///{tmp_path_factory.mktemp('jobs') / 'jobs.db'}")


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[Database]:
    with fresh_postgres_database() as url:
        yield from _migrated(url)


def _migrated(url: str) -> Iterator[Database]:
    migrations.upgrade(url)
    database = open_database(url, pool_size=20)
    yield database
    database.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(f"shared_{request.param}")
    with database.transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    return database


@pytest.fixture
def engine(database: Database) -> Engine:
    return Engine(database)
