"""Engines and transactions for a URL: Postgres through psycopg 3, or SQLite in one file.

SQLite: WAL, so that readers and the one writer do not wait for each other. A transaction that may
write takes the write lock at its beginning (``BEGIN IMMEDIATE``): one that read first and wrote
later would be refused whenever somebody else wrote in between, and no waiting would help.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, event, func, make_url, select
from sqlalchemy import create_engine as sqlalchemy_create_engine
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from core.errors import InvalidInput, Unavailable
from core.jobs.tables import Job

#: seconds to wait for a connection, for a row or SQLite's write lock, and for one statement
CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 15
STATEMENT_TIMEOUT_S = 30
#: seconds that a transaction may say nothing before Postgres ends it and lets go of its locks
IDLE_TIMEOUT_S = 120.0
_READ_ONLY = "sqlite_query_only"


class Database:
    """A pool of connections. Threads may share it; processes may not.

    Built by `open_database`; the constructor opens no connection.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(**{_READ_ONLY: True, "postgresql_readonly": True})

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session for reading and writing: committed at the end, rolled back on any error.

        Raises:
            Unavailable: the database is down, overloaded or full (code database_unavailable).
        """
        with (
            _named_errors(),
            Session(self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading only: never waits for writers, writes are refused.

        Raises:
            Unavailable: as `transaction`.
        """
        with _named_errors(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    def check(self) -> None:
        """Raises `Unavailable` unless the database answers and has the tables."""
        try:
            with self.read() as session:
                session.execute(select(Job.id).limit(1))
        except DBAPIError as error:
            raise Unavailable(
                "The database has no greentune tables; run `greentune migrate`.",
                code="database_unavailable",
            ) from error

    def dispose(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def open_database(
    url: str, *, pool_size: int = 10, idle_timeout_s: float = IDLE_TIMEOUT_S
) -> Database:
    """``sqlite:///path`` or ``postgresql+psycopg://...``; opens no connection yet.

    The schema is the migrations' business: `migrations.upgrade(url)`.

    Args:
        url: of the database.
        pool_size: connections kept open; as many again under load.
        idle_timeout_s: as `IDLE_TIMEOUT_S`, above 0; SQLite has nobody to end a transaction.
    """
    return Database(create_engine(url, pool_size=pool_size, idle_timeout_s=idle_timeout_s))


def create_engine(
    url: str, *, pool_size: int = 10, idle_timeout_s: float = IDLE_TIMEOUT_S
) -> Engine:
    """The engine behind `open_database`; the migrations need it bare.

    Raises:
        InvalidInput: the URL cannot be read, or names another kind of database.
    """
    try:
        backend = make_url(url).get_backend_name()
    except (ArgumentError, ValueError) as error:
        # without the URL: it carries a password
        raise InvalidInput(
            "The database URL cannot be read; write postgresql://user:password@host:port/name."
        ) from error
    if backend == "postgresql":
        connect_args = _postgres_arguments(idle_timeout_s)
    elif backend == "sqlite":
        connect_args = {"timeout": LOCK_TIMEOUT_S}
    else:
        raise InvalidInput(
            f"The database URL must begin with sqlite:/// or postgresql+psycopg://; "
            f"got {backend}://."
        )
    engine = sqlalchemy_create_engine(
        url,
        connect_args=connect_args,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=LOCK_TIMEOUT_S,
        # a restarted server must cost nobody a request
        pool_pre_ping=backend == "postgresql",
    )
    if backend == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def now(session: Session) -> datetime:
    """The database's clock, aware UTC: leases must not depend on the workers' clocks.

    Not the transaction's start: waiting for a lock takes time. SQLite's clock is this machine's.
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return moment.astimezone(UTC)


def _postgres_arguments(idle_timeout_s: float) -> dict[str, Any]:
    milliseconds = {
        "lock_timeout": LOCK_TIMEOUT_S * 1000,
        "statement_timeout": STATEMENT_TIMEOUT_S * 1000,
        # 0 would mean never
        "idle_in_transaction_session_timeout": max(1, round(idle_timeout_s * 1000)),
    }
    options = " ".join(f"-c {name}={value}" for name, value in milliseconds.items())
    return {
        "connect_timeout": CONNECT_TIMEOUT_S,
        # the driver reads and writes these alone, whatever a server's or a role's own settings are
        "options": f"-c timezone=UTC -c datestyle=ISO {options}",
        "client_encoding": "utf8",
        "application_name": "greentune",
        # a peer that vanished without a word is noticed after about half a minute
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
    }


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # the driver's own BEGIN comes too late, see the module's docstring
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = bool(connection.get_execution_options().get(_READ_ONLY))
    connection.exec_driver_sql(f"PRAGMA query_only={int(read_only)}")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        if not is_outage(error):
            raise
        raise Unavailable(
            "The database is not available at the moment; try again.", code="database_unavailable"
        ) from error


def is_outage(error: DBAPIError | PoolTimeoutError) -> bool:
    """Down, overloaded, locked or full, as opposed to a wrong statement."""
    if isinstance(error, PoolTimeoutError) or error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        # SQLITE_ERROR means a wrong statement or schema
        return (
            getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _SQLITE_OUTAGE
        )
    return isinstance(error, (OperationalError, InterfaceError, InternalError))


_SQLITE_OUTAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
