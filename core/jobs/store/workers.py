"""Worker processes that have shown themselves."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.jobs.records import WorkerRecord
from core.jobs.store.rows import FRESH, insert_on_conflict, record
from core.jobs.tables import Worker


def touch_worker(session: Session, name: str, *, now: datetime, slots: int) -> None:
    """This worker lives and trains ``slots`` jobs at a time."""
    session.execute(
        insert_on_conflict(session, Worker)
        .values(name=name, slots=slots, started_at=now, seen_at=now)
        .on_conflict_do_update(index_elements=["name"], set_={"slots": slots, "seen_at": now}),
        execution_options=FRESH,
    )


def forget_worker(session: Session, name: str) -> None:
    """This worker has stopped in good order."""
    session.execute(delete(Worker).where(Worker.name == name), execution_options=FRESH)


def live_workers(session: Session, *, now: datetime, within_s: float) -> tuple[WorkerRecord, ...]:
    """Workers that showed themselves in the last ``within_s`` seconds, by name."""
    since = now - timedelta(seconds=within_s)
    statement = select(Worker).where(Worker.seen_at >= since).order_by(Worker.name)
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(WorkerRecord, row) for row in rows)
