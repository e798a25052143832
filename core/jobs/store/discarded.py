"""Objects that no row names any more. `discard` is called in the transaction that takes their row
away; `worker.tidying` removes them, and then they are forgotten here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from core.jobs.store.rows import FRESH, insert_on_conflict, record
from core.jobs.tables import Discarded


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardedRecord:
    """``key``: an object's, or the prefix of a folder."""

    key: str
    is_folder: bool


def discard(session: Session, key: str, *, is_folder: bool, due_at: datetime) -> None:
    """Have the object, or the folder under the prefix ``key``, removed from ``due_at`` on."""
    session.execute(
        insert_on_conflict(session, Discarded)
        .values(key=key, is_folder=is_folder, due_at=due_at)
        .on_conflict_do_nothing(),
        execution_options=FRESH,
    )


def list_discarded(session: Session, *, now: datetime, limit: int) -> tuple[DiscardedRecord, ...]:
    """What is due, longest due first."""
    statement = (
        select(Discarded)
        .where(Discarded.due_at <= now)
        .order_by(Discarded.due_at, Discarded.key)
        .limit(limit)
    )
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(DiscardedRecord, row) for row in rows)


def forget_discarded(session: Session, keys: Collection[str]) -> None:
    """These have been removed."""
    session.execute(delete(Discarded).where(Discarded.key.in_(keys)), execution_options=FRESH)


def postpone_discarded(session: Session, key: str, *, until: datetime) -> None:
    """This one could not be removed; others come first."""
    session.execute(
        update(Discarded).where(Discarded.key == key).values(due_at=until),
        execution_options=FRESH,
    )
