"""Discarded objects are removed, whatever breaks off on the way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import migrations
from core.errors import StorageUnavailable
from core.jobs import store
from core.jobs.database import Database, now, open_database
from core.jobs.store.discarded import discard
from core.objects.folders import MANIFEST, put_folder
from core.objects.local import LocalStore
from worker import tidying
from worker.tidying import tidy


class Shaky(LocalStore):
    """Loses its power after so many deletions, or cannot delete some keys."""

    deletions_left = 1000
    stuck = "none"

    def delete(self, key: str) -> None:
        if self.deletions_left == 0:
            raise KeyboardInterrupt
        if key.startswith(self.stuck):
            raise StorageUnavailable("It is away.")
        self.deletions_left -= 1
        super().delete(key)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    migrations.upgrade(url)
    database = open_database(url)
    yield database
    database.dispose()


@pytest.fixture
def objects(tmp_path: Path) -> Shaky:
    return Shaky(tmp_path / "objects")


def throw_away(database: Database, *keys: str, is_folder: bool = False, in_s: float = 0) -> None:
    with database.transaction() as session:
        due_at = now(session) + timedelta(seconds=in_s)
        for key in keys:
            discard(session, key, is_folder=is_folder, due_at=due_at)


def left(database: Database) -> list[str]:
    with database.read() as session:
        found = store.list_discarded(session, now=now(session) + timedelta(days=1), limit=1000)
    return [item.key for item in found]


def in_store(objects: Shaky, folder: Path) -> list[str]:
    root = folder / "objects"
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.fixture
def stored(objects: Shaky, tmp_path: Path) -> list[str]:
    """Two files and a folder of two."""
    (tmp_path / "in").mkdir()
    for name in ("a.bin", "b.bin"):
        (tmp_path / "in" / name).write_bytes(b"x")
    put_folder(objects, "jobs/j/checkpoints/5/1", tmp_path / "in")
    objects.deletions_left = 1000
    for key in ("files/1", "files/2"):
        objects.put(key, [b"x"])
    return in_store(objects, tmp_path)


@pytest.mark.usefixtures("stored")
def test_what_is_due_goes_and_nothing_else(database, objects, tmp_path):
    throw_away(database, "files/1")
    throw_away(database, "files/2", in_s=3600)
    throw_away(database, "jobs/j/checkpoints/5/1", is_folder=True)
    assert tidy(database, objects) == 2
    assert in_store(objects, tmp_path) == ["files/2"]
    assert left(database) == ["files/2"]
    assert tidy(database, objects) == 0


def test_many_go_in_one_round(database, objects, monkeypatch):
    monkeypatch.setattr(tidying, "_AT_A_TIME", 2)
    throw_away(database, *(f"files/{n}" for n in range(5)))
    assert tidy(database, objects) == 5
    assert left(database) == []


@pytest.mark.parametrize("deletions", range(5))
def test_a_crash_anywhere_leaves_nothing_that_the_next_round_does_not_finish(
    deletions, database, objects, stored, tmp_path
):
    throw_away(database, "files/1", "files/2")
    throw_away(database, "jobs/j/checkpoints/5/1", is_folder=True)
    objects.deletions_left = deletions
    with pytest.raises(KeyboardInterrupt):
        tidy(database, objects)
    assert len(in_store(objects, tmp_path)) == len(stored) - deletions
    objects.deletions_left = 1000
    tidy(database, objects)
    assert (in_store(objects, tmp_path), left(database)) == ([], [])


def test_what_was_removed_at_the_request_is_no_trouble(database, objects):
    throw_away(database, "files/9")
    throw_away(database, "jobs/j/result", is_folder=True)
    assert tidy(database, objects) == 2
    assert left(database) == []


@pytest.mark.usefixtures("stored")
def test_what_cannot_be_removed_holds_nothing_up_and_is_tried_again(
    database, objects, tmp_path, monkeypatch
):
    throw_away(database, "files/1")
    throw_away(database, "files/2")
    objects.stuck = "files/1"
    tidy(database, objects)
    tidy(database, objects)
    assert left(database) == ["files/1"]
    assert "files/2" not in in_store(objects, tmp_path)
    with database.read() as session:
        assert store.list_discarded(session, now=now(session), limit=9) == ()
    # ten minutes on
    objects.stuck = "none"
    monkeypatch.setattr(tidying, "now", lambda session: now(session) + timedelta(minutes=11))
    assert tidy(database, objects) == 1
    assert left(database) == []


@pytest.mark.usefixtures("stored")
def test_a_damaged_manifest_is_left_for_later(database, objects):
    objects.put(f"jobs/j/checkpoints/5/1/{MANIFEST}", [b"{"])
    throw_away(database, "jobs/j/checkpoints/5/1", is_folder=True)
    assert tidy(database, objects) == 0
    assert left(database) == ["jobs/j/checkpoints/5/1"]
