"""Checkpoints that are of no more use."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.jobs.store.discarded import discard
from core.jobs.store.rows import FRESH
from core.jobs.tables import Checkpoint

#: checkpoints against loss of work that a job keeps; a second one in case the newest is damaged
KEPT_CHECKPOINTS: Final = 2


def superseded(session: Session, job_id: str) -> list[Checkpoint]:
    """The job's checkpoints against loss of work but the newest `KEPT_CHECKPOINTS`, locked.

    Never the last of all, which the job would resume from. Those that a new job is taking for its
    base at this moment are passed over until the next time.
    """
    newest = (
        select(Checkpoint.step)
        .where(Checkpoint.job_id == job_id, Checkpoint.is_milestone.is_(False))
        .order_by(Checkpoint.step.desc())
        .limit(KEPT_CHECKPOINTS)
    )
    kept = session.scalars(newest).all()
    older = select(Checkpoint).where(
        Checkpoint.job_id == job_id,
        Checkpoint.is_milestone.is_(False),
        Checkpoint.step.not_in(kept),
    )
    rows = session.scalars(older.with_for_update(skip_locked=True), execution_options=FRESH)
    return list(rows)


def discard_checkpoints(
    session: Session, checkpoints: Iterable[Checkpoint], *, due_at: datetime
) -> None:
    """Make these locked rows unknown and have their files removed."""
    for row in checkpoints:
        discard(session, row.prefix, is_folder=True, due_at=due_at)
        session.delete(row)
    session.flush()
