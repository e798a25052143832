"""What the owner of a job does. Each write is conditional on the fence of its claim.

All functions after `claim` raise `LeaseLost` if the caller is not the owner (any more) and
`InvalidTransition` if the job's state does not allow the step; then nothing was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.jobs.lifecycle import (
    CONTINUED_MESSAGE,
    STARTED,
    VALIDATED,
    EventType,
    Level,
    Status,
)
from core.jobs.records import (
    Baseline,
    Claim,
    FullCostRecord,
    HeldOutRecord,
    Hyperparameters,
    JobRecord,
    Orders,
    Progress,
)
from core.jobs.service.sweeper import SWEEP_LIMIT, URGENCY, is_claimable, settle_expired
from core.jobs.store.jobs import last_checkpoint
from core.jobs.store.rows import job_record
from core.jobs.store.transitions import (
    NewEvent,
    compare_and_set,
    edge_event,
    lock_owned,
    write_owned,
)
from core.jobs.tables import Attempt, Job


def claim(
    session: Session,
    *,
    worker: str,
    now: datetime,
    lease_s: float,
    max_attempts: int,
    job_id: str | None = None,
) -> Claim | None:
    """Own the most urgent claimable job (or ``job_id``): highest priority, then oldest.

    Claimable are jobs in ``validating_files`` or ``queued`` that nobody owns and whose
    ``not_before`` has passed. Expired leases are settled first, as `sweep` does, so a lost job is
    claimable at once. The state does not change: go on with `validated` and `started`. Of any
    number of workers that race for a job, one gets it. None: nothing to do.
    """
    settle_expired(session, now=now, max_attempts=max_attempts, limit=SWEEP_LIMIT, job_id=job_id)
    candidates = select(Job.id, Job.fence).where(*is_claimable(now))
    if job_id is not None:
        candidates = candidates.where(Job.id == job_id)
    # rows that another worker is claiming this moment are passed over, not waited for
    candidates = candidates.order_by(*URGENCY).limit(1).with_for_update(skip_locked=True)
    chosen = session.execute(candidates).one_or_none()
    if chosen is None:
        return None
    job = compare_and_set(
        session,
        Job.id == chosen.id,
        Job.fence == chosen.fence,
        *is_claimable(now),
        values={
            "fence": chosen.fence + 1,
            "lease_until": now + timedelta(seconds=lease_s),
            "worker": worker,
            "not_before": None,
            "hold_reason": None,
        },
    )
    if job is None:
        return None
    resume = last_checkpoint(session, job.id)
    session.add(
        Attempt(
            job_id=job.id,
            number=job.fence,
            worker=worker,
            started_at=now,
            from_step=0 if resume is None else resume.step,
        )
    )
    session.flush()
    return Claim(job=job_record(job), fence=job.fence, resume=resume)


def held(session: Session, job_id: str, fence: int) -> Claim:
    """The claim again, for the process that carries it out."""
    job = lock_owned(session, job_id, fence)
    return Claim(job=job_record(job), fence=fence, resume=last_checkpoint(session, job_id))


def heartbeat(
    session: Session, job_id: str, fence: int, *, now: datetime, lease_s: float
) -> Orders:
    """Extend the lease to ``now + lease_s`` and read the caller's orders."""
    lease_until = now + timedelta(seconds=lease_s)
    job = write_owned(session, job_id, fence, values={"lease_until": lease_until})
    return Orders(
        cancel=job.cancel_requested_at is not None, pause=job.pause_requested_at is not None
    )


def validated(session: Session, job_id: str, fence: int, *, now: datetime) -> JobRecord:
    """From validating_files to queued, still owned.

    A job beyond that is returned as it is, so that every attempt may call this.
    """
    job = lock_owned(session, job_id, fence)
    if job.status is Status.VALIDATING_FILES:
        job = write_owned(
            session,
            job_id,
            fence,
            sources=VALIDATED.sources,
            values={"status": VALIDATED.target},
            events=[edge_event(VALIDATED)],
            now=now,
        )
    return job_record(job)


def started(
    session: Session, job_id: str, fence: int, *, now: datetime, hyperparameters: Hyperparameters
) -> JobRecord:
    """From queued to running. With a checkpoint, the event says where training continues."""
    resume = last_checkpoint(session, job_id)
    event = edge_event(STARTED)
    if resume is not None:
        event = NewEvent(message=CONTINUED_MESSAGE.format(step=resume.step))
    job = write_owned(
        session,
        job_id,
        fence,
        sources=STARTED.sources,
        values={"status": STARTED.target, "hyperparameters": hyperparameters},
        events=[event],
        now=now,
    )
    return job_record(job)


def record_progress(
    session: Session,
    job_id: str,
    fence: int,
    progress: Progress,
    *,
    estimated_finish: datetime | None = None,
) -> None:
    """Replace the job's progress."""
    values = {"progress": progress, "estimated_finish": estimated_finish}
    write_owned(session, job_id, fence, values=values)


def record_held_out(session: Session, job_id: str, fence: int, held_out: HeldOutRecord) -> None:
    """Replace what held-out data say of the job's models."""
    write_owned(session, job_id, fence, values={"held_out": held_out})


def set_baseline(session: Session, job_id: str, fence: int, baseline: Baseline) -> None:
    """Replace what full fine-tuning would have come to."""
    write_owned(session, job_id, fence, values={"baseline": baseline})


def set_full_cost(session: Session, job_id: str, fence: int, cost: FullCostRecord) -> None:
    """Replace what full fine-tuning was measured to take."""
    write_owned(session, job_id, fence, values={"full_cost": cost})


def record_plan(
    session: Session,
    job_id: str,
    fence: int,
    *,
    planned_start: datetime | None,
    planned_finish: datetime | None,
) -> None:
    """Replace the hours that the job means to run in."""
    values = {"planned_start": planned_start, "planned_finish": planned_finish}
    write_owned(session, job_id, fence, values=values)


def append_event(
    session: Session,
    job_id: str,
    fence: int,
    *,
    level: Level,
    message: str,
    type: EventType = "message",  # noqa: A002  the wire's own word
    data: Mapping[str, Any] | None = None,
    now: datetime,
) -> None:
    """Append to the job's history. ``data`` is plain JSON; NaN and infinities become null."""
    event = NewEvent(level=level, message=message, type=type, data=data)
    write_owned(session, job_id, fence, values={}, events=[event], now=now)
