"""Energy of many jobs in a time range, added up where the samples lie.

A statement each, however many jobs and samples there are. ``tenant`` None asks for every tenant's:
for the operator, never for a caller.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session

from core.jobs.records import AtWorkRecord, EnergyRecord, SpentRecord
from core.jobs.store.rows import record
from core.jobs.tables import EnergySample, Job


def list_jobs_at_work(
    session: Session, tenant: str | None, *, start: datetime, end: datetime
) -> tuple[AtWorkRecord, ...]:
    """Jobs that may have used energy between ``start`` and ``end``."""
    statement = (
        select(Job.id, Job.tenant, Job.spec, Job.baseline)
        .where(*_at_work(tenant, start, end))
        .order_by(Job.created_at, Job.id)
    )
    return tuple(AtWorkRecord(**row) for row in session.execute(statement).mappings())


def list_spent(
    session: Session, tenant: str | None, *, start: datetime, end: datetime
) -> tuple[SpentRecord, ...]:
    """Sums of the samples of `list_jobs_at_work`; samples that ``start`` or ``end`` cuts are in
    ``all_time_j`` only, see `list_cut_samples`.
    """
    same = (
        EnergySample.job_id,
        EnergySample.zone,
        EnergySample.method,
        EnergySample.intensity_kind,
    )
    inside = and_(EnergySample.started_at >= start, EnergySample.ended_at <= end)
    weighted = EnergySample.energy_j * func.coalesce(EnergySample.intensity_g_per_kwh, 0.0)
    statement = (
        select(
            *same,
            func.sum(case((inside, EnergySample.energy_j), else_=0.0)).label("energy_j"),
            func.sum(case((inside, weighted), else_=0.0)).label("weighted"),
            func.sum(EnergySample.energy_j).label("all_time_j"),
        )
        .join(Job, Job.id == EnergySample.job_id)
        .where(*_at_work(tenant, start, end))
        .group_by(*same)
        .order_by(*same)
    )
    return tuple(SpentRecord(**row) for row in session.execute(statement).mappings())


def list_cut_samples(
    session: Session, tenant: str | None, *, start: datetime, end: datetime
) -> tuple[tuple[str, EnergyRecord], ...]:
    """Samples that lie partly in the range, each with its job's id: a few per running job."""
    cut = (
        and_(EnergySample.started_at < edge, EnergySample.ended_at > edge) for edge in (start, end)
    )
    statement = (
        select(EnergySample)
        .join(Job, Job.id == EnergySample.job_id)
        .where(*_at_work(tenant, start, end), or_(*cut))
        .order_by(EnergySample.job_id, EnergySample.started_at, EnergySample.device)
    )
    rows = session.scalars(statement)
    return tuple((row.job_id, record(EnergyRecord, row)) for row in rows)


def _at_work(tenant: str | None, start: datetime, end: datetime) -> list[ColumnElement[bool]]:
    conditions = [Job.created_at < end, or_(Job.finished_at.is_(None), Job.finished_at > start)]
    return conditions if tenant is None else [Job.tenant == tenant, *conditions]
