"""How an owner lets go of its job: for good, or for another attempt.

A cancel order that was accepted is kept, whatever the owner meant to do; the record that comes
back says how the job stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from core.errors import InvalidTransition
from core.jobs.lifecycle import (
    BUDGET_SPENT,
    CANCELLED,
    FAILED,
    HELD,
    MODEL_MESSAGE,
    RELEASE_REASONS,
    REQUEUED,
    REVALIDATED,
    SUCCEEDED,
    TRANSIENT_LIMIT,
    Edge,
    Release,
    backoff_s,
    settle,
)
from core.jobs.records import JobError, JobRecord, NewFile
from core.jobs.service.files import new_row
from core.jobs.service.sweeper import fail_lost
from core.jobs.store.discarded import keep
from core.jobs.store.jobs import last_checkpoint, list_attempts
from core.jobs.store.rows import job_record
from core.jobs.store.transitions import NewEvent, edge_event, let_go, lock_owned, refusal
from core.jobs.tables import Job, Model


def succeed(
    session: Session,
    job_id: str,
    fence: int,
    *,
    model_prefix: str,
    model_bytes: int,
    result_files: Sequence[NewFile],
    now: datetime,
) -> JobRecord:
    """From running to succeeded, with the model's row and the result files' rows.

    A cancel order that came first wins: then the job ends as cancelled, nothing else is written,
    and the returned record says so.
    """
    job = lock_owned(session, job_id, fence)
    if job.cancel_requested_at is not None:
        return job_record(_cancel(session, job, now))
    if job.status not in SUCCEEDED.sources:
        raise refusal(job, SUCCEEDED.sources)
    model = Model(
        id=job_record(job).model_name,
        tenant=job.tenant,
        base_model=job.spec.model,
        job_id=job_id,
        created_at=now,
        prefix=model_prefix,
        n_bytes=model_bytes,
    )
    session.add(model)
    session.add_all(new_row(file, tenant=job.tenant, now=now) for file in result_files)
    session.flush()
    keep(session, job_id, prefix=model_prefix, keys=[file.object_key for file in result_files])
    created = NewEvent(message=MODEL_MESSAGE.format(model=model.id))
    job = let_go(
        session,
        job,
        SUCCEEDED,
        outcome="succeeded",
        events=[created, edge_event(SUCCEEDED)],
        now=now,
        fine_tuned_model=model.id,
        result_files=tuple(file.id for file in result_files),
    )
    return job_record(job)


def fail(
    session: Session,
    job_id: str,
    fence: int,
    *,
    code: str,
    message: str,
    param: str | None = None,
    now: datetime,
) -> JobRecord:
    """End the job as failed with ``job.error``; a cancel order that came first wins here too."""
    job = lock_owned(session, job_id, fence)
    if job.cancel_requested_at is not None:
        return job_record(_cancel(session, job, now))
    error = JobError(code=code, message=message, param=param)
    return job_record(_fail(session, job, error, now))


def cancelled(session: Session, job_id: str, fence: int, *, now: datetime) -> JobRecord:
    """Carry out a cancel order.

    Raises:
        InvalidTransition: nobody ordered it.
    """
    job = lock_owned(session, job_id, fence)
    if job.cancel_requested_at is None:
        raise InvalidTransition(f"Nobody asked to cancel job {job_id}; go on with it.")
    return job_record(_cancel(session, job, now))


def paused(session: Session, job_id: str, fence: int, *, now: datetime) -> JobRecord:
    """Carry out a pause order, after the checkpoint. Withdrawn meanwhile: the job is queued."""
    job = lock_owned(session, job_id, fence)
    edge = _settle(job)
    reason = "The pause was withdrawn"
    return job_record(
        let_go(
            session,
            job,
            edge,
            outcome="cancelled" if edge is CANCELLED else "paused",
            events=[edge_event(edge, reason=reason)],
            now=now,
        )
    )


def hold(
    session: Session,
    job_id: str,
    fence: int,
    *,
    until: datetime,
    reason: str,
    planned_finish: datetime | None,
    now: datetime,
) -> JobRecord:
    """Give the job back on purpose: queued, and not to be claimed before ``until``.

    The hold is a column that claims and sweeps look at; it needs no signal and no worker to end.
    An order to cancel or pause that came first is carried out instead.
    """
    job = lock_owned(session, job_id, fence)
    edge = _settle(job)
    if edge is not REQUEUED:
        return job_record(_carry_out(session, job, edge, now))
    event = edge_event(HELD, until=until.isoformat(timespec="seconds"), reason=reason)
    job = let_go(
        session,
        job,
        HELD,
        outcome="held",
        events=[event],
        now=now,
        not_before=until,
        hold_reason=reason,
        planned_start=until,
        planned_finish=planned_finish,
    )
    return job_record(job)


def pause_for_budget(
    session: Session, job_id: str, fence: int, *, reason: str, now: datetime
) -> JobRecord:
    """Pause a job whose budget is spent, after its checkpoint; an order to cancel goes first."""
    job = lock_owned(session, job_id, fence)
    edge = _settle(job)
    if edge is not REQUEUED:
        return job_record(_carry_out(session, job, edge, now))
    event = edge_event(BUDGET_SPENT, reason=reason)
    return job_record(let_go(session, job, BUDGET_SPENT, outcome="paused", events=[event], now=now))


def release(
    session: Session,
    job_id: str,
    fence: int,
    *,
    reason: Release,
    message: str | None = None,
    max_attempts: int,
    now: datetime,
) -> JobRecord:
    """Give the job back: queued again, or what a pending order says.

    ``TRANSIENT`` and ``DIED`` wait before the next try (`lifecycle.backoff_s`) and fail the job:
    ``DIED`` at the ``max_attempts``-th time in a row (code worker_lost), ``TRANSIENT`` at the
    `lifecycle.TRANSIENT_LIMIT`-th (code storage_error).

    Args:
        session: open session.
        job_id: the job.
        fence: the claim's.
        reason: why.
        message: a sentence for the event, shown to the caller; None: the reason's own.
        max_attempts: deaths in a row, without a new checkpoint in between.
        now: aware UTC.
    """
    job = lock_owned(session, job_id, fence)
    edge = _settle(job)
    said = (message or RELEASE_REASONS[reason]).rstrip(".")
    deaths = job.deaths + (reason is Release.DIED)
    retries = job.retries + (reason is Release.TRANSIENT)
    again = edge in (REQUEUED, REVALIDATED)
    if again and reason is Release.DIED and deaths >= max_attempts:
        return job_record(fail_lost(session, job, now=now, died=True))
    if again and reason is Release.TRANSIENT and retries >= TRANSIENT_LIMIT:
        text = f"{said}. It was tried {retries} times over."
        return job_record(_fail(session, job, JobError(code="storage_error", message=text), now))
    failures = {Release.DIED: deaths, Release.TRANSIENT: retries}.get(reason)
    wait = None if failures is None or not again else timedelta(seconds=backoff_s(failures))
    job = let_go(
        session,
        job,
        edge,
        outcome=reason.value,
        events=[edge_event(edge, reason=said)],
        now=now,
        deaths=deaths,
        retries=retries,
        not_before=None if wait is None else now + wait,
    )
    return job_record(job)


def raised(
    session: Session,
    job_id: str,
    fence: int,
    *,
    failure: str,
    may_pass: bool,
    max_attempts: int,
    now: datetime,
) -> JobRecord:
    """Give the job back after an exception that nobody foresaw, or fail it (code training_failed).

    Code that raised the same twice is taken to raise it a third time: the job fails at the second
    ``failure`` without a new checkpoint since the first. Else it waits and is tried again, as after
    a death, and fails as one does at the ``max_attempts``-th in a row.

    Args:
        session: open session.
        job_id: the job.
        fence: the claim's.
        failure: one sentence for the caller, the same whenever the exception is.
        may_pass: another attempt may fare better though it was the same twice (a sick card).
        max_attempts: deaths and exceptions in a row, without a new checkpoint in between.
        now: aware UTC.
    """
    job = lock_owned(session, job_id, fence)
    edge = _settle(job)
    deaths = job.deaths + 1
    if edge not in (REQUEUED, REVALIDATED):
        told = NewEvent(level="warn", message=f"{failure} (attempt {fence})")
        events, wait = [told, edge_event(edge)], None
    elif not may_pass and _is_known(session, job, failure):
        text = (
            f"{failure}. An earlier attempt ended alike, and no new checkpoint came in between; "
            "it was not tried again."
        )
        return job_record(_fail_raised(session, job, failure, text, now))
    elif deaths >= max_attempts:
        text = f"{failure}. Attempts in a row without a new checkpoint: {deaths}."
        return job_record(_fail_raised(session, job, failure, text, now))
    else:
        events, wait = [edge_event(edge, reason=failure)], timedelta(seconds=backoff_s(deaths))
    job = let_go(
        session,
        job,
        edge,
        outcome="raised",
        failure=failure,
        events=events,
        now=now,
        deaths=deaths,
        not_before=None if wait is None else now + wait,
    )
    return job_record(job)


def _is_known(session: Session, job: Job, failure: str) -> bool:
    """Whether the last exception was the same, and nothing was gained since."""
    attempts = list_attempts(session, job.id)
    last = max((a.number for a in attempts if a.failure is not None), default=None)
    if last is None:
        return False
    before, after = (next(a for a in attempts if a.number == n) for n in (last, last + 1))
    reached = last_checkpoint(session, job.id)
    gained = reached is not None and reached.step > after.from_step
    return before.failure == failure and not gained


def _fail_raised(session: Session, job: Job, failure: str, text: str, now: datetime) -> Job:
    error = JobError(code="training_failed", message=text)
    return _fail(session, job, error, now, failure=failure, deaths=job.deaths + 1)


def _carry_out(session: Session, job: Job, edge: Edge, now: datetime) -> Job:
    """An order that came before the owner's own wish."""
    return let_go(
        session,
        job,
        edge,
        outcome="cancelled" if edge is CANCELLED else "paused",
        events=[edge_event(edge, reason="The files were not validated yet")],
        now=now,
    )


def _settle(job: Job) -> Edge:
    return settle(
        job.status,
        cancel=job.cancel_requested_at is not None,
        pause=job.pause_requested_at is not None,
    )


def _cancel(session: Session, job: Job, now: datetime) -> Job:
    return let_go(
        session, job, CANCELLED, outcome="cancelled", events=[edge_event(CANCELLED)], now=now
    )


def _fail(session: Session, job: Job, error: JobError, now: datetime, **more: Any) -> Job:
    return let_go(
        session,
        job,
        FAILED,
        outcome="failed",
        events=[edge_event(FAILED, message=error.message)],
        now=now,
        error=error,
        **more,
    )
