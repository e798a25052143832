"""What the API does for a caller. Another tenant's object is `NotFound`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from core.errors import InvalidInput, InvalidTransition
from core.jobs import ids
from core.jobs.lifecycle import (
    CANCEL_ORDERED_MESSAGE,
    CANCELLED,
    CREATED_MESSAGE,
    PAUSABLE,
    PAUSE_ORDERED_MESSAGE,
    PAUSE_WITHDRAWN_MESSAGE,
    PAUSED,
    RESUMED,
    VALIDATING_MESSAGE,
    Edge,
    Status,
)
from core.jobs.records import JobRecord
from core.jobs.service.models import hold_base
from core.jobs.service.quotas import require_room_for_a_job
from core.jobs.store.files import find_file
from core.jobs.store.jobs import find_job
from core.jobs.store.rows import is_storable, job_record
from core.jobs.store.transitions import NewEvent, compare_and_set, edge_event, let_go
from core.jobs.tables import Job
from core.spec import JobSpec


def submit(
    session: Session,
    *,
    tenant: str,
    spec: JobSpec,
    metadata: Mapping[str, str] | None = None,
    priority: int = 0,
    most_active: int | None = None,
    now: datetime,
) -> JobRecord:
    """Accept a job in ``validating_files``; send the nudge after the commit.

    The files must exist, belong to ``tenant`` and have purpose ``fine-tune``; their content is
    judged later, by the worker. They and a tuned model that the job starts from stay until it ends.

    Raises:
        NotFound: no such file (``param`` training_file or validation_file).
        ModelNotFound: no such tuned model, or one that it was tuned from is gone.
        InvalidInput: a file's purpose is another (code invalid_file_purpose), or ``metadata``
            holds text that no database stores.
        LimitExceeded: ``most_active`` jobs of the tenant have not ended (code insufficient_quota).
    """
    if most_active is not None:
        require_room_for_a_job(session, tenant, most_active)
    _require_training_file(session, tenant, spec.training_file, "training_file", now)
    if spec.validation_file is not None:
        _require_training_file(session, tenant, spec.validation_file, "validation_file", now)
    hold_base(session, tenant, spec)
    for key, value in (metadata or {}).items():
        if not (is_storable(key) and is_storable(value)):
            raise InvalidInput(
                f"metadata[{key!r}] holds characters that cannot be stored.", param="metadata"
            )
    job = Job(
        id=ids.new_id(ids.JOB),
        tenant=tenant,
        status=Status.VALIDATING_FILES,
        spec=spec,
        labels=None if metadata is None else dict(metadata),
        training_file=spec.training_file,
        validation_file=spec.validation_file,
        priority=priority,
        created_at=now,
        nudged_at=now,
    )
    session.add(job)
    session.flush()
    created = CREATED_MESSAGE.format(job_id=job.id)
    validating = VALIDATING_MESSAGE.format(file_id=spec.training_file)
    return job_record(
        _set(session, job, now, NewEvent(message=created), NewEvent(message=validating))
    )


def _require_training_file(
    session: Session, tenant: str, file_id: str, param: str, now: datetime
) -> None:
    # shared lock: the file cannot be deleted before this job is there to protect it
    file = find_file(session, tenant, file_id, now=now, param=param, share=True)
    if file.purpose != "fine-tune":
        raise InvalidInput(
            f"{param} must be a file with purpose 'fine-tune'; {file_id} has {file.purpose!r}.",
            param=param,
            code="invalid_file_purpose",
        )


def cancel(session: Session, *, tenant: str, job_id: str, now: datetime) -> JobRecord:
    """Cancel at once if no worker owns the job (or its lease has run out), else order it.

    Idempotent: a cancelled job, or one that is being cancelled, is returned as it is.

    Raises:
        NotFound: no such job.
        InvalidTransition: the job succeeded or failed.
    """
    job = find_job(session, tenant, job_id, locks=True)
    if job.status is Status.CANCELLED:
        return job_record(job)
    if job.status.is_terminal:
        raise InvalidTransition(f"Job {job_id} has {job.status}; it cannot be cancelled.")
    if _has_live_owner(job, now):
        if job.cancel_requested_at is None:
            ordered = NewEvent(message=CANCEL_ORDERED_MESSAGE)
            job = _set(session, job, now, ordered, cancel_requested_at=now)
        return job_record(job)
    return job_record(_carry_out(session, job, CANCELLED, now, cancel_requested_at=now))


def pause(session: Session, *, tenant: str, job_id: str, now: datetime) -> JobRecord:
    """Pause at once if no worker owns the job, else order it. Idempotent.

    Raises:
        NotFound: no such job.
        InvalidInput: the job is validating its files, being cancelled, or has ended
            (code job_not_pausable).
    """
    job = find_job(session, tenant, job_id, locks=True)
    if job.status is Status.PAUSED or job.pause_requested_at is not None:
        return job_record(job)
    if job.status not in PAUSABLE or job.cancel_requested_at is not None:
        cancelling = job.cancel_requested_at is not None and not job.status.is_terminal
        raise InvalidInput(
            f"Job {job_id} is {'being cancelled' if cancelling else job.status}; "
            f"only a queued or running job can be paused.",
            code="job_not_pausable",
        )
    if _has_live_owner(job, now):
        ordered = NewEvent(message=PAUSE_ORDERED_MESSAGE)
        return job_record(_set(session, job, now, ordered, pause_requested_at=now))
    return job_record(_carry_out(session, job, PAUSED, now))


def resume(session: Session, *, tenant: str, job_id: str, now: datetime) -> JobRecord:
    """Queue a paused job again, or withdraw a pause order; send a nudge after the commit.

    A job that is not paused is returned as it is.

    Raises:
        NotFound: no such job.
        InvalidTransition: the job has ended.
    """
    job = find_job(session, tenant, job_id, locks=True)
    if job.status.is_terminal:
        raise InvalidTransition(f"Job {job_id} has {job.status}; it cannot be resumed.")
    if job.status is Status.PAUSED:
        return job_record(_carry_out(session, job, RESUMED, now, nudged_at=now))
    if job.pause_requested_at is not None:
        withdrawn = NewEvent(message=PAUSE_WITHDRAWN_MESSAGE)
        job = _set(session, job, now, withdrawn, pause_requested_at=None)
    return job_record(job)


def _has_live_owner(job: Job, now: datetime) -> bool:
    return job.lease_until is not None and job.lease_until > now


def _set(session: Session, job: Job, now: datetime, *events: NewEvent, **values: object) -> Job:
    changed = compare_and_set(
        session,
        Job.id == job.id,
        Job.fence == job.fence,
        Job.status == job.status,
        values=values,
        events=events,
        now=now,
    )
    assert changed is not None, "this transaction holds the row's lock"
    return changed


def _carry_out(session: Session, job: Job, edge: Edge, now: datetime, **values: Any) -> Job:
    return let_go(
        session,
        job,
        edge,
        outcome="lease_expired" if job.lease_until is not None else None,
        events=[edge_event(edge)],
        now=now,
        **values,
    )
