"""From rows to records, one page at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.errors import InvalidInput
from core.jobs.columns import storable
from core.jobs.records import JobRecord, Page
from core.jobs.tables import Base, Job

#: objects of an earlier statement of the same session must not hide what the database says now
FRESH: dict[str, Any] = {"populate_existing": True, "synchronize_session": False}

R = TypeVar("R")
RowT = TypeVar("RowT", bound=Base)


def record(kind: type[R], row: Base) -> R:
    """A record whose fields are named like the row's attributes."""
    return kind(**{f.name: getattr(row, f.name) for f in fields(kind)})  # type: ignore[arg-type]


def job_record(job: Job) -> JobRecord:
    values = {f.name: getattr(job, f.name) for f in fields(JobRecord) if f.name != "metadata"}
    return JobRecord(**values, metadata=job.labels)


def page(
    session: Session,
    statement: Select[RowT],
    *,
    order_by: Sequence[Any],
    after: Sequence[Any] | None,
    descending: bool,
    limit: int,
    convert: Callable[[RowT], R],
) -> Page[R]:
    """Up to ``limit`` records beyond the cursor: stable however many rows come before it.

    Args:
        session: open session.
        statement: what to page through, unordered.
        order_by: columns that together are unique.
        after: their values in the last row of the page before.
        descending: largest first.
        limit: 1 or more.
        convert: row to record.
    """
    if limit < 1:
        raise InvalidInput(f"limit must be 1 or more; got {limit}.", param="limit")
    if after is not None:
        here, there = tuple_(*order_by), tuple_(*after)
        statement = statement.where(here < there if descending else here > there)
    statement = statement.order_by(*(c.desc() if descending else c.asc() for c in order_by))
    rows = session.scalars(statement.limit(limit + 1), execution_options=FRESH).all()
    return Page(items=tuple(convert(row) for row in rows[:limit]), has_more=len(rows) > limit)


def unknown_cursor(after: str) -> InvalidInput:
    return InvalidInput(
        f"after must be the id of an object in this list; there is no {after!r}.", param="after"
    )


def insert_on_conflict(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT with ON CONFLICT, which both databases have but SQLAlchemy keeps apart."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def is_storable(text: str) -> bool:
    """Whether a database can keep ``text``: for names, which must not change on the way."""
    return storable(text) == text
