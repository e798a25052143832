"""What a training process stands on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from core.jobs.database import now, open_database
from core.settings import Settings
from tests.integration.worker.conftest import Flaky
from worker.world import DatabaseClock, open_jobs, open_world


def test_a_silent_transaction_of_a_worker_ends_before_its_lease(postgres_url: str):
    """One that was frozen in the middle of it holds rows that others pass over."""
    database = open_jobs(Settings(database_url=postgres_url, lease_s=15.0))
    with database.read() as session:
        shown = session.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one()
    database.dispose()
    assert shown == "7500ms"


@pytest.fixture
def ahead_url(postgres_url: str) -> Iterator[str]:
    """A database whose clock is an hour ahead of this host's."""
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as session:
        session.execute("CREATE SCHEMA ahead")
        session.execute(
            "CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
            "$$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$"
        )
        name = session.info.dbname
        session.execute(f'ALTER DATABASE "{name}" SET search_path = ahead, public, pg_catalog')
        yield postgres_url


def test_plans_are_made_by_the_time_that_holds_end_by(ahead_url: str, tmp_path: Path) -> None:
    """By a clock that is behind the database's, a held job that is due was held again at once, as
    often as workers took it up.
    """
    settings = Settings(
        database_url=ahead_url, home=tmp_path, objects_url=(tmp_path / "objects").as_uri()
    )
    world = open_world(settings, shares_host=False)
    with world.database.read() as session:
        first = now(session)
    told = world.clock()
    with world.database.read() as session:
        last = now(session)
    world.database.dispose()
    assert first <= told <= last


def test_a_database_that_is_away_leaves_plans_the_hosts_time_and_is_asked_once(
    ahead_url: str,
) -> None:
    database = open_database(ahead_url)
    flaky = Flaky(database)
    flaky.is_away = True
    clock = DatabaseClock(flaky)
    before = datetime.now(UTC)
    assert before <= clock() <= datetime.now(UTC)
    assert clock() - before < timedelta(minutes=1)
    assert flaky.n_refused == 1
    database.dispose()
