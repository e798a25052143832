"""Transactions, clocks and outages."""

from __future__ import annotations

import json
import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, StatementError

import migrations
from core.errors import InvalidInput, Unavailable
from core.jobs import database as database_module
from core.jobs import service, store
from core.jobs.database import Database, now, open_database
from core.jobs.records import Progress
from core.jobs.tables import Worker
from tests.fixtures.services import free_ports
from tests.integration.jobs.engine import NOW, Engine
from tests.integration.jobs.test_flow import job_of

ODD = datetime(2026, 3, 29, 3, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=45)))


def touch(database: Database, moment: datetime = NOW, name: str = "w") -> None:
    with database.transaction() as session:
        store.touch_worker(session, name, now=moment, slots=1)


def test_moments_come_back_in_utc_to_the_microsecond(database):
    touch(database, ODD)
    with database.read() as session:
        seen = session.scalars(select(Worker.seen_at)).one()
    assert seen == ODD
    assert seen.tzinfo is UTC


@pytest.mark.parametrize(
    "habit",
    ["datestyle TO 'German'", "timezone TO 'Australia/Lord_Howe'", "client_encoding TO latin1"],
)
def test_postgres_with_habits_of_its_own_is_read_alike(postgres_url: str, habit: str) -> None:
    """Another style of dates failed every request, another encoding every name outside of it."""
    migrations.upgrade(postgres_url)
    database = open_database(postgres_url)
    with database.transaction() as session:
        name = session.execute(text("SELECT current_database()")).scalar_one()
        session.execute(text(f'ALTER DATABASE "{name}" SET {habit}'))
    database.dispose()
    touch(database, ODD, name="w\N{SEEDLING}")
    with database.read() as session:
        assert session.execute(select(Worker.name, Worker.seen_at)).one() == ("w\N{SEEDLING}", ODD)
    database.dispose()


def test_moments_without_a_zone_are_refused(database):
    with pytest.raises((InvalidInput, StatementError), match="no time zone"):
        touch(database, NOW.replace(tzinfo=None))


def test_the_databases_clock_goes_on_within_a_transaction(database):
    with database.transaction() as session:
        first, second = now(session), now(session)
    assert first.tzinfo is UTC
    assert first < second
    assert abs(second - datetime.now(UTC)) < timedelta(minutes=5)


def test_an_error_rolls_everything_back(engine):
    def fails() -> None:
        with engine.database.transaction() as session:
            store.touch_worker(session, "w", now=NOW, slots=1)
            raise InvalidInput("no")

    with pytest.raises(InvalidInput, match="no"):
        fails()
    with engine.database.read() as session:
        assert session.scalars(select(Worker)).all() == []


def test_readers_cannot_write(database):
    def write() -> None:
        with database.read() as session:
            store.touch_worker(session, "w", now=NOW, slots=1)

    with pytest.raises((DBAPIError, Unavailable)):
        write()
    touch(database)  # the connection goes back to the pool as a writer's again


def test_readers_do_not_wait_for_a_writer_and_see_only_what_is_committed(database):
    with database.transaction() as writer:
        store.touch_worker(writer, "w", now=NOW, slots=1)
        with database.read() as reader:
            assert reader.scalars(select(Worker)).all() == []
    with database.read() as reader:
        assert len(reader.scalars(select(Worker)).all()) == 1


def test_a_writer_that_reads_first_waits_for_its_turn(database):
    """On SQLite a deferred transaction would be refused here, however long it waits."""
    entered = Event()

    def second() -> None:
        entered.set()
        with database.transaction() as session:
            before = len(session.scalars(select(Worker)).all())
            store.touch_worker(session, f"w{before}", now=NOW, slots=1)

    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as session:
            session.scalars(select(Worker)).all()
            store.touch_worker(session, "first", now=NOW, slots=1)
            running = pool.submit(second)
            assert entered.wait(30)
        running.result(30)
    with database.read() as reader:
        assert len(reader.scalars(select(Worker)).all()) == 2


def test_words_that_no_database_stores_do_not_stop_a_job_from_ending(engine):
    """A message may quote a line of the caller's file, whatever is in it."""
    job = engine.submit()
    claim = engine.claim()
    bad = "line 3: 'a\x00b' \ud83d \\u0000 \N{SEEDLING}"
    good = "line 3: 'a\ufffdb' \ufffd \\u0000 \N{SEEDLING}"
    data = {"loss": math.nan, "step": 3, bad: [bad, (math.inf, None, True)]}
    engine.do(service.append_event, claim, level="warn", message=bad, data=data)
    failed = engine.do(service.fail, claim, code="invalid_file_format", message=bad)
    assert failed.error.message == job_of(engine, job.id).error.message == good
    last, event = engine.read(store.list_events, "acme", job.id).items[:2]
    assert last.message == f"The job failed: {good}"
    assert event.message == good
    assert event.data == {"loss": None, "step": 3, good: [good, [None, None, True]]}
    file_id = engine.upload(status="error", status_details=bad, validation={"first": bad})
    file = engine.read(store.get_file, "acme", file_id, now=engine.now)
    assert (file.status_details, file.validation) == (good, {"first": good})


def test_what_a_newer_release_wrote_can_be_read(engine):
    job = engine.submit()
    claim = engine.running()
    engine.do(service.record_progress, claim, Progress(step=3), timeless=True)
    newer = json.dumps({"step": 4, "not_yet_invented": [1]})
    with engine.database.transaction() as session:
        session.execute(text("UPDATE jobs SET progress = :newer"), {"newer": newer})
    assert job_of(engine, job.id).progress == Progress(step=4)


def test_check_tells_an_empty_database_from_a_working_one(database_url):
    database = open_database(database_url)
    with pytest.raises(Unavailable, match="greentune migrate"):
        database.check()
    migrations.upgrade(database_url)
    database.check()
    database.dispose()


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path):
    port = free_ports(1)[0]
    for url in (
        f"postgresql+psycopg://postgres@127.0.0.1:{port}/none",
        f"sqlite:///{tmp_path / 'no' / 'folder' / 'jobs.db'}",
    ):
        database = open_database(url)
        for use in (database.check, lambda database=database: touch(database)):
            with pytest.raises(Unavailable) as caught:
                use()
            assert caught.value.code == "database_unavailable"
            assert str(port) not in caught.value.message
        with pytest.raises(Unavailable):
            migrations.upgrade(url)
        database.dispose()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path):
    path = tmp_path / "jobs.db"
    path.write_bytes(b"not a database at all" * 500)
    database = open_database(f"sqlite:///{path}")
    with pytest.raises(Unavailable):
        touch(database)
    database.dispose()


def test_other_databases_are_refused_by_name():
    with pytest.raises(InvalidInput, match="sqlite:///"):
        open_database("mysql://localhost/x")


def test_a_locked_sqlite_file_is_unavailable_after_a_while(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_S", 0.2)
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    migrations.upgrade(url)
    database = open_database(url)
    holder = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        touch(database)
    holder.execute("COMMIT")
    holder.close()
    touch(database)
    database.dispose()


def test_postgres_that_cuts_all_connections_costs_one_transaction_at_most(postgres_url: str):
    migrations.upgrade(postgres_url)
    engine = Engine(open_database(postgres_url))
    other = open_database(postgres_url)
    job = engine.submit()
    cut = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def cut_in_the_middle() -> None:
        with engine.database.transaction() as session:
            store.touch_worker(session, "w", now=NOW, slots=1)
            with other.transaction() as killer:
                killer.execute(cut)
            store.touch_worker(session, "w2", now=NOW, slots=1)

    with pytest.raises(Unavailable):
        cut_in_the_middle()
    # the pool's dead connections are replaced without anybody noticing
    with other.transaction() as killer:
        killer.execute(cut)
    assert engine.claim().job_id == job.id
    assert engine.read(store.live_workers, now=NOW, within_s=60) == ()
    engine.database.dispose()
    other.dispose()


def test_postgres_gives_up_on_a_lock_in_time(postgres_url: str, monkeypatch):
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_S", 1)
    migrations.upgrade(postgres_url)
    engine = Engine(open_database(postgres_url))
    job = engine.submit()
    with engine.database.transaction() as session:
        service.cancel(session, tenant="acme", job_id=job.id, now=NOW)
        with pytest.raises(Unavailable):
            engine.ask(service.cancel, job.id)
    assert job_of(engine, job.id).status == "cancelled"
    engine.database.dispose()


def test_an_exhausted_pool_is_unavailable(database_url, monkeypatch):
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_S", 1)
    migrations.upgrade(database_url)
    database = open_database(database_url, pool_size=1)
    with database.read() as one, database.read() as two:
        one.execute(text("SELECT 1"))
        two.execute(text("SELECT 1"))
        with pytest.raises(Unavailable):
            database.check()
    database.check()
    database.dispose()
