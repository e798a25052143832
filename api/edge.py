"""What commands reach for: the terminal, the settings, the database itself, or a server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from rich.console import Console
from sqlalchemy.orm import Session

from api.client import Client
from api.home import made_folder
from core.errors import StartRefused
from core.jobs.database import open_database
from core.settings import Settings, read_settings
from migrations import upgrade

DEFAULT_URL = "http://127.0.0.1:8000"

out = Console()
err = Console(stderr=True)


@contextmanager
def own_database() -> Iterator[tuple[Session, Settings]]:
    """One transaction on the migrated database; the home is created if it is not there yet."""
    settings = read_settings()
    made_folder(settings.home)
    upgrade(settings.resolved_database_url)
    database = open_database(settings.resolved_database_url)
    try:
        with database.transaction() as session:
            yield session, settings
    finally:
        database.dispose()


@contextmanager
def server() -> Iterator[Client]:
    """The server and key that the environment names. Raises `StartRefused` without a key."""
    key = os.environ.get("GREENTUNE_API_KEY")
    if not key:
        raise StartRefused(
            "Set GREENTUNE_API_KEY to an API key (`greentune keys create NAME` prints a new one) "
            f"and GREENTUNE_URL to the server (default {DEFAULT_URL})."
        )
    with closing(Client(os.environ.get("GREENTUNE_URL") or DEFAULT_URL, key)) as client:
        yield client


@contextmanager
def saying(console: Console, sentence: str) -> Iterator[None]:
    """Say ``sentence`` when Ctrl-C or SIGTERM ends the block, before what is around it ends too."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        raise


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Aligned and never cut: ids must survive a narrow terminal and a pipe."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
