"""Bytes whose API process is killed before they have a row do not stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import openai
import pytest
from sqlalchemy import select

import migrations
from core.errors import StorageUnavailable
from core.jobs import keys, service
from core.jobs.database import Database, open_database
from core.jobs.service.receipts import RECEIVING_S
from core.jobs.tables import Discarded, File, UploadPart
from core.objects.local import LocalStore
from tests.integration.api.dying_api import running_api
from worker.tidying import tidy

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Place:
    """A database and a folder of objects, which API processes come and go at."""

    def __init__(self, home: Path, url: str) -> None:
        migrations.upgrade(url)
        self._home, self._url = home, url
        self.database: Database = open_database(url)
        with self.database.transaction() as session:
            self._key = keys.create(session, tenant="acme", name="t", now=datetime.now(UTC))

    @contextmanager
    def api(self, *point: str) -> Iterator[openai.OpenAI]:
        environment = {
            "GREENTUNE_HOME": str(self._home),
            "GREENTUNE_DATABASE_URL": self._url,
            "GREENTUNE_REQUESTS_PER_MINUTE": "0",
        }
        with (
            running_api(environment, *point) as url,
            openai.OpenAI(base_url=url, api_key=self._key, max_retries=0) as client,
        ):
            yield client

    @property
    def stored(self) -> set[str]:
        objects = self._home / "objects"
        files = (path for path in objects.rglob("*") if path.is_file())
        return {str(path.relative_to(objects)) for path in files}

    @property
    def named(self) -> set[str]:
        """By rows."""
        with self.database.read() as session:
            return {*session.scalars(select(File.object_key))} | {
                *session.scalars(select(UploadPart.object_key))
            }

    def tidy(self, after_s: float) -> int:
        """As a worker would so much later."""
        by = timedelta(seconds=after_s)
        with self.database.transaction() as session:
            for row in session.scalars(select(Discarded)).all():
                if row.due_at is not None:
                    row.due_at -= by
        return tidy(self.database, LocalStore(self._home / "objects"))


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    is_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'jobs.db'}" if is_sqlite else None
    made = Place(tmp_path / "home", url or request.getfixturevalue("postgres_url"))
    yield made
    made.database.dispose()


def send_file(client: openai.OpenAI, lines: bytes) -> None:
    client.files.create(file=("train.jsonl", lines), purpose="fine-tune")


def send_in_parts(client: openai.OpenAI, lines: bytes) -> None:
    client.uploads.upload_file_chunked(
        file=lines,
        filename="train.jsonl",
        bytes=len(lines),
        mime_type="text/jsonl",
        purpose="fine-tune",
    )


@pytest.mark.parametrize(
    ("send", "pattern", "moment"),
    [
        (send_file, "^files/", "before"),
        (send_file, "^files/", "after"),
        (send_in_parts, "^uploads/", "after"),
        (send_in_parts, "^files/", "after"),
    ],
)
def test_what_a_killed_process_stored_is_removed(
    place: Place,
    send: Callable[[openai.OpenAI, bytes], None],
    pattern: str,
    moment: str,
    chat_lines: Callable[[int], bytes],
) -> None:
    with place.api(pattern, moment) as client, suppress(openai.APIConnectionError):
        send(client, chat_lines(3))
    left = place.stored - place.named
    assert len(left) == (moment == "after")
    with place.api() as client:
        send(client, chat_lines(4))
    kept = place.named
    # another process may still be storing its file
    place.tidy(RECEIVING_S / 2)
    assert place.stored >= kept | left
    place.tidy(RECEIVING_S)
    assert place.stored == place.named
    assert any(key.startswith("files/") for key in kept & place.stored)
    with place.database.read() as session:
        assert session.scalars(select(Discarded.key)).all() == []


def test_what_was_on_its_way_for_too_long_gets_no_row(place: Place) -> None:
    with place.database.transaction() as session:
        service.announce_receipt(session, "files/f", now=NOW)
    late = NOW + timedelta(seconds=RECEIVING_S - 1)
    with (
        pytest.raises(StorageUnavailable, match="send it again"),
        place.database.transaction() as session,
    ):
        service.confirm_receipt(session, "files/f", now=late)
    with place.database.transaction() as session:
        service.confirm_receipt(session, "files/f", now=NOW)
    with place.database.read() as session:
        assert session.scalars(select(Discarded.key)).all() == []
