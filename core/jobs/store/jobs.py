"""Jobs and what hangs on them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session

from core.errors import ModelNotFound, NotFound
from core.jobs import ids
from core.jobs.records import (
    AttemptRecord,
    CheckpointRecord,
    EnergyRecord,
    EventRecord,
    JobRecord,
    OverheadRecord,
    Page,
)
from core.jobs.store.rows import (
    FRESH,
    is_storable,
    job_record,
    page,
    record,
    unknown_cursor,
)
from core.jobs.tables import Attempt, Checkpoint, EnergySample, Event, Job, Overhead


def get_job(session: Session, tenant: str, job_id: str) -> JobRecord:
    """Raises `NotFound`, also for another tenant's job."""
    return job_record(find_job(session, tenant, job_id))


def find_job(session: Session, tenant: str, job_id: str, *, locks: bool = False) -> Job:
    """The row, held until the transaction's end where it ``locks``. Raises as `get_job`."""
    statement = select(Job).where(Job.id == job_id, Job.tenant == tenant)
    if locks:
        statement = statement.with_for_update()
    job = (
        session.scalars(statement, execution_options=FRESH).one_or_none()
        if ids.is_id(ids.JOB, job_id)
        else None
    )
    if job is None:
        raise no_job(job_id)
    return job


def no_job(job_id: str) -> NotFound:
    return NotFound(f"There is no fine-tuning job {job_id!r}.", param="fine_tuning_job_id")


def list_jobs(
    session: Session,
    tenant: str,
    *,
    after: str | None = None,
    limit: int = 20,
    metadata: Mapping[str, str] | None = None,
) -> Page[JobRecord]:
    """Newest first. Two queries at most, however long the page.

    Args:
        session: open session.
        tenant: whose jobs.
        after: id of the last job of the page before.
        limit: 1 or more.
        metadata: only jobs that carry all these labels; an empty mapping: only jobs without any.

    Raises:
        InvalidInput: ``after`` names no job of this tenant (param after).
    """
    cursor = None
    if after is not None:
        try:
            cursor = (get_job(session, tenant, after).created_at, after)
        except NotFound:
            raise unknown_cursor(after) from None
    if metadata and not all(is_storable(k) and is_storable(v) for k, v in metadata.items()):
        return Page(items=(), has_more=False)
    statement = select(Job).where(Job.tenant == tenant)
    if metadata is not None:
        statement = statement.where(*_labels(session, metadata))
    return page(
        session,
        statement,
        order_by=(Job.created_at, Job.id),
        after=cursor,
        descending=True,
        limit=limit,
        convert=job_record,
    )


def _labels(session: Session, metadata: Mapping[str, str]) -> list[ColumnElement[bool]]:
    if not metadata:
        return [Job.labels.is_(None)]
    # not a JSON path: keys are the caller's words, and may hold quotes
    postgres = session.get_bind().dialect.name == "postgresql"
    pairs_of = func.jsonb_each_text if postgres else func.json_each
    conditions: list[ColumnElement[bool]] = []
    for number, (key, value) in enumerate(metadata.items()):
        pair = pairs_of(Job.labels).table_valued("key", "value", name=f"label_{number}")
        conditions.append(
            exists(select(1).select_from(pair).where(pair.c.key == key, pair.c.value == value))
        )
    return conditions


def list_events(
    session: Session, tenant: str, job_id: str, *, after: str | None = None, limit: int = 20
) -> Page[EventRecord]:
    """Newest first. Raises `NotFound` (the job) and `InvalidInput` (param after)."""
    get_job(session, tenant, job_id)
    cursor = None
    if after is not None:
        found = select(Event.seq).where(Event.job_id == job_id, Event.id == after)
        seq = session.scalars(found).one_or_none() if ids.is_id(ids.EVENT, after) else None
        if seq is None:
            raise unknown_cursor(after)
        cursor = (seq,)
    return page(
        session,
        select(Event).where(Event.job_id == job_id),
        order_by=(Event.seq,),
        after=cursor,
        descending=True,
        limit=limit,
        convert=lambda row: record(EventRecord, row),
    )


def list_remarks(session: Session, job_id: str, kind: str) -> tuple[EventRecord, ...]:
    """Events whose ``data`` says this ``kind``, such as "selection"; oldest first. Ask `get_job`
    first: this one knows no tenants.
    """
    statement = (
        select(Event)
        .where(Event.job_id == job_id, Event.data["kind"].as_string() == kind)
        .order_by(Event.seq)
    )
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(EventRecord, row) for row in rows)


def list_checkpoints(
    session: Session, tenant: str, job_id: str, *, after: str | None = None, limit: int = 10
) -> Page[CheckpointRecord]:
    """Newest first. Raises `NotFound` (the job) and `InvalidInput` (param after)."""
    get_job(session, tenant, job_id)
    cursor = None
    if after is not None:
        found = select(Checkpoint.step).where(Checkpoint.job_id == job_id, Checkpoint.id == after)
        step = session.scalars(found).one_or_none() if ids.is_id(ids.CHECKPOINT, after) else None
        if step is None:
            raise unknown_cursor(after)
        cursor = (step,)
    return page(
        session,
        select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None)),
        order_by=(Checkpoint.step,),
        after=cursor,
        descending=True,
        limit=limit,
        convert=lambda row: record(CheckpointRecord, row),
    )


def get_checkpoint(session: Session, tenant: str, model: str) -> CheckpointRecord:
    """The checkpoint that bears the name ``model``.

    Raises:
        ModelNotFound: there is none; also for another tenant's.
    """
    return record(CheckpointRecord, find_checkpoint(session, tenant, model))


def find_checkpoint(
    session: Session, tenant: str, model: str, *, lock: bool = False, share: bool = False
) -> Checkpoint:
    """The row; locked for writing, or (``share``) against being deleted. Raises as
    `get_checkpoint`.
    """
    row = None
    if is_storable(model):
        statement = (
            select(Checkpoint)
            .join(Job, Job.id == Checkpoint.job_id)
            .where(Checkpoint.model == model, Job.tenant == tenant, Checkpoint.deleted_at.is_(None))
        )
        if lock or share:
            # not the job's row: its worker writes there all the time; and shared with what becomes
            # of the checkpoint when that job ends
            statement = statement.with_for_update(read=share, key_share=share, of=Checkpoint)
        row = session.scalars(statement, execution_options=FRESH).one_or_none()
    if row is None:
        raise ModelNotFound(f"There is no model {model!r}.", param="model")
    return row


def last_checkpoint(session: Session, job_id: str) -> CheckpointRecord | None:
    """The one to continue from."""
    statement = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc())
        .limit(1)
    )
    row = session.scalars(statement, execution_options=FRESH).one_or_none()
    return None if row is None else record(CheckpointRecord, row)


def list_attempts(session: Session, job_id: str) -> tuple[AttemptRecord, ...]:
    """Oldest first. Ask `get_job` first: this one knows no tenants."""
    statement = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(AttemptRecord, row) for row in rows)


def list_overheads(session: Session, job_id: str) -> tuple[OverheadRecord, ...]:
    """Of all attempts, by time. Ask `get_job` first: this one knows no tenants."""
    statement = (
        select(Overhead)
        .where(Overhead.job_id == job_id)
        .order_by(Overhead.started_at, Overhead.attempt, Overhead.kind)
    )
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(OverheadRecord, row) for row in rows)


def list_energy(session: Session, job_id: str) -> tuple[EnergyRecord, ...]:
    """All samples of all attempts by time. Ask `get_job` first: this one knows no tenants."""
    statement = (
        select(EnergySample)
        .where(EnergySample.job_id == job_id)
        .order_by(EnergySample.started_at, EnergySample.attempt, EnergySample.device)
    )
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(EnergyRecord, row) for row in rows)


def list_guessed_jobs(session: Session, *, since: datetime) -> tuple[JobRecord, ...]:
    """Of all tenants: jobs with samples whose intensity was estimated or not known, that have not
    ended before ``since``. For the operator, never for a caller.
    """
    sample = EnergySample
    is_guess = or_(sample.intensity_g_per_kwh.is_(None), sample.intensity_is_estimated.is_(True))
    statement = (
        select(Job)
        .where(
            or_(Job.finished_at.is_(None), Job.finished_at >= since),
            exists(select(1).where(sample.job_id == Job.id, is_guess)),
        )
        .order_by(Job.created_at, Job.id)
    )
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(job_record(job) for job in rows)


def list_energy_merged(session: Session, job_id: str) -> tuple[EnergyRecord, ...]:
    """As `list_energy`, the samples of one attempt, device, method and intensity added up into one
    that spans them: a few rows however long the job ran, so that it can be asked for every second.
    """
    same = (
        EnergySample.attempt,
        EnergySample.device,
        EnergySample.method,
        EnergySample.intensity_g_per_kwh,
        EnergySample.intensity_kind,
        EnergySample.intensity_source,
        EnergySample.intensity_is_estimated,
        EnergySample.zone,
    )
    started_at = func.min(EnergySample.started_at)
    statement = (
        select(
            *same,
            started_at.label("started_at"),
            func.max(EnergySample.ended_at).label("ended_at"),
            func.sum(EnergySample.energy_j).label("energy_j"),
        )
        .where(EnergySample.job_id == job_id)
        .group_by(*same)
        .order_by(started_at, EnergySample.attempt, EnergySample.device)
    )
    return tuple(EnergyRecord(**row) for row in session.execute(statement).mappings())
