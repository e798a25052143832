"""The migrations build the tables, both ways, from anywhere, however many ask at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.orm import Session

import migrations
from core.errors import InvalidInput, StartRefused, Unavailable
from core.jobs import service, store
from core.jobs.database import create_engine, open_database
from core.jobs.tables import Base, Checkpoint, Job

ROOT = Path(__file__).resolve().parents[3]


def tables(url: str) -> set[str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = set(inspect(connection).get_table_names())
    engine.dispose()
    return found


def test_there_is_one_head_and_revisions_are_numbered():
    script = ScriptDirectory.from_config(migrations.config("sqlite://"))
    assert len(script.get_heads()) == 1
    numbers = [revision.revision for revision in script.walk_revisions("base", "heads")]
    assert numbers == [f"{n:04}" for n in range(len(numbers), 0, -1)]


def test_up_down_up_and_nothing_left_to_do(database_url, capsys):
    migrations.upgrade(database_url)
    command.check(migrations.config(database_url))
    assert tables(database_url) == {*Base.metadata.tables, "alembic_version"}
    migrations.downgrade(database_url, "base")
    assert tables(database_url) == {"alembic_version"}
    migrations.upgrade(database_url)
    migrations.upgrade(database_url)
    command.check(migrations.config(database_url))


def test_what_jobs_have_spent_is_told_by_kind_of_intensity_afterwards(database_url):
    migrations.upgrade(database_url, "0004")
    engine = create_engine(database_url)
    filled = {"id": "ftjob-1", "tenant": "t", "status": "succeeded", "training_file": "f"}
    filled |= {"spec": "{}", "progress": "{}", "result_files": "[]"}
    filled |= dict.fromkeys(("priority", "fence", "deaths", "retries", "n_events"), 0)
    filled |= {"energy_j": 30.0, "emissions_g": 1.0, "created_at": "2026-01-01 00:00:00+00:00"}
    rows = [(0, 12.0, 100.0, "average"), (1, 6.0, 300.0, "average"), (2, 7.2, 500.0, "marginal")]
    with engine.begin() as connection:
        insert(connection, "jobs", filled)
        for second, energy_j, intensity, kind in [*rows, (3, 9.0, None, None)]:
            connection.execute(
                text(
                    "INSERT INTO energy_samples (job_id, attempt, device, started_at, ended_at,"
                    " energy_j, method, intensity_g_per_kwh, intensity_kind) VALUES"
                    " ('ftjob-1', 1, 'cpu', :at, :at, :j, 'rapl', :g, :kind)"
                ),
                {"at": f"2026-01-01 00:00:0{second}+00:00", "j": energy_j, "g": intensity}
                | {"kind": kind},
            )
    migrations.upgrade(database_url)
    with Session(engine) as session:
        spent = session.scalars(select(Job.spent_by_kind)).one()
    engine.dispose()
    assert [(part.kind, part.energy_j) for part in spent] == [("average", 18), ("marginal", 7.2)]
    grams = [part.emissions_g for part in spent]
    assert grams == pytest.approx([3000 / 3.6e6, 3600 / 3.6e6])


def test_parts_of_uploads_are_removed_after_the_way_back(database_url):
    migrations.upgrade(database_url)
    database = open_database(database_url)
    now = datetime(2026, 3, 1, tzinfo=UTC)
    with database.transaction() as session:
        upload = service.create_upload(
            session, tenant="t", filename="x", n_bytes=1, file_expires_after_s=None, now=now
        )
        part = {"part_id": "part_1", "object_key": "uploads/1/1", "n_bytes": 1, "now": now}
        service.add_part(session, tenant="t", upload_id=upload.id, **part)
    migrations.downgrade(database_url, "0008")
    with database.read() as session:
        due = session.execute(text("SELECT key, is_folder FROM discarded")).all()
    database.dispose()
    assert due == [("uploads/1/1", False)]


def test_of_jobs_that_ended_before_the_state_is_removed_and_of_others_kept(database_url):
    migrations.upgrade(database_url, "0009")
    engine = create_engine(database_url)
    at = "2026-01-01 00:00:00+00:00"
    job = {"tenant": "t", "training_file": "f", "spec": "{}", "progress": "{}", "created_at": at}
    job |= {"result_files": "[]", "energy_j": 0.0, "emissions_g": 0.0}
    job |= dict.fromkeys(("priority", "fence", "deaths", "retries", "n_events"), 0)
    row = {"created_at": at, "attempt": 1, "step": 5, "n_bytes": 1, "metrics": "{}", "model": "m"}
    with engine.begin() as connection:
        for name, status, ended in (("over", "failed", at), ("held", "paused", None)):
            ids = {"id": name, "job_id": name, "prefix": f"jobs/{name}/checkpoints/5/1"}
            insert(connection, "jobs", job | {"id": name, "status": status, "finished_at": ended})
            insert(connection, "checkpoints", row | ids | {"is_milestone": True})
    migrations.upgrade(database_url)
    state = ("best.safetensors", "optimizer.safetensors", "random.safetensors")
    with Session(engine) as session:
        due = store.list_discarded(session, now=datetime(2026, 3, 1, tzinfo=UTC), limit=9)
        kept = {row.id: sorted(row.state_files) for row in session.scalars(select(Checkpoint))}
    engine.dispose()
    assert [(item.key, item.is_folder) for item in due] == [
        (f"jobs/over/checkpoints/5/1/{name}", False) for name in state
    ]
    assert kept == {"over": [], "held": list(state)}


def insert(connection: Connection, table: str, row: dict[str, object]) -> None:
    names = ", ".join(row)
    values = f"INSERT INTO {table} ({names}) VALUES ({':' + ', :'.join(row)})"
    connection.execute(text(values), row)


def test_the_check_would_notice(database_url):
    migrations.upgrade(database_url)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE workers ADD COLUMN surplus INTEGER"))
    engine.dispose()
    with pytest.raises(Exception, match="surplus"):
        command.check(migrations.config(database_url))


def test_a_later_schema_is_refused_and_left_alone(database_url):
    migrations.upgrade(database_url)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartRefused, match="schema is that of a later greentune; install"):
        migrations.upgrade(database_url)
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    engine.dispose()
    assert kept == "9999"


def test_what_is_no_database_is_refused_in_one_sentence(tmp_path: Path):
    (tmp_path / "text.db").write_text("this is no database, whatever its name says")
    refused = {
        f"sqlite:///{tmp_path / 'text.db'}": (Unavailable, r"\(file is not a database\); see that"),
        f"sqlite:///{tmp_path / 'no' / 'x.db'}": (Unavailable, r"\(unable to open database file\)"),
        "postgresql+psycopg://u:hush@127.0.0.1:1/x": (Unavailable, "Connection refused"),
        "postgresql+psycopg://u:hush@::::///": (InvalidInput, "cannot be read; write postgresql"),
        "postgresql+psycopg//x": (InvalidInput, "cannot be read; write postgresql"),
    }
    for url, (kind, words) in refused.items():
        with pytest.raises(kind, match=words) as raised:
            migrations.upgrade(url)
        assert "\n" not in raised.value.message
        assert "hush" not in raised.value.message


def test_many_may_migrate_at_once(database_url):
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(_upgrade_elsewhere, database_url) for _ in range(4)]:
            assert future.result(120) == ""
    assert tables(database_url) >= set(Base.metadata.tables)


def _upgrade_elsewhere(url: str) -> str:
    """In a process of its own and in another folder, as an installed package would be used."""
    code = "import sys, migrations; migrations.upgrade(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, url],
        cwd=Path(url.rpartition("/")[0].removeprefix("sqlite://")) if "sqlite" in url else "/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.stderr


def test_a_table_that_stays_locked_stops_the_migration_not_the_service(postgres_url: str):
    migrations.upgrade(postgres_url)
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(Unavailable, match="lock timeout"):
            migrations.upgrade(postgres_url)
    engine.dispose()
    migrations.upgrade(postgres_url)


def test_a_failed_migration_leaves_nothing_behind(database_url):
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE workers (unexpected INTEGER)"))
    with pytest.raises(Exception, match="workers"):
        migrations.upgrade(database_url)
    assert tables(database_url) == {"workers"}
    engine.dispose()


def test_the_developers_command_finds_the_scripts(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'dev.db'}"
    migrations.upgrade(url)
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={url}", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
