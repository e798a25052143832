"""Checkpoints that are of no more use, or that their owner does not want any more."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.jobs.store.discarded import discard
from core.jobs.store.rows import FRESH
from core.jobs.tables import Checkpoint

#: checkpoints against loss of work that a job keeps; a second one in case the newest is damaged
KEPT_CHECKPOINTS: Final = 2
#: one that has been gone for so long is forgotten; who pages through a list may be standing on it
CHECKPOINT_MEMORY_S: Final = 86_400.0


def superseded(session: Session, job_id: str) -> list[Checkpoint]:
    """The job's checkpoints against loss of work but the newest `KEPT_CHECKPOINTS`, locked.

    Never the last of all, which the job would resume from. Those that a new job is taking for its
    base at this moment are passed over until the next time.
    """
    guards = (
        Checkpoint.job_id == job_id,
        Checkpoint.is_milestone.is_(False),
        Checkpoint.deleted_at.is_(None),
    )
    newest = (
        select(Checkpoint.step)
        .where(*guards)
        .order_by(Checkpoint.step.desc())
        .limit(KEPT_CHECKPOINTS)
    )
    kept = session.scalars(newest).all()
    older = select(Checkpoint).where(*guards, Checkpoint.step.not_in(kept))
    rows = session.scalars(older.with_for_update(skip_locked=True), execution_options=FRESH)
    return list(rows)


def discard_checkpoints(
    session: Session, checkpoints: Iterable[Checkpoint], *, now: datetime
) -> None:
    """Make these locked rows unknown and have their files removed."""
    for row in checkpoints:
        row.deleted_at = now
        discard(session, row.prefix, is_folder=True, due_at=now)
    session.flush()


def forget_deleted(session: Session, *, now: datetime) -> None:
    """Drop the rows of checkpoints that have been gone for `CHECKPOINT_MEMORY_S`."""
    forgotten = now - timedelta(seconds=CHECKPOINT_MEMORY_S)
    session.execute(
        delete(Checkpoint).where(Checkpoint.deleted_at <= forgotten), execution_options=FRESH
    )
