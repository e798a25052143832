"""How Alembic reaches the database. The URL comes from `migrations.config`, or ``-x url=...``."""

from __future__ import annotations

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text

from core.jobs.database import create_engine
from core.jobs.tables import Base

# a migration that cannot get its locks gives up, rather than stop everybody behind it
LOCK_TIMEOUT_S = 4
STATEMENT_TIMEOUT_S = 60
# any constant will do; it is this project's own
ADVISORY_LOCK = 0x6772_6565_6E


def _url() -> str:
    url = context.config.attributes.get("url") or context.get_x_argument(as_dictionary=True).get(
        "url"
    )
    if not url:
        raise CommandError("Name the database: alembic -x url=sqlite:///some.db ...")
    return str(url)


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=True,
        # SQLite too: the engine begins its transactions itself
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # before the short lock timeout: whoever comes second waits for the first
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s'"))
        context.run_migrations()


def main() -> None:
    engine = create_engine(_url(), pool_size=1)
    try:
        with engine.connect() as connection:
            _migrate(connection)
            connection.commit()
    finally:
        engine.dispose()


main()
