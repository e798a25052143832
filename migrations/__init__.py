"""The database schema, step by step (Alembic). One head; each step works with the code before it.

``upgrade(url)`` is what ``greentune serve`` and ``greentune migrate`` call; developers may also use
the ``alembic`` command: ``alembic -x url=sqlite:///some.db upgrade head``.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import OperationalError

from core.errors import Unavailable


def config(url: str) -> Config:
    """Alembic's configuration for this package, wherever it is installed."""
    alembic = Config(attributes={"url": url})
    alembic.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    alembic.set_main_option("path_separator", "newline")
    return alembic


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database to ``revision``; nothing happens if it is there already.

    Safe to call from several processes at once: they take turns.

    Raises:
        Unavailable: the database cannot be reached, or its tables stay locked.
    """
    try:
        command.upgrade(config(url), revision)
    except OperationalError as error:
        raise Unavailable(
            f"The database cannot be migrated now: {error.orig}", code="database_unavailable"
        ) from error


def downgrade(url: str, revision: str) -> None:
    """Take the database back to ``revision`` ("base": no tables). Data goes with its tables."""
    command.downgrade(config(url), revision)
