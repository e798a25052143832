"""The energy of many jobs and what became of it, from sums that the database made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy.orm import Session

from core.carbon.fleet import Spent, fleet_report, share_inside
from core.carbon.report import stamp
from core.jobs import store
from core.jobs.records import AtWorkRecord, SpentRecord
from core.units import joules_to_kwh

GroupBy = Literal["tenant", "zone", "model", "method", "job"]
_DEFAULT_SPAN: Final = timedelta(days=30)

_NOTES = [
    "Energy and grams count all attempts of all jobs, failed and cancelled ones too, PUE included.",
    "Kinds of intensity are never added up; kind null is energy whose grams are not known.",
    "The baseline, full fine-tuning started at submission, is modelled when a job succeeds.",
    "Savings compare the jobs with a baseline, by the part of their energy that is in the range.",
]


def default_start(end: datetime) -> datetime:
    """Of the time that is asked about, where none is named; aware UTC as ``end``."""
    try:
        return end - _DEFAULT_SPAN
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def fleet_document(
    session: Session,
    tenant: str | None,
    *,
    start: datetime,
    end: datetime,
    group_by: Sequence[GroupBy],
    pue: float,
) -> dict[str, Any]:
    """The body of ``GET /v1/green/report``; three queries.

    Args:
        session: open session.
        tenant: None for every tenant's jobs: the operator only.
        start: aware UTC; samples that it or ``end`` cuts count in part.
        end: later than ``start``.
        group_by: what a line is of, beside its kind of intensity.
        pue: 1 or more.
    """
    jobs = {job.id: job for job in store.list_jobs_at_work(session, tenant, start=start, end=end)}
    sums = [
        *store.list_spent(session, tenant, start=start, end=end),
        *(
            SpentRecord(
                job_id=job_id,
                zone=row.zone,
                method=row.method,
                intensity_kind=row.intensity_kind,
                energy_j=(part_j := row.energy_j * share_inside(row, start, end)),
                weighted=part_j * (row.intensity_g_per_kwh or 0.0),
                all_time_j=0.0,
            )
            for job_id, row in store.list_cut_samples(session, tenant, start=start, end=end)
        ),
    ]
    spent = _spent(sums, jobs, group_by)
    totals = [_without_group(part) for part in spent]
    return {
        "object": "green.report",
        "start": stamp(start),
        "end": stamp(end),
        "group_by": list(group_by),
        "pue": pue,
        "data": [line.to_dict(group_by) for line in fleet_report(spent, pue=pue)],
        "totals": [line.to_dict(()) for line in fleet_report(totals, pue=pue)],
        "notes": _NOTES,
    }


def _spent(
    sums: Sequence[SpentRecord], jobs: dict[str, AtWorkRecord], group_by: Sequence[GroupBy]
) -> list[Spent]:
    all_time_j: dict[tuple[str, str | None], float] = {}
    for part in sums:
        key = (part.job_id, part.intensity_kind)
        all_time_j[key] = all_time_j.get(key, 0.0) + part.all_time_j
    return [
        Spent(
            job_id=part.job_id,
            group=tuple(_label(name, part, jobs[part.job_id]) for name in group_by),
            kind=part.intensity_kind,
            energy_j=part.energy_j,
            measured_j=0.0 if part.method == "estimate" else part.energy_j,
            emissions_g=joules_to_kwh(part.weighted),
            all_time_j=all_time_j[part.job_id, part.intensity_kind],
            baseline_g=_baseline_g(jobs[part.job_id], part.intensity_kind),
        )
        for part in sums
        # a job may begin between two statements
        if part.job_id in jobs
    ]


def _label(name: GroupBy, part: SpentRecord, job: AtWorkRecord) -> str | None:
    match name:
        case "tenant":
            return job.tenant
        case "zone":
            return part.zone
        case "model":
            return job.spec.model
        case "method":
            return job.spec.green.method
        case "job":
            return job.id


def _baseline_g(job: AtWorkRecord, kind: str | None) -> float | None:
    if job.baseline is None or kind is None or job.baseline.kind != kind:
        return None
    return job.baseline.emissions_g


def _without_group(part: Spent) -> Spent:
    return replace(part, group=())
