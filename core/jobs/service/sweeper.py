"""Settles the jobs whose owner is gone, finds those that need another nudge, drops what is over."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from core.jobs.lifecycle import (
    CLAIMABLE,
    FAILED,
    LEASE_EXPIRED_REASON,
    REQUEUED,
    REVALIDATED,
    Status,
    settle,
)
from core.jobs.records import JobError
from core.jobs.service.checkpoints import forget_deleted
from core.jobs.service.files import discard_expired
from core.jobs.service.uploads import expire_uploads
from core.jobs.store.rows import FRESH
from core.jobs.store.transitions import NewEvent, edge_event, let_go, owned
from core.jobs.tables import Discarded, Idempotency, Job, Worker

NUDGE_AGAIN_S = 60.0
SWEEP_LIMIT = 100
#: a worker that has been silent for so long is forgotten
WORKER_MEMORY_S = 86_400.0
#: an attempt that has lost its job may go on storing files until it is stopped
LATE_WRITES_S = 3_600.0


def sweep(
    session: Session,
    *,
    now: datetime,
    max_attempts: int,
    nudge_again_s: float = NUDGE_AGAIN_S,
    limit: int = SWEEP_LIMIT,
) -> list[str]:
    """Settle expired leases, and return the ids of jobs to nudge after the commit.

    A job whose lease has run out is cancelled or paused if that was ordered, fails with code
    ``worker_lost`` after ``max_attempts`` deaths in a row without a new checkpoint, and is queued
    again otherwise. Claimable jobs, most urgent first, are nudged at most every
    ``nudge_again_s`` seconds, ``limit`` at a time: a long queue must not flood the broker. Files
    past their date that no job needs are discarded, the parts of uploads past theirs, and what
    attempts that are over have stored without a row.
    """
    settle_expired(session, now=now, max_attempts=max_attempts, limit=limit)
    nudged_before = now - timedelta(seconds=nudge_again_s)
    due = session.scalars(
        select(Job.id)
        .where(*is_claimable(now), or_(Job.nudged_at.is_(None), Job.nudged_at <= nudged_before))
        .order_by(*URGENCY)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    session.execute(
        update(Job).where(Job.id.in_(due)).values(nudged_at=now), execution_options=FRESH
    )
    session.execute(
        delete(Idempotency).where(Idempotency.expires_at <= now), execution_options=FRESH
    )
    forgotten = now - timedelta(seconds=WORKER_MEMORY_S)
    session.execute(delete(Worker).where(Worker.seen_at < forgotten), execution_options=FRESH)
    discard_expired(session, now=now, limit=limit)
    expire_uploads(session, now=now, limit=limit)
    forget_deleted(session, now=now)
    _discard_abandoned(session, now)
    return list(due)


def _discard_abandoned(session: Session, now: datetime) -> None:
    """What was announced by attempts that are over will never have a row."""
    goes_on = exists(select(1).where(*owned(Discarded.job_id, Discarded.attempt)))
    session.execute(
        update(Discarded)
        .where(Discarded.due_at.is_(None), ~goes_on)
        .values(due_at=now + timedelta(seconds=LATE_WRITES_S)),
        execution_options=FRESH,
    )


#: highest priority first, then oldest
URGENCY = (Job.priority.desc(), Job.created_at, Job.id)


def is_claimable(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        Job.status.in_([Status.VALIDATING_FILES, Status.QUEUED]),
        Job.lease_until.is_(None),
        or_(Job.not_before.is_(None), Job.not_before <= now),
    )


def settle_expired(
    session: Session, *, now: datetime, max_attempts: int, limit: int, job_id: str | None = None
) -> None:
    """Take jobs (or ``job_id``) out of the hands of workers that have stopped answering."""
    expired = select(Job).where(Job.status.in_(CLAIMABLE), Job.lease_until <= now)
    if job_id is not None:
        expired = expired.where(Job.id == job_id)
    # a locked row is in somebody's hands right now: a late heartbeat, or another sweep
    expired = expired.order_by(Job.lease_until).limit(limit).with_for_update(skip_locked=True)
    for job in session.scalars(expired, execution_options=FRESH).all():
        _settle(session, job, now=now, max_attempts=max_attempts)


def _settle(session: Session, job: Job, *, now: datetime, max_attempts: int) -> None:
    edge = settle(
        job.status,
        cancel=job.cancel_requested_at is not None,
        pause=job.pause_requested_at is not None,
    )
    if edge in (REQUEUED, REVALIDATED) and job.deaths + 1 >= max_attempts:
        fail_lost(session, job, now=now)
        return
    lost = NewEvent(level="warn", message=f"{LEASE_EXPIRED_REASON} (attempt {job.fence})")
    again = edge in (REQUEUED, REVALIDATED)
    events = [edge_event(edge, reason=LEASE_EXPIRED_REASON)]
    let_go(
        session,
        job,
        edge,
        outcome="lease_expired",
        events=events if again else [lost, *events],
        now=now,
        deaths=job.deaths + 1,
    )


def fail_lost(session: Session, job: Job, *, now: datetime, died: bool = False) -> Job:
    """End a job that keeps losing its workers."""
    message = (
        f"The job lost its worker {job.deaths + 1} times in a row without reaching a new "
        f"checkpoint; it was not tried again."
    )
    error = JobError(code="worker_lost", message=message)
    return let_go(
        session,
        job,
        FAILED,
        outcome="died" if died else "lease_expired",
        events=[edge_event(FAILED, message=message)],
        now=now,
        deaths=job.deaths + 1,
        error=error,
    )
