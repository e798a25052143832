"""The database schema, step by step (Alembic). One head; each step works with the code before it.

``upgrade(url)`` is what ``greentune serve`` and ``greentune migrate`` call; developers may also use
the ``alembic`` command: ``alembic -x url=sqlite:///some.db upgrade head``.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from core.errors import StartRefused, Unavailable
from core.jobs.database import is_outage


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
        InvalidInput: ``url`` cannot be read.
        StartRefused: a later version of this program has changed the schema.
        Unavailable: the database cannot be reached or is none, or its tables stay locked.
    """
    try:
        command.upgrade(config(url), revision)
    except CommandError as error:
        if not isinstance(error.__cause__, ResolutionError):
            raise
        raise StartRefused(
            "The database's schema is that of a later greentune; install that version, or point "
            "GREENTUNE_HOME or GREENTUNE_DATABASE_URL to another database."
        ) from error
    except DBAPIError as error:
        if not is_outage(error):
            raise
        reason = " ".join(str(error.orig).split()).rstrip(".?")
        raise Unavailable(
            f"The database cannot be used now ({reason}); see that it runs and that "
            "GREENTUNE_DATABASE_URL is right.",
            code="database_unavailable",
        ) from error


def downgrade(url: str, revision: str) -> None:
    """Take the database back to ``revision`` ("base": no tables). Data goes with its tables."""
    command.downgrade(config(url), revision)
