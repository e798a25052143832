"""Objects that no row names, until they are removed.

Not any more: `discard` is called in the transaction that takes their row away. Not yet: `announce`
is called before an attempt stores their first byte, and `keep` in the transaction that writes their
row; what is left of an attempt that is over falls due (`core.jobs.service.sweeper`). What a caller
sends is discarded before its first byte, due much later than it takes to store, and `spare`d in the
transaction that writes its row. What is due `worker.tidying` removes; then it is forgotten here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from core.jobs.store.rows import FRESH, insert_on_conflict, record
from core.jobs.tables import Checkpoint, Discarded


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


def discard_state(session: Session, job_id: str, *, due_at: datetime) -> None:
    """Have the files removed that the job's checkpoints hold for itself alone: it has ended."""
    rows = session.scalars(
        select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None)),
        execution_options=FRESH,
    )
    for row in rows.all():
        for name in row.state_files:
            discard(session, f"{row.prefix}/{name}", is_folder=False, due_at=due_at)
        row.state_files = ()
    session.flush()


def announce(session: Session, job_id: str, attempt: int, keys: Collection[str]) -> None:
    """The attempt is about to store objects under these keys, each for the first time."""
    announced = [
        {"key": key, "is_folder": False, "job_id": job_id, "attempt": attempt} for key in keys
    ]
    session.execute(
        insert_on_conflict(session, Discarded).values(announced).on_conflict_do_nothing(),
        execution_options=FRESH,
    )


def keep(session: Session, job_id: str, *, prefix: str, keys: Collection[str] = ()) -> None:
    """What was announced for this folder and under these keys has a row now."""
    is_kept = or_(Discarded.key.startswith(f"{prefix}/", autoescape=True), Discarded.key.in_(keys))
    session.execute(
        delete(Discarded).where(Discarded.due_at.is_(None), Discarded.job_id == job_id, is_kept),
        execution_options=FRESH,
    )


def spare(session: Session, key: str, *, due_after: datetime) -> bool:
    """The object has a row now. False: it was due by ``due_after``, and may be gone."""
    found = session.scalars(
        delete(Discarded)
        .where(Discarded.key == key, Discarded.due_at > due_after)
        .returning(Discarded.key),
        execution_options=FRESH,
    )
    return found.one_or_none() is not None


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
